"""2-d convolutions from a CSR weight (`csrc/core/sparse_conv2d.h`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pqk_ext.ops._sparse import (
    conv_output_size,
    four_sides,
    pair,
    requantize_reference,
    row_indices,
    sample_matrix,
    to_dense,
)
from pqk_ext.ops._spec import OpSpec, Sample, layouts, register

__all__ = ["int8_sparse_conv2d", "sparse_conv2d"]


def sparse_conv2d(
    input: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """``conv2d`` whose weight is the CSR matrix ``weight.reshape(out_channels, -1)``.

    Every output is the serial sum of its products in column order (input channel, kernel row, kernel column), then the
    bias, each step rounded: the same bits on every instruction set and for any number of threads. The gradients are
    those of the stored values, of the input and of the bias; the backward pass is dense.

    Args:
        input: float32 or float64 ``[N, C, H, W]``, any strides.
        crow_indices: int32 ``[out_channels + 1]``, first 0, never decreasing, last the number of values.
        col_indices: int32, strictly increasing within a row, below ``C / groups * KH * KW``.
        values: one for each column index, of the input's dtype.
        bias: ``[out_channels]`` of the input's dtype, or None.
        kernel_size: one number or ``(height, width)``.
        stride: one number or ``(height, width)``.
        padding: zeros around the input: one number, ``(height, width)`` or ``(top, left, bottom, right)``.
        dilation: one number or ``(height, width)``.
        groups: divides the channels as in ``torch.nn.Conv2d``.

    Returns:
        ``[N, out_channels, OH, OW]``, contiguous, of the input's dtype.

    Raises:
        RuntimeError: a wrong dtype or shape, or indices that are no valid matrix (E_CSR_INDPTR, E_CSR_INDEX, E_CSR_NNZ
            with the row and position).
    """
    output: Tensor = torch.ops.pqk.sparse_conv2d(
        input,
        crow_indices,
        col_indices,
        values,
        bias,
        pair(kernel_size),
        pair(stride),
        four_sides(padding),
        pair(dilation),
        groups,
    )
    return output


def int8_sparse_conv2d(
    input: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    *,
    kernel_size: int | Sequence[int],
    input_zero_point: int,
    quant_min: int = 0,
    quant_max: int = 255,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    float_output: bool = False,
) -> Tensor:
    """The integer convolution of a ``.pqk`` graph from a CSR weight; exact in int32.

    ``acc = sum (input - input_zero_point) * value``, padding with ``input_zero_point``; the result is
    ``clamp(rint(acc * multiplier[c] + bias[c]), quant_min, quant_max)``, or ``acc * multiplier[c] + bias[c]`` for
    ``float_output``; product and sum rounded separately. The weight is regrouped on every call, 2 to 3 ns for each
    stored value, which small inputs feel.

    Args:
        input: uint8 codes ``[N, C, H, W]``, any strides.
        crow_indices: as in :func:`sparse_conv2d`.
        col_indices: as in :func:`sparse_conv2d`.
        values: int8, one for each column index; at most 65793 in a row.
        multiplier: float32 ``[out_channels]``, finite.
        bias: float32 ``[out_channels]``, finite.
        kernel_size: one number or ``(height, width)``.
        input_zero_point: the code that stands for 0.
        quant_min: smallest code of the output.
        quant_max: largest code of the output.
        stride: one number or ``(height, width)``.
        padding: one number, ``(height, width)`` or ``(top, left, bottom, right)``.
        dilation: one number or ``(height, width)``.
        groups: divides the channels as in ``torch.nn.Conv2d``.
        float_output: return float32 instead of codes.

    Returns:
        ``[N, out_channels, OH, OW]``, contiguous, uint8 or float32.

    Raises:
        RuntimeError: as in :func:`sparse_conv2d`, or a parameter out of range.
    """
    output: Tensor = torch.ops.pqk.int8_sparse_conv2d(
        input,
        crow_indices,
        col_indices,
        values,
        multiplier,
        bias,
        pair(kernel_size),
        input_zero_point,
        quant_min,
        quant_max,
        pair(stride),
        four_sides(padding),
        pair(dilation),
        groups,
        float_output,
    )
    return output


@torch.library.register_fake("pqk::sparse_conv2d")
def _(
    input: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    bias: Tensor | None,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    size = conv_output_size(input, kernel_size, stride, padding, dilation)
    return input.new_empty([input.shape[0], crow_indices.shape[0] - 1, *size])


@torch.library.register_fake("pqk::int8_sparse_conv2d")
def _(
    input: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    kernel_size: list[int],
    input_zero_point: int,
    quant_min: int,
    quant_max: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    float_output: bool = False,
) -> Tensor:
    size = conv_output_size(input, kernel_size, stride, padding, dilation)
    dtype = torch.float32 if float_output else torch.uint8
    return input.new_empty([input.shape[0], crow_indices.shape[0] - 1, *size], dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.has_bias = inputs[4] is not None
    ctx.convolution = inputs[5:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, crow_indices, col_indices, values = ctx.saved_tensors
    kernel_size, stride, (top, left, bottom, right), dilation, groups = ctx.convolution
    channels = input.shape[1] // groups
    columns = channels * kernel_size[0] * kernel_size[1]
    weight = to_dense(crow_indices, col_indices, values, columns).reshape(-1, channels, *kernel_size)
    # torch pads both sides alike.
    padded = torch.nn.functional.pad(input, (left, right, top, bottom))
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[3], ctx.has_bias and ctx.needs_input_grad[4]]
    grad_input, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, padded, weight, [weight.shape[0]], stride, [0, 0], dilation, False, [0, 0], groups, wanted
    )
    if wanted[0]:
        grad_input = grad_input[:, :, top : top + input.shape[2], left : left + input.shape[3]]
    if wanted[1]:
        rows = row_indices(crow_indices, values.numel())
        grad_weight = grad_weight.reshape(-1, columns)[rows, col_indices.long()]
    return grad_input, None, None, grad_weight, grad_bias, None, None, None, None, None


torch.library.register_autograd("pqk::sparse_conv2d", _backward, setup_context=_setup_context)


def _dense_conv2d(input: Tensor, weight: Tensor, convolution: dict[str, Any], border: float = 0.0) -> Tensor:
    top, left, bottom, right = four_sides(convolution.get("padding", 0))
    groups = convolution.get("groups", 1)
    return torch.nn.functional.conv2d(
        torch.nn.functional.pad(input, (left, right, top, bottom), value=border),
        weight.reshape(weight.shape[0], input.shape[1] // groups, *pair(convolution["kernel_size"])),
        stride=pair(convolution.get("stride", 1)),
        dilation=pair(convolution.get("dilation", 1)),
        groups=groups,
    )


def _columns(input: Tensor, convolution: dict[str, Any]) -> int:
    height, width = pair(convolution["kernel_size"])
    return input.shape[1] // int(convolution.get("groups", 1)) * height * width


def sparse_conv2d_reference(
    input: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    **convolution: Any,
) -> Tensor:
    """Plain torch through the dense weight."""
    weight = to_dense(crow_indices, col_indices, values, _columns(input, convolution))
    output = _dense_conv2d(input, weight, convolution)
    return output if bias is None else output + bias[:, None, None]


def int8_sparse_conv2d_reference(
    input: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    *,
    input_zero_point: int,
    quant_min: int = 0,
    quant_max: int = 255,
    float_output: bool = False,
    **convolution: Any,
) -> Tensor:
    """Plain torch through the dense weight; sums in float64, which holds them exactly."""
    weight = to_dense(crow_indices, col_indices, values, _columns(input, convolution)).double()
    accumulator = _dense_conv2d(input.double() - input_zero_point, weight, convolution)
    multiplier, bias = multiplier[:, None, None], bias[:, None, None]
    return requantize_reference(accumulator, multiplier, bias, quant_min, quant_max, float_output)


# input shape, out_channels, sparsity, convolution
_SHAPES: list[tuple[tuple[int, int, int, int], int, float, dict[str, Any]]] = [
    ((1, 2, 5, 5), 3, 0.5, {"kernel_size": 3, "padding": 1}),
    ((1, 1, 1, 1), 1, 0.0, {"kernel_size": 1}),
    ((0, 2, 5, 5), 3, 0.5, {"kernel_size": 3}),
    ((2, 4, 5, 5), 6, 1.0, {"kernel_size": 3}),
    ((2, 5, 8, 8), 7, 0.0, {"kernel_size": 3, "padding": 1, "stride": 2}),
    ((3, 6, 11, 13), 4, 0.6, {"kernel_size": (3, 5), "stride": (2, 3), "padding": (2, 1), "dilation": (2, 1)}),
    ((2, 6, 9, 7), 9, 0.5, {"kernel_size": (2, 3), "padding": (0, 1, 2, 3), "groups": 3}),
    ((1, 7, 6, 20), 7, 0.3, {"kernel_size": 3, "padding": 1, "groups": 7}),
    ((1, 3, 40, 41), 20, 0.8, {"kernel_size": 3, "padding": 1}),
    ((70, 17, 2, 2), 18, 0.9, {"kernel_size": 3, "padding": 1}),
    ((3, 8, 4, 4), 5, 0.5, {"kernel_size": 1, "stride": 2, "padding": 1}),
    ((2, 4, 3, 3), 4, 0.5, {"kernel_size": 3, "stride": 5, "padding": 6, "dilation": 4}),
]


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for shape, out_channels, sparsity, convolution in _SHAPES:
        for dtype in (torch.float32, torch.float64):
            input = torch.randn(shape, generator=generator, dtype=dtype)
            columns = _columns(input, convolution)
            csr = sample_matrix(out_channels, columns, sparsity, dtype, generator)
            bias = torch.randn(out_channels, generator=generator, dtype=dtype)
            for view in layouts(input):
                yield (view, *csr, bias), convolution
            yield (input, *csr), convolution


def _int8_samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for shape, out_channels, sparsity, convolution in _SHAPES:
        input = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        csr = sample_matrix(out_channels, _columns(input, convolution), sparsity, torch.int8, generator)
        multiplier = torch.randn(out_channels, generator=generator) * 1e-3
        bias = torch.randn(out_channels, generator=generator) * 50 + 100
        for view in layouts(input):
            yield (view, *csr, multiplier, bias), {"input_zero_point": 7, **convolution}
        quantization = {"input_zero_point": 131, "quant_min": 3, "quant_max": 200}
        yield (input, *csr, multiplier, bias), {**quantization, **convolution}
        yield (input, *csr, multiplier, bias), {"input_zero_point": 255, "float_output": True, **convolution}


def _convolution_arguments(kwargs: dict[str, Any]) -> tuple[list[int], list[int], list[int], int]:
    stride, dilation = pair(kwargs.get("stride", 1)), pair(kwargs.get("dilation", 1))
    return stride, four_sides(kwargs.get("padding", 0)), dilation, kwargs.get("groups", 1)


def _opcheck_samples() -> Iterator[Sample]:
    for args, kwargs in itertools.islice(_samples(), 4, None, 37):
        leaves = [arg.detach().requires_grad_(arg.is_floating_point()) for arg in args]
        bias = leaves[4] if len(leaves) > 4 else None
        yield (*leaves[:4], bias, pair(kwargs["kernel_size"]), *_convolution_arguments(kwargs)), {}


def _int8_opcheck_samples() -> Iterator[Sample]:
    for args, kwargs in itertools.islice(_int8_samples(), 4, None, 29):
        quantization = (kwargs["input_zero_point"], kwargs.get("quant_min", 0), kwargs.get("quant_max", 255))
        float_output = kwargs.get("float_output", False)
        convolution = _convolution_arguments(kwargs)
        yield (*args, pair(kwargs["kernel_size"]), *quantization, *convolution, float_output), {}


SPARSE_CONV2D = register(
    OpSpec(
        name="sparse_conv2d",
        overload=torch.ops.pqk.sparse_conv2d.default,
        function=sparse_conv2d,
        reference=sparse_conv2d_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
        exact=False,
    )
)
INT8_SPARSE_CONV2D = register(
    OpSpec(
        name="int8_sparse_conv2d",
        overload=torch.ops.pqk.int8_sparse_conv2d.default,
        function=int8_sparse_conv2d,
        reference=int8_sparse_conv2d_reference,
        samples=_int8_samples,
        opcheck_samples=_int8_opcheck_samples,
    )
)
