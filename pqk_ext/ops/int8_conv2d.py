"""Integer 2-d convolution with fused requantization (`csrc/core/int8_conv2d.h`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pqk_ext.ops._int8 import requantize_reference, sample_constants
from pqk_ext.ops._spec import OpSpec, Sample, layouts, register

__all__ = ["int8_conv2d"]


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _padding(value: int | Sequence[int]) -> list[int]:
    """``[top, left, bottom, right]`` from one, two (height, width) or four numbers."""
    values = _pair(value)
    return values * 2 if len(values) == 2 else values


def int8_conv2d(
    input: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    *,
    input_zero_point: int,
    quant_min: int = 0,
    quant_max: int = 255,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    residual_multiplier: float = 1.0,
    residual_zero_point: int = 0,
    float_output: bool = False,
) -> Tensor:
    """Convolution of uint8 codes with int8 weights, summed exactly and requantized in float32.

    ``acc = sum (input - input_zero_point) * weight`` as an exact int32, padding counting as ``input_zero_point``; the
    output is ``clamp(rint(acc * multiplier[o] + bias[o]), quant_min, quant_max)``, with ``residual`` of
    ``clamp(rint((acc * multiplier[o] + (residual - residual_zero_point) * residual_multiplier) + bias[o]), ...)``.
    Every float32 step is rounded on its own (no fused multiply-add), ``rint`` is half to even, and the result has the
    same bits on every instruction set and for any number of threads. A ReLU is the clamp. The scheme is that of
    Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference"
    (2018), with a float32 multiplier.

    The weights are packed in every call; ``pqk_ext.runtime`` packs them once. On CUDA, weights in channels_last memory
    with a multiple of 16 input channels in a group are read as they are; whether ``multiplier`` and ``bias`` are finite
    is not checked there, as that would stop the stream.

    Args:
        input: uint8 codes ``(N, C, H, W)``, any strides; channels_last is read fastest.
        weight: int8 codes ``(O, C / groups, KH, KW)``.
        multiplier: float32 ``(O,)``, finite: input scale * weight scale / output scale.
        bias: float32 ``(O,)``, finite, in units of the output codes, output zero point included.
        input_zero_point: the code of real zero, 0 to 255.
        quant_min: smallest output code, 0 to 255.
        quant_max: largest output code, 0 to 255.
        stride: one number or ``(height, width)``.
        padding: one number, ``(height, width)`` or ``(top, left, bottom, right)``.
        dilation: one number or ``(height, width)``.
        groups: divides ``C`` and ``O``; ``groups == C`` is a depthwise convolution.
        residual: uint8 codes of the output's shape to add, or None.
        residual_multiplier: residual scale / output scale.
        residual_zero_point: the residual's code of real zero.
        float_output: give the float32 value before rounding and clamping.

    Returns:
        ``(N, O, OH, OW)``, uint8 or float32, in channels_last memory.

    Raises:
        RuntimeError: an argument of the wrong dtype, shape or range, or more than 65,793 weights per output
            channel (their sum could overflow int32); the message names it.
    """
    output: Tensor = torch.ops.pqk.int8_conv2d(
        input,
        weight,
        multiplier,
        bias,
        input_zero_point,
        quant_min,
        quant_max,
        _pair(stride),
        _padding(padding),
        _pair(dilation),
        groups,
        residual,
        residual_multiplier,
        residual_zero_point,
        float_output,
    )
    return output


@torch.library.register_fake("pqk::int8_conv2d")
def _(
    input: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    input_zero_point: int,
    quant_min: int,
    quant_max: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    residual: Tensor | None,
    residual_multiplier: float,
    residual_zero_point: int,
    float_output: bool,
) -> Tensor:
    height, width = (
        (input.shape[2 + i] + padding[i] + padding[2 + i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i]
        + 1
        for i in range(2)
    )
    dtype = torch.float32 if float_output else torch.uint8
    return input.new_empty((input.shape[0], height, width, weight.shape[0]), dtype=dtype).permute(0, 3, 1, 2)


def int8_conv2d_reference(
    input: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    *,
    input_zero_point: int,
    quant_min: int = 0,
    quant_max: int = 255,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    residual_multiplier: float = 1.0,
    residual_zero_point: int = 0,
    float_output: bool = False,
) -> Tensor:
    """Plain torch: an integer-valued float64 convolution, which is exact, and the float32 epilogue."""
    top, left, bottom, right = _padding(padding)
    centred = torch.nn.functional.pad(input.double() - input_zero_point, (left, right, top, bottom))
    accumulator = torch.nn.functional.conv2d(
        centred, weight.double(), stride=_pair(stride), dilation=_pair(dilation), groups=groups
    )
    return requantize_reference(
        accumulator,
        multiplier[:, None, None],
        bias[:, None, None],
        quant_min=quant_min,
        quant_max=quant_max,
        residual=residual,
        residual_multiplier=residual_multiplier,
        residual_zero_point=residual_zero_point,
        float_output=float_output,
    )


def _sample(
    generator: torch.Generator,
    input_shape: tuple[int, int, int, int],
    weight_shape: tuple[int, int, int, int],
    **kwargs: Any,
) -> Sample:
    input = torch.randint(0, 256, input_shape, generator=generator, dtype=torch.uint8)
    weight = torch.randint(-128, 128, weight_shape, generator=generator, dtype=torch.int8)
    zero_point = int(torch.randint(0, 256, (1,), generator=generator))
    multiplier, bias = sample_constants(weight, zero_point, generator)
    if kwargs.pop("with_residual", False):
        arguments = {"input_zero_point": zero_point, **kwargs}
        shape = int8_conv2d_reference(input, weight, multiplier, bias, **arguments).shape
        kwargs["residual"] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        kwargs |= {"residual_multiplier": 0.37, "residual_zero_point": 121}
    return (input, weight, multiplier, bias), {"input_zero_point": zero_point, **kwargs}


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    yield _sample(generator, (2, 3, 5, 7), (4, 3, 3, 3), padding=1)
    yield _sample(generator, (1, 16, 6, 5), (17, 16, 3, 3), padding=1, with_residual=True)
    yield _sample(generator, (2, 5, 7, 6), (10, 5, 2, 3), float_output=True, with_residual=True)
    yield _sample(generator, (0, 3, 5, 5), (2, 3, 3, 3))
    yield _sample(generator, (3, 8, 9, 4), (8, 1, 3, 3), groups=8, padding=1, with_residual=True)
    yield _sample(generator, (1, 6, 8, 8), (8, 3, 3, 1), groups=2, stride=(2, 1), padding=(1, 0), dilation=(2, 1))
    yield _sample(generator, (1, 1, 13, 10), (64, 1, 10, 4), stride=2, padding=(4, 1, 5, 1), quant_min=7)
    yield _sample(generator, (1, 64, 5, 5), (64, 64, 1, 1), quant_max=200)
    (input, *constants), kwargs = _sample(generator, (2, 4, 6, 6), (33, 4, 3, 3), padding=(0, 1, 2, 1))
    for layout in layouts(input):
        yield (layout, *constants), kwargs


_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "residual": None}


def _opcheck_samples() -> Iterator[Sample]:
    for args, kwargs in _samples():
        given = {**_DEFAULTS, **kwargs}
        shape = (_pair(given["stride"]), _padding(given["padding"]), _pair(given["dilation"]), given["groups"])
        yield (
            (
                *args,
                given["input_zero_point"],
                given.get("quant_min", 0),
                given.get("quant_max", 255),
                *shape,
                given["residual"],
                given.get("residual_multiplier", 1.0),
                given.get("residual_zero_point", 0),
                given.get("float_output", False),
            ),
            {},
        )


INT8_CONV2D = register(
    OpSpec(
        name="int8_conv2d",
        overload=torch.ops.pqk.int8_conv2d.default,
        function=int8_conv2d,
        reference=int8_conv2d_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
    )
)
