"""A weight under a pruning mask (`csrc/core/masked_weight_cpu.cpp`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pqk_ext.ops._composite import check_mask, composite_on_cuda
from pqk_ext.ops._spec import OpSpec, Sample, layouts, register
from pqk_ext.ops._transforms import transforms_active

__all__ = ["masked_weight"]


def masked_weight(weight: Tensor, mask: Tensor) -> Tensor:
    """``weight`` where ``mask``, exactly 0 elsewhere, in one pass; differentiable in ``weight``.

    A masked element is 0 even if it is NaN or infinite, and so is its gradient.

    Args:
        weight: float32, float64 or bfloat16, any shape and strides.
        mask: bool of the same shape; True keeps.

    Returns:
        A new tensor of the weight's shape and dtype; it keeps strides that both share, and is contiguous otherwise.

    Raises:
        RuntimeError: a wrong dtype or shape.
    """
    if transforms_active():
        return masked_weight_reference(weight, mask)
    output: Tensor = torch.ops.pqk.masked_weight(weight, mask)
    return output


@torch.library.register_fake("pqk::masked_weight")
def _(weight: Tensor, mask: Tensor) -> Tensor:
    output = torch.empty_like(weight)
    shared = all(
        size <= 1 or first == second == third
        for size, first, second, third in zip(
            weight.shape, weight.stride(), mask.stride(), output.stride(), strict=True
        )
    )
    return output if shared else weight.new_empty(weight.shape)


@composite_on_cuda("pqk::masked_weight")
def _masked_weight_cuda(weight: Tensor, mask: Tensor) -> Tensor:
    check_mask("pqk::masked_weight", weight, mask)
    return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (mask,) = ctx.saved_tensors
    return torch.ops.pqk.masked_weight(grad, mask), None


torch.library.register_autograd("pqk::masked_weight", _backward, setup_context=_setup_context)


def masked_weight_reference(weight: Tensor, mask: Tensor) -> Tensor:
    """Plain torch."""
    return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype))


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for shape in [(3,), (0, 4), (5, 7), (4, 3, 3, 3), (1, 130)]:
            weight = torch.randn(shape, generator=generator).to(dtype)
            mask = torch.rand(shape, generator=generator) > 0.5
            for view in layouts(weight):
                yield (view, mask), {}
            for weight_view, mask_view in zip(layouts(weight), layouts(mask), strict=True):
                yield (weight_view, mask_view), {}
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-45, 1.0])
    yield (special, torch.tensor([False, False, True, True, True, False])), {}


def _opcheck_samples() -> Iterator[Sample]:
    for args, _ in list(_samples())[4:80:25]:
        yield (args[0].detach().requires_grad_(), args[1]), {}


MASKED_WEIGHT = register(
    OpSpec(
        name="masked_weight",
        overload=torch.ops.pqk.masked_weight.default,
        function=masked_weight,
        reference=masked_weight_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
    )
)
