"""2-d convolution under a pruning mask (`csrc/torch/masked_conv2d.cpp`)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pqk_ext.ops._composite import check_masked, composite_on_cuda
from pqk_ext.ops._sparse import pair
from pqk_ext.ops._spec import OpSpec, Sample, layouts, register
from pqk_ext.ops._transforms import transforms_active
from pqk_ext.ops.masked_weight import masked_weight_reference

__all__ = ["masked_conv2d", "skips_zeros"]


def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    kernel: str = "auto",
    assume_masked: bool = False,
) -> Tensor:
    """``conv2d(input, weight where mask else 0, bias, ...)``; the gradient of ``weight`` is masked too.

    The dense engine is torch's own, on a weight masked in one pass. In float32 without groups the output and both
    gradients can each come from a kernel that computes with the kept weights alone (``csrc/core/masked_conv2d.h``).
    With ``kernel="auto"`` a rule of shape, batch, layout and number of kept weights decides where that is faster,
    never a measurement: a run that is repeated decides in the same way. Nothing is kept between calls, so that a mask
    may change at any time. The results of the two differ by rounding (and where the input is not finite: 0 * inf
    is not computed); those of the sparse kernels are the same bits for any number of threads, instruction set and
    layout of the activations.

    Args:
        input: float32, float64 or bfloat16 ``[N, C, H, W]``, any strides.
        weight: ``[out_channels, C / groups, KH, KW]`` of the input's dtype.
        mask: bool of the weight's shape; True keeps.
        bias: ``[out_channels]``, or None.
        stride: one number or ``(height, width)``.
        padding: one number or ``(height, width)``.
        dilation: one number or ``(height, width)``.
        groups: as in ``torch.nn.functional.conv2d``.
        kernel: ``"auto"``, ``"dense"``, or ``"sparse"`` wherever the arguments allow it at all.
        assume_masked: the caller knows that ``weight`` is 0 where ``mask`` is False, and masks its gradient itself: the
            dense engine then runs without passes over either.

    Returns:
        ``[N, out_channels, OH, OW]`` of the input's dtype, in the memory format that torch's convolution gives.

    Raises:
        RuntimeError: a wrong dtype or shape, or ``kernel="sparse"`` for what has no sparse kernel.
    """
    args = (input, weight, mask, bias, pair(stride), pair(padding), pair(dilation), groups, kernel, assume_masked)
    output: Tensor
    if transforms_active():
        output = torch.nn.functional.conv2d(
            input, masked_weight_reference(weight, mask), bias, pair(stride), pair(padding), pair(dilation), groups
        )
    elif torch.compiler.is_compiling():
        output = torch.ops.pqk.masked_conv2d(*args)
    else:
        output = _EagerMaskedConv2d.apply(*args)  # type: ignore[no-untyped-call]
    return output


@functools.lru_cache(maxsize=4096)
def skips_zeros(
    input: tuple[int, ...],
    weight: tuple[int, ...],
    kept: int,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    channels_last: bool,
) -> bool:
    """Whether ``kernel="auto"`` would compute anything from kept weights alone; of shapes and ``kept`` weights."""
    return bool(torch.ops.pqk.masked_conv2d_skips(input, weight, kept, stride, padding, dilation, channels_last))


@torch.library.register_fake("pqk::masked_conv2d")
def _(
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    kernel: str = "auto",
    assume_masked: bool = False,
) -> Tensor:
    return torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)


@torch.library.register_fake("pqk::masked_conv2d_backward")
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    kernel: str,
    assume_masked: bool,
    want_input: bool,
    want_weight: bool,
) -> tuple[Tensor, Tensor]:
    output_format = _memory_format(input, weight)
    grad_input = torch.empty_like(input, memory_format=output_format) if want_input else grad.new_empty(0)
    weight_format = _memory_format(weight)
    grad_weight = torch.empty_like(weight, memory_format=weight_format) if want_weight else grad.new_empty(0)
    return grad_input, grad_weight


def _memory_format(*tensors: Tensor) -> torch.memory_format:
    channels_last = any(suggest_memory_format(tensor) == torch.channels_last for tensor in tensors)
    return torch.channels_last if channels_last else torch.contiguous_format


@composite_on_cuda("pqk::masked_conv2d")
def _masked_conv2d_cuda(
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    kernel: str = "auto",
    assume_masked: bool = False,
) -> Tensor:
    check_masked("pqk::masked_conv2d", weight, mask, kernel)
    kept = weight if assume_masked else torch.ops.pqk.masked_weight(weight, mask)
    return torch.nn.functional.conv2d(input, kept, bias, stride, padding, dilation, groups)


@composite_on_cuda("pqk::masked_conv2d_backward")
def _masked_conv2d_backward_cuda(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    kernel: str,
    assume_masked: bool,
    want_input: bool,
    want_weight: bool,
) -> tuple[Tensor, Tensor]:
    check_masked("pqk::masked_conv2d_backward", weight, mask, kernel)
    kept = weight if assume_masked else torch.ops.pqk.masked_weight(weight, mask)
    wanted = [want_input, want_weight, False]
    grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, input, kept, None, stride, padding, dilation, False, [0, 0], groups, wanted
    )
    nothing = grad.new_empty(0)
    if want_input:
        grad_input = grad_input.contiguous(memory_format=_memory_format(input, weight))
    if want_weight:
        grad_weight = grad_weight if assume_masked else torch.ops.pqk.masked_weight(grad_weight, mask)
        grad_weight = grad_weight.contiguous(memory_format=_memory_format(weight))
    return grad_input if want_input else nothing, grad_weight if want_weight else nothing


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, mask, bias, *ctx.convolution, ctx.kernel, ctx.assume_masked = inputs
    ctx.save_for_backward(input, weight, mask)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, weight, mask = ctx.saved_tensors
    want_input, want_weight = ctx.needs_input_grad[:2]
    want_bias = ctx.has_bias and ctx.needs_input_grad[3]
    if torch.is_grad_enabled():  # asked for second derivatives, which torch's own operators have
        return _differentiable_backward(ctx, grad)
    grad_input = grad_weight = None
    if want_input or want_weight:
        grads = torch.ops.pqk.masked_conv2d_backward(
            grad, input, weight, mask, *ctx.convolution, ctx.kernel, ctx.assume_masked, want_input, want_weight
        )
        grad_input, grad_weight = grads[0] if want_input else None, grads[1] if want_weight else None
    grad_bias = grad.sum((0, 2, 3)) if want_bias else None
    return grad_input, grad_weight, None, grad_bias, None, None, None, None, None, None


def _differentiable_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, weight, mask = ctx.saved_tensors
    stride, padding, dilation, groups = ctx.convolution
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[3]]
    kept = torch.ops.pqk.masked_weight(weight, mask)
    grad_input, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, input, kept, [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups, wanted
    )
    if wanted[1]:
        grad_weight = torch.ops.pqk.masked_weight(grad_weight, mask)
    return grad_input, grad_weight, None, grad_bias, None, None, None, None, None, None


torch.library.register_autograd("pqk::masked_conv2d", _backward, setup_context=_setup_context)


# In eager mode a plain autograd function costs a fraction of what the one registered above does.
class _EagerMaskedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            output: Tensor = torch.ops.pqk.masked_conv2d.default(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _backward(ctx, grad)


def masked_conv2d_reference(
    input: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Plain torch."""
    return torch.nn.functional.conv2d(input, weight * mask, bias, *args, **kwargs)


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    # The second to fourth run the sparse kernel where input and weight are contiguous.
    cases: list[tuple[tuple[int, ...], tuple[int, ...], float, dict[str, Any]]] = [
        ((1, 2, 5, 5), (3, 2, 3, 3), 0.5, {"padding": 1}),
        ((2, 8, 9, 11), (5, 8, 3, 3), 0.17, {"padding": (1, 2), "stride": (2, 1)}),
        ((1, 96, 7, 7), (4, 96, 1, 1), 0.15, {}),
        ((40, 16, 2, 2), (6, 16, 3, 3), 0.12, {"padding": 2, "dilation": 2}),
        ((2, 6, 8, 7), (4, 3, 3, 2), 0.4, {"groups": 2, "stride": 2}),
        ((1, 1, 1, 1), (1, 1, 1, 1), 1.0, {}),
        ((3, 4, 6, 6), (2, 4, 3, 3), 0.0, {}),
        ((0, 4, 6, 6), (2, 4, 3, 3), 0.5, {}),
    ]
    for shape, weight_shape, density, convolution in cases:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            weight = torch.randn(weight_shape, generator=generator).to(dtype)
            mask = torch.rand(weight_shape, generator=generator) < density
            bias = torch.randn(weight_shape[0], generator=generator).to(dtype)
            for input in layouts(torch.randn(shape, generator=generator).to(dtype)):
                yield (input, weight, mask, bias), convolution
            yield (input, weight.contiguous(memory_format=torch.channels_last), mask), convolution


def _opcheck_samples() -> Iterator[Sample]:
    for args, kwargs in list(_samples())[0:20:18]:
        leaves = [arg.detach().requires_grad_(arg.is_floating_point()) for arg in args]
        convolution = [pair(kwargs.get(name, default)) for name, default in _DEFAULTS.items()]
        bias = leaves[3] if len(leaves) > 3 else None
        yield (*leaves[:3], bias, *convolution, kwargs.get("groups", 1)), {}


_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1}


MASKED_CONV2D = register(
    OpSpec(
        name="masked_conv2d",
        overload=torch.ops.pqk.masked_conv2d.default,
        function=masked_conv2d,
        reference=masked_conv2d_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
        exact=False,
    )
)
