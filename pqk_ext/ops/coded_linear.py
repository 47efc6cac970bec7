"""Integer linear layer whose weight stays coded (`csrc/core/coded_linear.h`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqk_ext import _core
from pqk_ext.ops._int8 import epilogue_arguments, requantize_reference, sample_constants
from pqk_ext.ops._spec import OpSpec, Sample, layouts, register

__all__ = ["coded_linear"]


def coded_linear(
    input: Tensor,
    payload: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    *,
    codec: str,
    input_zero_point: int,
    quant_min: int = 0,
    quant_max: int = 255,
    residual: Tensor | None = None,
    residual_multiplier: float = 1.0,
    residual_zero_point: int = 0,
    float_output: bool = False,
) -> Tensor:
    """:func:`int8_linear` of a weight as it lies in a file: a few rows of it are decoded at a time, used and forgotten.

    The product on the coded form of HAM and sHAM (Marino et al. 2020), with the same bits as :func:`int8_linear` of
    the decoded weight. Threads share the chunks of the payload. The payload is checked in each call, before anything is
    computed.

    On CUDA a warp decodes a chunk's weights in registers and multiplies them there; codecs are ``raw``, ``packed``,
    ``interleaved-huffman`` and ``interleaved-sparse-huffman``. Calls wait for nothing, so that the values of tensors
    cannot be checked: where a payload is not whole outputs are NaN, or ``quant_min``; :func:`decode_weight` tells.

    Args:
        input: uint8 codes ``(..., I)``, any strides.
        payload: uint8 ``(n,)``: the int8 weight ``(O, I)``, coded in ``O`` rows (``FORMAT.md``, "Codecs").
        multiplier: float32 ``(O,)``, finite: input scale * weight scale / output scale.
        bias: float32 ``(O,)``, finite, in units of the output codes, output zero point included.
        codec: of the payload; one whose rows can be decoded by themselves.
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
        RuntimeError: an argument of the wrong dtype, shape or range, more than 65,793 input features, a codec that is
            unknown or cannot be used in parts, or a payload that is no ``(O, I)`` weight; the message names it.
    """
    output: Tensor = torch.ops.pqk.coded_linear(
        input,
        payload,
        multiplier,
        bias,
        codec,
        input_zero_point,
        quant_min,
        quant_max,
        residual,
        residual_multiplier,
        residual_zero_point,
        float_output,
    )
    return output


@torch.library.register_fake("pqk::coded_linear")
def _(
    input: Tensor,
    payload: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    codec: str,
    input_zero_point: int,
    quant_min: int,
    quant_max: int,
    residual: Tensor | None,
    residual_multiplier: float,
    residual_zero_point: int,
    float_output: bool,
) -> Tensor:
    dtype = torch.float32 if float_output else torch.uint8
    return input.new_empty((*input.shape[:-1], multiplier.shape[0]), dtype=dtype)


def decoded(payload: Tensor, codec: str, out_features: int, in_features: int) -> Tensor:
    """The weight of a payload, by the codec's decoder of whole weights."""
    weight = _core.decode_weight(codec, payload.numpy(), out_features * in_features, out_features, "payload")
    return torch.tensor(weight).reshape(out_features, in_features)


def coded_linear_reference(
    input: Tensor,
    payload: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    *,
    codec: str,
    input_zero_point: int,
    quant_min: int = 0,
    quant_max: int = 255,
    residual: Tensor | None = None,
    residual_multiplier: float = 1.0,
    residual_zero_point: int = 0,
    float_output: bool = False,
) -> Tensor:
    """Plain torch on the decoded weight: an integer-valued float64 product, which is exact, and the epilogue."""
    weight = decoded(payload, codec, multiplier.shape[0], input.shape[-1])
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


def sample_weight(
    out_features: int, in_features: int, bits: int, density: float, generator: torch.Generator
) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Random codes of ``bits`` bits, a share of which is not 0."""
    largest = 2 ** (bits - 1) - 1
    weight = torch.randint(-largest, largest + 1, (out_features, in_features), generator=generator)
    kept = torch.rand((out_features, in_features), generator=generator) < density
    return (weight * kept).to(torch.int8).numpy()


def openable_codecs() -> list[str]:
    """Codecs whose rows can be decoded by themselves."""
    return _core.codec_names(openable=True)


def coded(weight: np.ndarray[Any, np.dtype[np.int8]], codec: str) -> Tensor:
    """The payload of a weight ``(O, I)``."""
    return torch.tensor(np.frombuffer(_core.encode_weight(codec, weight.reshape(-1), len(weight)), np.uint8).copy())


def _sample(
    codec: str,
    shape: tuple[int, ...],
    out_features: int,
    generator: torch.Generator,
    density: float = 1.0,
    with_residual: bool = False,
    **kwargs: Any,
) -> Sample:
    input = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    weight = sample_weight(out_features, shape[-1], 4 if density < 1 else 8, density, generator)
    zero_point = int(torch.randint(0, 256, (1,), generator=generator)) if out_features % 2 else 0
    multiplier, bias = sample_constants(torch.tensor(weight), zero_point, generator)
    if with_residual:
        residual_shape = (*shape[:-1], out_features)
        kwargs["residual"] = torch.randint(0, 256, residual_shape, generator=generator, dtype=torch.uint8)
        kwargs |= {"residual_multiplier": 0.37, "residual_zero_point": 121}
    return (input, coded(weight, codec), multiplier, bias), {"codec": codec, "input_zero_point": zero_point, **kwargs}


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for codec in openable_codecs():
        yield _sample(codec, (3, 5), 4, generator)
        yield _sample(codec, (64,), 11, generator, float_output=True)
        yield _sample(codec, (0, 8), 3, generator)
        yield _sample(codec, (2, 3, 33), 17, generator, density=0.3, with_residual=True)
        yield _sample(codec, (13, 128), 165, generator, quant_min=3, quant_max=201, with_residual=True)
        yield _sample(codec, (7, 1), 1, generator, float_output=True, with_residual=True)
        yield _sample(codec, (5, 3000), 37, generator, density=0.1)
        (input, *constants), kwargs = _sample(codec, (9, 20), 32, generator)
        for layout in layouts(input):
            yield (layout, *constants), kwargs


def _opcheck_samples() -> Iterator[Sample]:
    for args, kwargs in _samples():
        yield (
            (
                *args,
                kwargs["codec"],
                *epilogue_arguments(kwargs),
            ),
            {},
        )


CODED_LINEAR = register(
    OpSpec(
        name="coded_linear",
        overload=torch.ops.pqk.coded_linear.default,
        function=coded_linear,
        reference=coded_linear_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
    )
)
