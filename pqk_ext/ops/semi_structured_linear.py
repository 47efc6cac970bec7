"""Integer linear layer from a 2:4 weight, and its compression (`csrc/core/semi_structured_linear.h`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pqk_ext.ops._composite import composite_on_cuda
from pqk_ext.ops._int8 import epilogue_arguments, sample_constants
from pqk_ext.ops._spec import OpSpec, Sample, layouts, register
from pqk_ext.ops.int8_linear import int8_linear_reference

__all__ = ["int8_semi_structured_linear", "semi_structured_compress"]


def semi_structured_compress(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Half of a weight of which each four neighbours of a row have at most two non-zeros, and which half it is.

    2:4 is the pattern of sparse tensor cores (Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021). The
    format is the same on every device: little-endian words of ``indices`` are the metadata of ``mma.sp`` in the order
    of rows and columns. To say what does not fit, a call on CUDA waits for the device.

    Args:
        weight: int8 ``(O, I)``, I a multiple of 4, any strides.

    Returns:
        ``values``, int8 ``(O, I / 2)``: of each four neighbours two, in their order, all non-zeros among them and the
        first zeros where there are fewer; and ``indices``, uint8 ``(O, ceil(I / 8))``: which of its four each value is,
        two bits each, the first of a row in bits 0 and 1 of its first byte. What remains of the last byte is 0.

    Raises:
        RuntimeError: a wrong dtype or shape, or more than two non-zeros; the message names row and columns.
    """
    values, indices = torch.ops.pqk.semi_structured_compress(weight)
    return values, indices


def int8_semi_structured_linear(
    input: Tensor,
    values: Tensor,
    indices: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    *,
    input_zero_point: int,
    quant_min: int = 0,
    quant_max: int = 255,
    residual: Tensor | None = None,
    residual_multiplier: float = 1.0,
    residual_zero_point: int = 0,
    float_output: bool = False,
) -> Tensor:
    """:func:`int8_linear` with a compressed 2:4 weight: the same bits as with the dense one.

    On CUDA sparse tensor cores multiply the half that is kept. Up to 32 rows of input on the CPU, the weight is made
    dense a few rows at a time in a core's cache; for more, once a call. CUDA kernels read in_features in multiples of
    128: another weight is copied to working memory in each call.

    Args:
        input: uint8 codes ``(..., I)``, any strides, I a multiple of 4.
        values: int8 ``(O, I / 2)``, of :func:`semi_structured_compress`.
        indices: uint8 ``(O, ceil(I / 8))``, likewise. Of each two the first must be smaller: checked on the CPU; on
            CUDA, where looking would stop the stream, what others give is of no meaning.
        multiplier: float32 ``(O,)``, finite: input scale * weight scale / output scale.
        bias: float32 ``(O,)``, finite, in units of the output codes, output zero point included.
        input_zero_point: the code of real zero, 0 to 255.
        quant_min: smallest output code, 0 to 255.
        quant_max: largest output code, 0 to 255.
        residual: uint8 codes of the output's shape to add, or None.
        residual_multiplier: residual scale / output scale.
        residual_zero_point: the residual's code of real zero.
        float_output: give the float32 value before rounding and clamping.

    Returns:
        ``(..., O)``, contiguous, uint8 or float32.

    Raises:
        RuntimeError: an argument of the wrong dtype, shape or range, or more than 65,793 values in a row (their sum
            could overflow int32); the message names it.
    """
    output: Tensor = torch.ops.pqk.int8_semi_structured_linear(
        input,
        values,
        indices,
        multiplier,
        bias,
        input_zero_point,
        quant_min,
        quant_max,
        residual,
        residual_multiplier,
        residual_zero_point,
        float_output,
    )
    return output


@torch.library.register_fake("pqk::semi_structured_compress")
def _(weight: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = weight.shape
    return weight.new_empty(rows, columns // 2), weight.new_empty(rows, (columns + 7) // 8, dtype=torch.uint8)


@torch.library.register_fake("pqk::int8_semi_structured_linear")
def _(
    input: Tensor,
    values: Tensor,
    indices: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    input_zero_point: int,
    quant_min: int,
    quant_max: int,
    residual: Tensor | None,
    residual_multiplier: float,
    residual_zero_point: int,
    float_output: bool,
) -> Tensor:
    dtype = torch.float32 if float_output else torch.uint8
    return input.new_empty((*input.shape[:-1], values.shape[0]), dtype=dtype)


def compress_in_torch(weight: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`semi_structured_compress` by torch's operators, on any device."""
    op = "pqk::semi_structured_compress"
    if weight.dtype != torch.int8:
        raise RuntimeError(f"{op}: weight must be Char, got {weight.dtype}")
    if weight.dim() != 2 or weight.shape[1] % 4:
        raise RuntimeError(f"{op}: weight must have shape [O, I], I a multiple of 4, got {list(weight.shape)}")
    groups = weight.reshape(weight.shape[0], weight.shape[1] // 4, 4)
    is_zero = groups == 0
    wrong = (is_zero.sum(-1) < 2).nonzero()
    if len(wrong):
        row, group = wrong[0].tolist()
        raise RuntimeError(
            f"{op}: weight must have at most 2 non-zeros in each 4 neighbours of a row, got more in row {row}, "
            f"columns {4 * group} to {4 * group + 3}"
        )
    places = is_zero.to(torch.uint8).argsort(dim=-1, stable=True)[..., :2].sort(dim=-1).values
    halves = places[..., 0] | places[..., 1] << 2
    halves = torch.nn.functional.pad(halves, (0, halves.shape[1] % 2))
    indices = halves[:, 0::2] | halves[:, 1::2] << 4
    return groups.gather(-1, places).flatten(1), indices.to(torch.uint8)


composite_on_cuda("pqk::semi_structured_compress")(compress_in_torch)


def expanded(values: Tensor, indices: Tensor) -> Tensor:
    """The dense weight of a compressed one, by torch's operators."""
    rows, kept = values.shape
    shifts = torch.arange(0, 8, 2, device=indices.device)
    places = (indices.long()[..., None] >> shifts & 3).flatten(1)[:, :kept]
    dense = values.new_zeros(rows, kept // 2, 4)
    return dense.scatter(-1, places.reshape(rows, kept // 2, 2), values.reshape(rows, kept // 2, 2)).flatten(1)


def int8_semi_structured_linear_reference(
    input: Tensor, values: Tensor, indices: Tensor, multiplier: Tensor, bias: Tensor, **kwargs: Any
) -> Tensor:
    """Plain torch through the dense weight; sums in float64, which holds them exactly."""
    return int8_linear_reference(input, expanded(values, indices), multiplier, bias, **kwargs)


def sample_weight(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A random 2:4 weight ``(rows, columns)`` with all codes; a part of its groups has fewer than two non-zeros."""
    weight = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
    order = torch.rand(rows, columns // 4, 4, generator=generator).argsort(-1)
    fewer = torch.rand(rows, columns, generator=generator) < 0.2
    return weight.masked_fill((order >= 2).flatten(1) | fewer, 0)


def _compress_samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in [(3, 4), (2, 8), (0, 12), (5, 0), (17, 60), (40, 256)]:
        for view in layouts(sample_weight(rows, columns, generator)):
            yield (view,), {}
    yield (torch.zeros(2, 16, dtype=torch.int8),), {}


def _sample(
    generator: torch.Generator, shape: tuple[int, ...], out_features: int, with_residual: bool = False, **kwargs: Any
) -> Sample:
    input = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    weight = sample_weight(out_features, shape[-1], generator)
    zero_point = int(torch.randint(0, 256, (1,), generator=generator))
    constants = sample_constants(weight, zero_point, generator)
    if with_residual:
        residual_shape = (*shape[:-1], out_features)
        kwargs["residual"] = torch.randint(0, 256, residual_shape, generator=generator, dtype=torch.uint8)
        kwargs |= {"residual_multiplier": 0.37, "residual_zero_point": 121}
    return (input, *compress_in_torch(weight), *constants), {"input_zero_point": zero_point, **kwargs}


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    yield _sample(generator, (3, 4), 5)
    yield _sample(generator, (64,), 10, float_output=True)
    yield _sample(generator, (0, 8), 3)
    yield _sample(generator, (2, 3, 36), 17, with_residual=True)
    yield _sample(generator, (13, 128), 65, quant_min=3, quant_max=201, with_residual=True)
    yield _sample(generator, (70, 132), 33, with_residual=True)
    (input, *constants), kwargs = _sample(generator, (9, 20), 32)
    for layout in layouts(input):
        yield (layout, *constants), kwargs


def _opcheck_samples() -> Iterator[Sample]:
    for args, kwargs in _samples():
        yield (*args, *epilogue_arguments(kwargs)), {}


SEMI_STRUCTURED_COMPRESS = register(
    OpSpec(
        name="semi_structured_compress",
        overload=torch.ops.pqk.semi_structured_compress.default,
        function=semi_structured_compress,
        reference=compress_in_torch,
        samples=_compress_samples,
        opcheck_samples=_compress_samples,
    )
)
INT8_SEMI_STRUCTURED_LINEAR = register(
    OpSpec(
        name="int8_semi_structured_linear",
        overload=torch.ops.pqk.int8_semi_structured_linear.default,
        function=int8_semi_structured_linear,
        reference=int8_semi_structured_linear_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
    )
)
