"""The memory format that training uses on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pqk_ext.ops._transforms import transforms_active

__all__ = ["fast_layout", "own_layout", "strided"]


def fast_layout(input: Tensor) -> Tensor:
    """A batch of images on the CPU in channels_last, which every layer of a network then keeps; others as they are.

    torch's convolutions and pooling, and all that follows a layer here, are faster in it, depthwise ones several
    times. The values of a step change by float rounding.
    """
    plain = input.is_cpu and input.dim() == 4 and input.numel() > 0
    if not plain or torch.compiler.is_compiling() or transforms_active():
        return input
    input = input.contiguous(memory_format=torch.channels_last)
    channels, height, width = input.shape[1:]
    if channels == 1 and not input.requires_grad:
        # One channel lies in memory alike in all formats; torch looks at the stride of the channels to tell them apart.
        return input.as_strided(input.shape, (height * width, 1, width, 1))
    return input


def strided(input: Tensor, index: tuple[slice, ...]) -> Tensor:
    """``input[index]``, whose gradient has ``input``'s memory format, which torch's own does not."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or transforms_active():
        return input[index]
    result: Tensor = _Strided.apply(input, index)  # type: ignore[no-untyped-call]
    return result


def own_layout(weight: Tensor) -> Tensor:
    """``weight``, whose gradient has its very strides.

    Of a depthwise or 1x1 convolution on channels_last images it would have others where sizes are 1. They mean nothing,
    but ``DistributedDataParallel`` warns of them and copies.
    """
    alike = 1 in weight.shape[1:] and weight.requires_grad and torch.is_grad_enabled()
    if not alike or torch.compiler.is_compiling() or transforms_active():
        return weight
    result: Tensor = _OwnLayout.apply(weight)  # type: ignore[no-untyped-call]
    return result


class _OwnLayout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.strides = weight.stride()
        return weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        strides = zip(grad.shape, grad.stride(), ctx.strides, strict=True)
        if all(size == 1 or own == expected for size, own, expected in strides):
            return grad.as_strided(grad.shape, ctx.strides)
        return grad


class _Strided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, index: tuple[slice, ...]) -> Tensor:
        ctx.like, ctx.index = torch.empty_like(input, device="meta"), index
        return input[index]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        gradient = torch.zeros_like(ctx.like, device=grad.device)
        gradient[ctx.index] = grad
        return gradient, None
