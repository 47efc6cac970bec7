"""Ops under function transforms: `torch.func` and forward-mode automatic differentiation.

There an op is computed by plain torch operators, which have rules for every transform and every order of derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["transforms_active", "with_gradients"]


def transforms_active() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation records what is computed."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def with_gradients(values: Tensor, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """``values``, with the derivative of ``sum(coefficient * argument)`` over ``terms``.

    Coefficients are constants to every derivative, and what an argument holds where its coefficient is 0 (infinity,
    NaN) has no influence. Shapes broadcast.
    """
    for coefficient, argument in terms:
        constant = coefficient.detach()
        change = argument - argument.detach()
        values = values + torch.where(constant == 0, 0.0, constant * change).to(values.dtype)
    return values
