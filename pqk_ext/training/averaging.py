"""Averages of weights for ``torch.optim.swa_utils.AveragedModel``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["ema_multi_avg_fn"]


def ema_multi_avg_fn(decay: float = 0.999) -> Callable[[Any, Any, Any], None]:
    """Exponential moving average of parameters and buffers, in which integers and masks are copied, not averaged::

        ema = AveragedModel(model, multi_avg_fn=ema_multi_avg_fn(0.999), use_buffers=True)

    torch's own ``get_ema_multi_avg_fn`` averages buffers of every type: the union of all masks so far, and a step count
    that lags behind. Without ``use_buffers`` it serves prepared models as well: buffers are then copied, also the
    running statistics of batch norms (``update_bn`` makes new ones).

    Args:
        decay: share of the old average that stays at each update, in [0, 1].
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay: expected a number in [0, 1], got {decay!r}")

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], _: object) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), 1.0 - decay)
        else:
            torch._foreach_copy_(list(averaged), list(current))

    update.copies_integers = True  # type: ignore[attr-defined]  # by which adapters know it
    return update
