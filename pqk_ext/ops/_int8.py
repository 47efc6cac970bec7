"""What the integer convolution and linear ops share: their reference epilogue and their sample constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def requantize_reference(
    accumulator: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    *,
    quant_min: int,
    quant_max: int,
    residual: Tensor | None,
    residual_multiplier: float,
    residual_zero_point: int,
    float_output: bool,
) -> Tensor:
    """The epilogue of ``csrc/core/numerics.h`` in plain torch, every step rounded to float32.

    ``accumulator`` holds exact integers in float64; ``multiplier`` and ``bias`` broadcast against it.
    """
    value = accumulator.float() * multiplier
    if residual is not None:
        factor = torch.tensor(residual_multiplier, dtype=torch.float32)
        value = value + (residual.float() - residual_zero_point) * factor
    value = value + bias
    return value if float_output else value.round().clamp(quant_min, quant_max).to(torch.uint8)


def epilogue_arguments(kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a sample's keywords say of the epilogue, in the order of the ops' schemas, defaults filled in."""
    return (
        kwargs["input_zero_point"],
        kwargs.get("quant_min", 0),
        kwargs.get("quant_max", 255),
        kwargs.get("residual"),
        kwargs.get("residual_multiplier", 1.0),
        kwargs.get("residual_zero_point", 0),
        kwargs.get("float_output", False),
    )


def sample_constants(weight: Tensor, input_zero_point: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``multiplier`` (of both signs) and ``bias`` that spread random codes over the whole output range."""
    channels = weight.shape[0]
    spread = 74.0 * weight.double().flatten(1).square().sum(1).sqrt().clamp(min=1.0)
    mean = (127.5 - input_zero_point) * weight.double().flatten(1).sum(1)
    sign = torch.randint(0, 2, (channels,), generator=generator) * 2 - 1
    multiplier = (sign * 50.0 / spread).float()
    return multiplier, (128.0 - mean * multiplier).float()
