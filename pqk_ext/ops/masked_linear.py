"""Linear layer under a pruning mask (`csrc/torch/masked_linear.cpp`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pqk_ext.ops._composite import check_masked, composite_on_cuda
from pqk_ext.ops._spec import OpSpec, Sample, layouts, register
from pqk_ext.ops._transforms import transforms_active
from pqk_ext.ops.masked_weight import masked_weight_reference

__all__ = ["masked_linear"]


def masked_linear(
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    kernel: str = "auto",
    assume_masked: bool = False,
) -> Tensor:
    """``linear(input, weight where mask else 0, bias)``; the gradient of ``weight`` is masked too.

    As :func:`pqk_ext.ops.masked_conv2d`: torch's dense kernel on the masked weight, or in float32, where a rule of
    shape and number of kept weights says that it is faster, a kernel of the kept weights alone, for the output and
    for each gradient.

    Args:
        input: float32, float64 or bfloat16 ``(..., in_features)``, any strides.
        weight: ``[out_features, in_features]`` of the input's dtype.
        mask: bool of the weight's shape; True keeps.
        bias: ``[out_features]``, or None.
        kernel: ``"auto"``, ``"dense"``, or ``"sparse"`` wherever the arguments allow it at all.
        assume_masked: the caller knows that ``weight`` is 0 where ``mask`` is False, and masks its gradient itself: the
            dense engine then runs without passes over either.

    Returns:
        ``(..., out_features)`` of the input's dtype.

    Raises:
        RuntimeError: a wrong dtype or shape, or ``kernel="sparse"`` for what has no sparse kernel.
    """
    args = (input, weight, mask, bias, kernel, assume_masked)
    output: Tensor
    if transforms_active():
        output = torch.nn.functional.linear(input, masked_weight_reference(weight, mask), bias)
    elif torch.compiler.is_compiling():
        output = torch.ops.pqk.masked_linear(*args)
    else:
        output = _EagerMaskedLinear.apply(*args)  # type: ignore[no-untyped-call]
    return output


@torch.library.register_fake("pqk::masked_linear")
def _(
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    kernel: str = "auto",
    assume_masked: bool = False,
) -> Tensor:
    return torch.nn.functional.linear(input, weight, bias)


@torch.library.register_fake("pqk::masked_linear_backward")
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    kernel: str,
    assume_masked: bool,
    want_input: bool,
    want_weight: bool,
) -> tuple[Tensor, Tensor]:
    grad_input = input.new_empty(input.shape) if want_input else grad.new_empty(0)
    return grad_input, weight.new_empty(weight.shape) if want_weight else grad.new_empty(0)


@composite_on_cuda("pqk::masked_linear")
def _masked_linear_cuda(
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    kernel: str = "auto",
    assume_masked: bool = False,
) -> Tensor:
    check_masked("pqk::masked_linear", weight, mask, kernel)
    kept = weight if assume_masked else torch.ops.pqk.masked_weight(weight, mask)
    return torch.nn.functional.linear(input, kept, bias)


@composite_on_cuda("pqk::masked_linear_backward")
def _masked_linear_backward_cuda(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    kernel: str,
    assume_masked: bool,
    want_input: bool,
    want_weight: bool,
) -> tuple[Tensor, Tensor]:
    check_masked("pqk::masked_linear_backward", weight, mask, kernel)
    grad_input = grad_weight = grad.new_empty(0)
    if want_input:
        grad_input = grad @ (weight if assume_masked else torch.ops.pqk.masked_weight(weight, mask))
    if want_weight:
        rows = grad.reshape(-1, grad.shape[-1]), input.reshape(-1, input.shape[-1])
        grad_weight = rows[0].t() @ rows[1]
        grad_weight = grad_weight if assume_masked else torch.ops.pqk.masked_weight(grad_weight, mask)
    return grad_input, grad_weight


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, mask, bias, ctx.kernel, ctx.assume_masked = inputs
    ctx.save_for_backward(input, weight, mask)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, mask = ctx.saved_tensors
    want_input, want_weight = ctx.needs_input_grad[:2]
    grad_input = grad_weight = grad_bias = None
    if torch.is_grad_enabled():  # asked for second derivatives, which torch's own operators have
        if want_input:
            grad_input = grad @ torch.ops.pqk.masked_weight(weight, mask)
        if want_weight:
            batch = list(range(grad.dim() - 1))
            grad_weight = torch.ops.pqk.masked_weight(torch.tensordot(grad, input, dims=(batch, batch)), mask)
    elif want_input or want_weight:
        grads = torch.ops.pqk.masked_linear_backward(
            grad, input, weight, mask, ctx.kernel, ctx.assume_masked, want_input, want_weight
        )
        grad_input, grad_weight = grads[0] if want_input else None, grads[1] if want_weight else None
    if ctx.has_bias and ctx.needs_input_grad[3]:
        grad_bias = grad.sum_to_size(grad.shape[-1])
    return grad_input, grad_weight, None, grad_bias, None, None


torch.library.register_autograd("pqk::masked_linear", _backward, setup_context=_setup_context)


# In eager mode a plain autograd function costs a fraction of what the one registered above does.
class _EagerMaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            output: Tensor = torch.ops.pqk.masked_linear.default(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, grad)


def masked_linear_reference(input: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """Plain torch."""
    return torch.nn.functional.linear(input, weight * mask, bias)


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    # The third and fourth run the sparse kernel.
    for batch, in_features, out_features, density in [
        ((2,), 5, 3, 0.5),
        ((), 4, 2, 0.5),
        ((6, 7), 101, 5, 0.15),
        ((64,), 130, 17, 0.12),
        ((0,), 3, 2, 0.5),
        ((40,), 16, 8, 0.0),
        ((3,), 7, 4, 1.0),
    ]:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            weight = torch.randn(out_features, in_features, generator=generator).to(dtype)
            mask = torch.rand(out_features, in_features, generator=generator) < density
            bias = torch.randn(out_features, generator=generator).to(dtype)
            for input in layouts(torch.randn(*batch, in_features, generator=generator).to(dtype)):
                yield (input, weight, mask, bias), {}
            yield (input, weight.t().contiguous().t(), mask), {}


def _opcheck_samples() -> Iterator[Sample]:
    for args, kwargs in list(_samples())[1:60:29]:
        yield tuple(arg.detach().requires_grad_(arg.is_floating_point()) for arg in args), kwargs


MASKED_LINEAR = register(
    OpSpec(
        name="masked_linear",
        overload=torch.ops.pqk.masked_linear.default,
        function=masked_linear,
        reference=masked_linear_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
        exact=False,
    )
)
