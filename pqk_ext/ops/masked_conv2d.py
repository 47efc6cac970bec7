"""2-d convolution under a pruning mask (`csrc/torch/masked_conv2d.cpp`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pqk_ext.ops._sparse import pair
from pqk_ext.ops._spec import OpSpec, Sample, layouts, register
from pqk_ext.ops._transforms import transforms_active
from pqk_ext.ops.masked_weight import masked_weight_reference

__all__ = ["masked_conv2d"]


def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """``conv2d(input, weight where mask else 0, bias, ...)``; the gradient of ``weight`` is masked too.

    The dense engine is torch's own, on a weight masked in one pass. Where the mask keeps at most a quarter, and input
    and weight are contiguous float32 or float64 with ``groups == 1``, the forward pass runs a sparse kernel on what
    is kept, whose results differ from the dense one's by rounding alone (and where the input is not finite: 0 * inf
    is not computed). The backward pass is dense.

    Args:
        input: float32, float64 or bfloat16 ``[N, C, H, W]``, any strides.
        weight: ``[out_channels, C / groups, KH, KW]`` of the input's dtype.
        mask: bool of the weight's shape; True keeps.
        bias: ``[out_channels]``, or None.
        stride: one number or ``(height, width)``.
        padding: one number or ``(height, width)``.
        dilation: one number or ``(height, width)``.
        groups: as in ``torch.nn.functional.conv2d``.

    Returns:
        ``[N, out_channels, OH, OW]`` of the input's dtype, in the memory format that torch's convolution gives.

    Raises:
        RuntimeError: a wrong dtype or shape.
    """
    args = (input, weight, mask, bias, pair(stride), pair(padding), pair(dilation), groups)
    output: Tensor
    if transforms_active():
        output = torch.nn.functional.conv2d(input, masked_weight_reference(weight, mask), bias, *args[4:])
    elif torch.compiler.is_compiling():
        output = torch.ops.pqk.masked_conv2d(*args)
    else:
        output = _EagerMaskedConv2d.apply(*args)  # type: ignore[no-untyped-call]
    return output


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
) -> Tensor:
    return torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, mask, bias, *ctx.convolution = inputs
    ctx.save_for_backward(input, weight, mask)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, weight, mask = ctx.saved_tensors
    stride, padding, dilation, groups = ctx.convolution
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[3]]
    kept = torch.ops.pqk.masked_weight(weight, mask)
    grad_input, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, input, kept, [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups, wanted
    )
    if wanted[1]:
        grad_weight = torch.ops.pqk.masked_weight(grad_weight, mask)
    return grad_input, grad_weight, None, grad_bias, None, None, None, None


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
