"""Choice of quantization ranges: where a scale starts before training learns it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SMALLEST_SCALE", "activation_range", "per_channel_scale", "range_to_qparams"]

SMALLEST_SCALE = 1e-8  # keeps 1 / scale and products of two scales normal float32 numbers

_CANDIDATES = 40
_SMALLEST_SHRINK = 0.2
# The largest weight of a row may be one of few bits, whose codes reach half as far as others: hence up to 2.
_GRID_FACTORS = [factor / 40 for factor in range(80, 7, -1)]


def _shrinks(device: torch.device) -> Tensor:
    return torch.linspace(1.0, _SMALLEST_SHRINK, _CANDIDATES, device=device)


def per_channel_scale(weight: Tensor, mask: Tensor, quant_max: int | Tensor, step: Tensor | None = None) -> Tensor:
    """Symmetric scale of each output channel with the least squared rounding error over the unmasked weights.

    Args:
        weight: float, shape ``(O, ...)``.
        mask: bool, the same shape; False entries are left out.
        quant_max: largest code; the smallest is ``-quant_max``. A tensor of the weight's shape: of each weight.
        step: float32, the weight's shape: codes are multiples of it, ``-quant_max * step`` to ``quant_max * step``.

    Returns:
        float32 of shape ``(O,)``, at least :data:`SMALLEST_SCALE`.
    """
    rows = (weight.detach() * mask).flatten(1).float()
    largest = rows.abs().amax(1, keepdim=True)
    if isinstance(quant_max, Tensor):
        return _grid_scale(rows, largest, quant_max.flatten(1), torch.ones(()) if step is None else step.flatten(1))
    best_error = torch.full_like(largest, torch.inf)
    best_scale = largest / quant_max
    for shrink in _shrinks(weight.device):
        scale = (largest * shrink / quant_max).clamp_min(SMALLEST_SCALE)
        codes = (rows / scale).round().clamp(-quant_max, quant_max)
        error = (codes * scale - rows).square().sum(1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale.squeeze(1).clamp_min(SMALLEST_SCALE)


def _grid_scale(rows: Tensor, largest: Tensor, quant_max: Tensor, step: Tensor) -> Tensor:
    """As :func:`per_channel_scale`, where the codes of a row are not all alike."""
    reach = (quant_max * step).amax(1, keepdim=True)
    best_error = torch.full_like(largest, torch.inf)
    best_scale = largest / reach
    for factor in _GRID_FACTORS:
        scale = (largest * factor / reach).clamp_min(SMALLEST_SCALE)
        codes = torch.clamp((rows / scale / step).round(), -quant_max, quant_max) * step
        error = (codes * scale - rows).square().sum(1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale.squeeze(1).clamp_min(SMALLEST_SCALE)


def range_to_qparams(low: float, high: float, quant_max: int) -> tuple[float, int]:
    """Scale and zero point of codes ``0..quant_max`` that cover ``[low, high]`` and hold 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / quant_max, SMALLEST_SCALE)
    zero_point = round(-low / scale)
    return scale, min(max(zero_point, 0), quant_max)


def activation_range(samples: Tensor, quant_max: int) -> tuple[float, float]:
    """The range ``[low, high]`` around 0 with the least squared error of 8-bit (or fewer) affine codes.

    Args:
        samples: float, any shape, finite.
        quant_max: largest code; the smallest is 0.

    Returns:
        ``low <= 0 <= high``. All-zero samples give ``(0, 0)``.
    """
    values = samples.detach().flatten().float()
    full_low = min(float(values.min()), 0.0)
    full_high = max(float(values.max()), 0.0)
    shrinks = _shrinks(values.device)
    scale = ((full_high - full_low) * shrinks / quant_max).clamp_min(SMALLEST_SCALE)[:, None]
    zero_point = (-full_low * shrinks[:, None] / scale).round()
    codes = ((values / scale).round() + zero_point).clamp(0, quant_max)
    error = ((codes - zero_point) * scale - values).square().sum(1)
    best = float(shrinks[error.argmin()])
    return full_low * best, full_high * best
