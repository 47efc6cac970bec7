"""A loss whose gradient is taken at once: its activations are free before the next forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["can_take_early", "take_early"]


def can_take_early(loss: Tensor) -> bool:
    """Whether :func:`take_early` gives what ``backward`` would.

    Not where something else records or transforms the graph (``torch.compile``, ``torch.func``), and not under float16
    autocast, whose small gradients need the loss scaled before they are taken.
    """
    if not loss.requires_grad or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    device = loss.device.type
    return not (torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16)


def take_early(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """``loss``, of which only the gradients of ``parameters`` are kept, not the graph.

    Its ``backward`` multiplies them by the incoming gradient: a scaled or accumulated loss gives what it would have
    given. They take as much memory as the parameters; all activations are free when this returns.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    with torch.autocast(loss.device.type, enabled=False):
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    known = {p: gradient for p, gradient in zip(wanted, gradients, strict=True) if gradient is not None}
    if not known:
        return loss.detach()
    output: Tensor = _Early.apply(loss.detach(), list(known.values()), *known)  # type: ignore[no-untyped-call]
    return output


class _Early(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.gradients, grad_output)
