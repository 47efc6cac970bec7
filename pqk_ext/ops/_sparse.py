"""What the ops with a CSR weight share: dense forms, sample matrices, argument normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def row_indices(crow_indices: Tensor, nnz: int) -> Tensor:
    """The row of every stored value, int64 ``[nnz]``."""
    rows = torch.arange(crow_indices.numel() - 1, device=crow_indices.device)
    return torch.repeat_interleave(rows, crow_indices.diff(), output_size=nnz)


def to_dense(crow_indices: Tensor, col_indices: Tensor, values: Tensor, columns: int) -> Tensor:
    """The ``[rows, columns]`` matrix of valid CSR arrays, in plain torch."""
    dense = values.new_zeros(crow_indices.numel() - 1, columns)
    return dense.index_put((row_indices(crow_indices, values.numel()), col_indices.long()), values)


def from_dense(dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(crow_indices, col_indices, values)`` of the non-zeros of a matrix, in plain torch."""
    rows, columns = dense.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=dense.shape[0])
    crow_indices = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return crow_indices.int(), columns.int(), dense[rows, columns]


def sample_matrix(
    rows: int, columns: int, sparsity: float, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A random CSR matrix; sparsity 0 stores everything, 1 nothing. int8 holds the extremes -128 and 127."""
    if dtype == torch.int8:
        dense = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=dtype)
        dense[dense == 0] = -128
    else:
        dense = torch.randn(rows, columns, generator=generator, dtype=dtype)
    dense[torch.rand(rows, columns, generator=generator) < sparsity] = 0
    return from_dense(dense)


def pair(value: int | Sequence[int]) -> list[int]:
    """``[height, width]`` from one number or two."""
    return [value, value] if isinstance(value, int) else list(value)


def four_sides(padding: int | Sequence[int]) -> list[int]:
    """``[top, left, bottom, right]`` from one number, ``(height, width)`` or all four."""
    sides = pair(padding)
    return sides * 2 if len(sides) == 2 else sides


def conv_output_size(
    input: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> list[int]:
    """Height and width of the output; ``padding`` has four sides."""
    return [
        (input.shape[2 + i] + padding[i] + padding[i + 2] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]


def requantize_reference(
    accumulator: Tensor, multiplier: Tensor, bias: Tensor, quant_min: int, quant_max: int, float_output: bool
) -> Tensor:
    """The epilogue of every integer layer; ``multiplier`` and ``bias`` broadcast against ``accumulator``."""
    real = accumulator.float() * multiplier + bias
    return real if float_output else real.round().clamp(quant_min, quant_max).to(torch.uint8)
