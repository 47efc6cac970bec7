"""Integer linear layer with fused requantization (`csrc/core/int8_conv2d.h`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pqk_ext.ops._int8 import epilogue_arguments, requantize_reference, sample_constants
from pqk_ext.ops._spec import OpSpec, Sample, layouts, register

__all__ = ["int8_linear"]


def int8_linear(
    input: Tensor,
    weight: Tensor,
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
    """Product of uint8 codes with int8 weights, summed exactly and requantized in float32.

    ``acc = sum (input - input_zero_point) * weight[o]``; from there on, and in every promise about bits, as
    :func:`int8_conv2d`.

    Args:
        input: uint8 codes ``(..., I)``, any strides.
        weight: int8 codes ``(O, I)``.
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
        RuntimeError: an argument of the wrong dtype, shape or range, or more than 65,793 input features (their sum
            could overflow int32); the message names it.
    """
    output: Tensor = torch.ops.pqk.int8_linear(
        input,
        weight,
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


@torch.library.register_fake("pqk::int8_linear")
def _(
    input: Tensor,
    weight: Tensor,
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
    return input.new_empty((*input.shape[:-1], weight.shape[0]), dtype=dtype)


def int8_linear_reference(
    input: Tensor,
    weight: Tensor,
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
    """Plain torch: an integer-valued float64 product, which is exact, and the float32 epilogue."""
    accumulator = (input.double() - input_zero_point) @ weight.double().T
    return requantize_reference(
        accumulator,
        multiplier,
        bias,
        quant_min=quant_min,
        quant_max=quant_max,
        residual=residual,
        residual_multiplier=residual_multiplier,
        residual_zero_point=residual_zero_point,
        float_output=float_output,
    )


def _sample(
    generator: torch.Generator, shape: tuple[int, ...], out_features: int, with_residual: bool = False, **kwargs: Any
) -> Sample:
    input = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (out_features, shape[-1]), generator=generator, dtype=torch.int8)
    zero_point = int(torch.randint(0, 256, (1,), generator=generator))
    multiplier, bias = sample_constants(weight, zero_point, generator)
    if with_residual:
        residual_shape = (*shape[:-1], out_features)
        kwargs["residual"] = torch.randint(0, 256, residual_shape, generator=generator, dtype=torch.uint8)
        kwargs |= {"residual_multiplier": 0.37, "residual_zero_point": 121}
    return (input, weight, multiplier, bias), {"input_zero_point": zero_point, **kwargs}


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    yield _sample(generator, (3, 5), 4)
    yield _sample(generator, (64,), 10, float_output=True)
    yield _sample(generator, (0, 8), 3)
    yield _sample(generator, (2, 3, 33), 17, with_residual=True)
    yield _sample(generator, (13, 128), 65, quant_min=3, quant_max=201, with_residual=True)
    yield _sample(generator, (7, 1), 1, float_output=True, with_residual=True)
    (input, *constants), kwargs = _sample(generator, (9, 20), 32)
    for layout in layouts(input):
        yield (layout, *constants), kwargs


def _opcheck_samples() -> Iterator[Sample]:
    for args, kwargs in _samples():
        yield (
            (
                *args,
                *epilogue_arguments(kwargs),
            ),
            {},
        )


INT8_LINEAR = register(
    OpSpec(
        name="int8_linear",
        overload=torch.ops.pqk.int8_linear.default,
        function=int8_linear,
        reference=int8_linear_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
    )
)
