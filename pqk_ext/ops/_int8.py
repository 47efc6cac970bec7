"""What the integer convolution and linear ops share: their reference epilogue and their sample constants."""

from __future__ import annotations

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


def sample_constants(weight: Tensor, input_zero_point: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``multiplier`` (of both signs) and ``bias`` that spread random codes over the whole output range."""
    channels = weight.shape[0]
    spread = 74.0 * weight.double().reshape(channels, -1).square().sum(1).sqrt().clamp(min=1.0)
    mean = (127.5 - input_zero_point) * weight.double().reshape(channels, -1).sum(1)
    sign = torch.randint(0, 2, (channels,), generator=generator) * 2 - 1
    multiplier = (sign * 50.0 / spread).float()
    return multiplier, (128.0 - mean * multiplier).float()
