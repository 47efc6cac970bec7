"""float32 to 8-bit codes and back (`csrc/core/quantize_cpu.cpp`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pqk_ext.ops._spec import OpSpec, Sample, layouts, register

__all__ = ["dequantize", "quantize"]


def quantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
) -> Tensor:
    """``clamp(rint(input * (1 / scale)) + zero_point, quant_min, quant_max)``, half to even.

    Args:
        input: float32, any shape and strides; a NaN is an error.
        scale: float32, positive; shape ``[1]`` or ``[]`` per tensor, ``[input.shape[axis]]`` per channel.
        zero_point: int32, as many elements as ``scale``.
        quant_min: smallest code. Negative gives int8 codes, otherwise uint8.
        quant_max: largest code.
        axis: channel dimension, or None for per tensor.

    Returns:
        Codes of ``input``'s shape, contiguous, int8 or uint8.

    Raises:
        RuntimeError: an argument of the wrong dtype, shape or range, or a NaN; the message names it.
    """
    codes: Tensor = torch.ops.pqk.quantize(input, scale, zero_point, quant_min, quant_max, axis)
    return codes


def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int | None = None) -> Tensor:
    """``(input - zero_point) * scale`` in float32; the inverse of :func:`quantize` up to rounding.

    Args:
        input: int8 or uint8 codes, any shape and strides.
        scale: float32, positive, per tensor or per channel as in :func:`quantize`.
        zero_point: int32, as many elements as ``scale``.
        axis: channel dimension, or None for per tensor.

    Returns:
        float32, contiguous, of ``input``'s shape.
    """
    values: Tensor = torch.ops.pqk.dequantize(input, scale, zero_point, axis)
    return values


@torch.library.register_fake("pqk::quantize")
def _(
    input: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int | None = None
) -> Tensor:
    return input.new_empty(input.shape, dtype=torch.int8 if quant_min < 0 else torch.uint8)


@torch.library.register_fake("pqk::dequantize")
def _(input: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    return input.new_empty(input.shape, dtype=torch.float32)


def _broadcast(channel_values: Tensor, input: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return channel_values.reshape(())
    shape = [1] * input.dim()
    shape[axis] = -1
    return channel_values.reshape(shape)


def quantize_reference(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
) -> Tensor:
    """Plain torch, the same steps in the same precision."""
    inv_scale = _broadcast(torch.ones_like(scale) / scale, input, axis)
    codes = (input * inv_scale).round() + _broadcast(zero_point, input, axis).float()
    return codes.clamp(quant_min, quant_max).to(torch.int8 if quant_min < 0 else torch.uint8)


def dequantize_reference(input: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int | None = None) -> Tensor:
    """Plain torch, the same steps in the same precision."""
    return (input.float() - _broadcast(zero_point, input, axis).float()) * _broadcast(scale, input, axis)


def _quantize_samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for shape in [(3,), (0,), (4, 5), (2, 3, 5, 7), (1, 17, 33, 2)]:
        for input in layouts(torch.randn(shape, generator=generator) * 3):
            yield (
                (input, torch.tensor([0.05]), torch.tensor([7], dtype=torch.int32)),
                {
                    "quant_min": 0,
                    "quant_max": 255,
                },
            )
            for axis in range(-1, input.dim() - 1):
                channels = input.shape[axis]
                scale = torch.rand(channels, generator=generator) + 0.01
                zero_point = torch.randint(-5, 5, (channels,), generator=generator, dtype=torch.int32)
                yield (input, scale, zero_point), {"quant_min": -127, "quant_max": 127, "axis": axis}
    extremes = torch.tensor([torch.inf, -torch.inf, 3e38, -3e38, 0.5, 1.5, 2.5, -0.0, 1e-40])
    yield (
        (extremes, torch.tensor([1.0]), torch.tensor([0], dtype=torch.int32)),
        {"quant_min": -8, "quant_max": 7},
    )


def _dequantize_samples() -> Iterator[Sample]:
    for args, kwargs in _quantize_samples():
        codes = quantize_reference(*args, **kwargs)
        yield (codes, *args[1:]), {"axis": kwargs.get("axis")}


def _overload_samples(samples: Iterator[Sample], names: tuple[str, ...]) -> Iterator[Sample]:
    for args, kwargs in samples:
        yield (*args, *(kwargs.get(name) for name in names)), {}


QUANTIZE = register(
    OpSpec(
        name="quantize",
        overload=torch.ops.pqk.quantize.default,
        function=quantize,
        reference=quantize_reference,
        samples=_quantize_samples,
        opcheck_samples=lambda: _overload_samples(_quantize_samples(), ("quant_min", "quant_max", "axis")),
    )
)
DEQUANTIZE = register(
    OpSpec(
        name="dequantize",
        overload=torch.ops.pqk.dequantize.default,
        function=dequantize,
        reference=dequantize_reference,
        samples=_dequantize_samples,
        opcheck_samples=lambda: _overload_samples(_dequantize_samples(), ("axis",)),
    )
)
