"""Mutual distillation: networks that learn together, each from the predictions of the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pqk_ext.distill.kl import kl

__all__ = ["dml"]


def dml(logits: Sequence[Tensor], temperature: float = 1.0) -> tuple[Tensor, ...]:
    """Each network's mutual loss: the mean over the others of ``T^2 * KL(other || own)``.

    Zhang, Xiang, Hospedales and Lu, "Deep mutual learning" (CVPR 2018), where T = 1 and each network adds its own
    cross-entropy. The predictions of the others are constants in each loss. The sum of the losses updates all networks
    at once; for the alternate updates of the paper take one of them, step its network, and compute its logits again
    before the next.

    Args:
        logits: of two networks or more, each (batch, classes) or (batch, classes, ...).
        temperature: softening T, above 0.

    Returns:
        A scalar for each network, in the order of ``logits``.

    Raises:
        ValueError: fewer than two networks, shapes that differ or are empty, or a temperature that is not positive.
    """
    if len(logits) < 2:
        raise ValueError(f"logits: expected those of 2 networks or more, got {len(logits)}")
    losses = []
    for index, own in enumerate(logits):
        others = [other for number, other in enumerate(logits) if number != index]
        losses.append(torch.stack([kl(own, other, temperature) for other in others]).mean())
    return tuple(losses)
