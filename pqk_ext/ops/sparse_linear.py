"""Linear layers from a CSR weight (`csrc/core/sparse_conv2d.h`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pqk_ext.ops._sparse import requantize_reference, row_indices, sample_matrix, to_dense
from pqk_ext.ops._spec import OpSpec, Sample, layouts, register

__all__ = ["int8_sparse_linear", "sparse_linear"]


def sparse_linear(
    input: Tensor, crow_indices: Tensor, col_indices: Tensor, values: Tensor, bias: Tensor | None = None
) -> Tensor:
    """``input @ W.T + bias``, where W is the CSR matrix (out_features, in_features).

    Every output is the serial sum of its products in column order, then the bias, each step rounded: the same bits on
    every instruction set and for any number of threads. The gradients are those of the stored values, of the input and
    of the bias; the backward pass is dense. On CUDA the indices are not checked, as that would stop the stream: entries
    outside of the matrix are left out.

    Args:
        input: float32 or float64, shape ``(..., in_features)``, any strides.
        crow_indices: int32 ``[out_features + 1]``, first 0, never decreasing, last the number of values.
        col_indices: int32, strictly increasing within a row, below in_features.
        values: one for each column index, of the input's dtype.
        bias: ``[out_features]`` of the input's dtype, or None.

    Returns:
        Shape ``(..., out_features)``, contiguous, of the input's dtype.

    Raises:
        RuntimeError: a wrong dtype or shape, or indices that are no valid matrix (E_CSR_INDPTR, E_CSR_INDEX, E_CSR_NNZ
            with the row and position).
    """
    output: Tensor = torch.ops.pqk.sparse_linear(input, crow_indices, col_indices, values, bias)
    return output


def int8_sparse_linear(
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
) -> Tensor:
    """The integer linear layer of a ``.pqk`` graph from a CSR weight; exact in int32.

    ``acc = sum (input - input_zero_point) * value``; the result is
    ``clamp(rint(acc * multiplier + bias), quant_min, quant_max)``, or ``acc * multiplier + bias`` for
    ``float_output``; product and sum rounded separately.

    Args:
        input: uint8 codes, shape ``(..., in_features)``, any strides.
        crow_indices: as in :func:`sparse_linear`.
        col_indices: as in :func:`sparse_linear`.
        values: int8, one for each column index; at most 65793 in a row.
        multiplier: float32 ``[out_features]``, finite.
        bias: float32 ``[out_features]``, finite.
        input_zero_point: the code that stands for 0.
        quant_min: smallest code of the output.
        quant_max: largest code of the output.
        float_output: return float32 instead of codes.

    Returns:
        Shape ``(..., out_features)``, contiguous, uint8 or float32.

    Raises:
        RuntimeError: as in :func:`sparse_linear`, or a parameter out of range.
    """
    output: Tensor = torch.ops.pqk.int8_sparse_linear(
        input,
        crow_indices,
        col_indices,
        values,
        multiplier,
        bias,
        input_zero_point,
        quant_min,
        quant_max,
        float_output,
    )
    return output


@torch.library.register_fake("pqk::sparse_linear")
def _(input: Tensor, crow_indices: Tensor, col_indices: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    return input.new_empty([*input.shape[:-1], crow_indices.shape[0] - 1])


@torch.library.register_fake("pqk::int8_sparse_linear")
def _(
    input: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    input_zero_point: int,
    quant_min: int,
    quant_max: int,
    float_output: bool = False,
) -> Tensor:
    dtype = torch.float32 if float_output else torch.uint8
    return input.new_empty([*input.shape[:-1], crow_indices.shape[0] - 1], dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.has_bias = inputs[4] is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, crow_indices, col_indices, values = ctx.saved_tensors
    grad_input = grad_values = grad_bias = None
    batch = list(range(grad.dim() - 1))
    if ctx.needs_input_grad[0]:
        grad_input = grad @ to_dense(crow_indices, col_indices, values, input.shape[-1])
    if ctx.needs_input_grad[3]:
        dense = torch.tensordot(grad, input, dims=(batch, batch))
        grad_values = dense[row_indices(crow_indices, values.numel()), col_indices.long()]
    if ctx.has_bias and ctx.needs_input_grad[4]:
        grad_bias = grad.sum_to_size(grad.shape[-1])
    return grad_input, None, None, grad_values, grad_bias


torch.library.register_autograd("pqk::sparse_linear", _backward, setup_context=_setup_context)


def sparse_linear_reference(
    input: Tensor, crow_indices: Tensor, col_indices: Tensor, values: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Plain torch through the dense weight."""
    weight = to_dense(crow_indices, col_indices, values, input.shape[-1])
    return torch.nn.functional.linear(input, weight, bias)


def int8_sparse_linear_reference(
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
) -> Tensor:
    """Plain torch through the dense weight; sums in float64, which holds them exactly."""
    weight = to_dense(crow_indices, col_indices, values, input.shape[-1]).double()
    accumulator = (input.double() - input_zero_point) @ weight.t()
    return requantize_reference(accumulator, multiplier, bias, quant_min, quant_max, float_output)


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for batch, in_features, out_features, sparsity in _SHAPES:
        for dtype in (torch.float32, torch.float64):
            csr = sample_matrix(out_features, in_features, sparsity, dtype, generator)
            input = torch.randn(*batch, in_features, generator=generator, dtype=dtype)
            bias = torch.randn(out_features, generator=generator, dtype=dtype)
            for view in layouts(input):
                yield (view, *csr, bias), {}
            yield (input, *csr), {}


def _int8_samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for batch, in_features, out_features, sparsity in _SHAPES:
        csr = sample_matrix(out_features, in_features, sparsity, torch.int8, generator)
        input = torch.randint(0, 256, (*batch, in_features), generator=generator, dtype=torch.uint8)
        multiplier = torch.randn(out_features, generator=generator) * 1e-3
        bias = torch.randn(out_features, generator=generator) * 50 + 100
        for view in layouts(input):
            yield (view, *csr, multiplier, bias), {"input_zero_point": 0}
        yield (input, *csr, multiplier, bias), {"input_zero_point": 131, "quant_min": 3, "quant_max": 200}
        yield (input, *csr, multiplier, bias), {"input_zero_point": 255, "float_output": True}


# batch dimensions, in_features, out_features, sparsity
_SHAPES: list[tuple[tuple[int, ...], int, int, float]] = [
    ((2,), 5, 3, 0.5),
    ((1,), 1, 1, 0.0),
    ((), 7, 2, 0.3),
    ((0,), 4, 3, 0.5),
    ((3,), 4, 0, 0.5),
    ((3,), 0, 4, 0.0),
    ((3,), 8, 5, 1.0),
    ((2, 17), 37, 19, 0.7),
    ((67,), 101, 33, 0.9),
    ((131,), 64, 16, 0.0),
    ((300,), 53, 31, 0.8),
]


def _int8_overload_samples() -> Iterator[Sample]:
    defaults = {"quant_min": 0, "quant_max": 255, "float_output": False}
    for args, kwargs in itertools.islice(_int8_samples(), 2, None, 19):
        merged = {**defaults, **kwargs}
        names = ("input_zero_point", "quant_min", "quant_max", "float_output")
        yield (*args, *(merged[name] for name in names)), {}


def _opcheck_samples() -> Iterator[Sample]:
    for args, kwargs in itertools.islice(_samples(), 2, None, 29):
        leaves = [arg.detach().requires_grad_(arg.is_floating_point()) for arg in args]
        yield tuple(leaves), kwargs


SPARSE_LINEAR = register(
    OpSpec(
        name="sparse_linear",
        overload=torch.ops.pqk.sparse_linear.default,
        function=sparse_linear,
        reference=sparse_linear_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
        exact=False,
    )
)
INT8_SPARSE_LINEAR = register(
    OpSpec(
        name="int8_sparse_linear",
        overload=torch.ops.pqk.int8_sparse_linear.default,
        function=int8_sparse_linear,
        reference=int8_sparse_linear_reference,
        samples=_int8_samples,
        opcheck_samples=_int8_overload_samples,
    )
)
