"""Probabilistic rounding to quantiles."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pqk_ext.codebook._registry import Codebook, checked, codebook_method, from_codes

__all__ = ["probabilistic"]


@codebook_method
def probabilistic(values: Tensor, k: int, generator: torch.Generator | None = None) -> Codebook:
    """Rounds each value up or down to a quantile, unbiased (PWS; Marino, Ghidoli, Frasca and Malchiodi, 2020).

    The shared values are the quantiles ``i / (k - 1)``, i = 0..k-1, interpolated linearly. A value v between two of
    them, lo and hi, becomes hi with probability ``(v - lo) / (hi - lo)`` and else lo: its expectation is v. The
    quantiles are those of the given values; where weights are pruned, :func:`pqk_ext.share_weights` gives survivors.
    (The authors' code takes quantiles over the zeros too, which leaves few different values at high sparsity.)

    Args:
        values: floating-point ``(N,)``, finite.
        k: largest number of shared values, 2..256.
        generator: of the random draws, on the CPU; torch's global one by default.

    Raises:
        ValueError: an argument of the wrong kind, or a value that is not finite.
    """
    array = checked(values, k)
    if len(array) == 0:
        return from_codes(np.empty(0), np.empty(0, np.int64))
    edges = np.unique(np.quantile(array, np.linspace(0, 1, k)))
    # Interpolation may round past the extremes.
    edges[0], edges[-1] = array.min(), array.max()
    low = np.clip(np.searchsorted(edges, array, side="right") - 1, 0, max(0, len(edges) - 2))
    high = np.minimum(low + 1, len(edges) - 1)
    width = np.where(high > low, edges[high] - edges[low], 1.0)
    up = torch.rand(len(array), generator=generator, dtype=torch.float64).numpy() < (array - edges[low]) / width
    return from_codes(edges, np.where(up, high, low))
