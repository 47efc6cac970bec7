"""Figures of merit of a quantization."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["code_counts", "entropy_bits", "sqnr_db"]


def sqnr_db(signal: Tensor, approximation: Tensor) -> float:
    """Signal-to-quantization-noise ratio: ``10 log10(sum(signal^2) / sum((signal - approximation)^2))``.

    Args:
        signal: the exact values, float, any shape.
        approximation: what stands for them; the same shape.

    Returns:
        Decibels; 6 dB are about one bit. ``inf`` where nothing is lost, NaN where a value is not finite.

    Raises:
        ValueError: shapes that differ.
    """
    if signal.shape != approximation.shape:
        raise ValueError(
            f"approximation: expected the signal's shape {tuple(signal.shape)}, got {tuple(approximation.shape)}"
        )
    noise = float(torch.linalg.vector_norm(signal.detach() - approximation.detach()))
    power = float(torch.linalg.vector_norm(signal.detach()))
    if noise == 0:
        return math.inf
    if power == 0:
        return -math.inf
    return 20 * math.log10(power / noise) if math.isfinite(power) and math.isfinite(noise) else math.nan


def code_counts(codes: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """How often each code from ``quant_min`` to ``quant_max`` occurs.

    Args:
        codes: whole numbers in that range, any dtype and shape; those outside and NaN are not counted.

    Returns:
        int64 of shape ``(quant_max - quant_min + 1,)``.
    """
    count = quant_max - quant_min + 1
    shifted = codes.flatten().to(torch.int32) - quant_min
    if shifted.numel():
        low, high = torch.aminmax(shifted)
        if low < 0 or high >= count:
            shifted = shifted[(shifted >= 0) & (shifted < count)]
    return torch.bincount(shifted, minlength=count)


def entropy_bits(counts: Tensor) -> float:
    """Entropy of single codes in bits, given how often each occurs; 0 where there are none."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    shares = counts[counts > 0].double() / total
    return abs(float(-(shares * shares.log2()).sum()))  # abs: one code alone gives -0
