"""What a weight-sharing method is, and where the methods are listed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqk_ext.registered import enlist

__all__ = ["METHODS", "Codebook", "codebook_method"]

LARGEST = 256  # shared values; what a file can hold


class Codebook(NamedTuple):
    """Values replaced by few shared ones: ``centroids[codes]``.

    Attributes:
        centroids: float32 ``(K,)``, ascending, all different and each used; K is at most the k asked for.
        codes: int64 ``(N,)``, in the order of the values.
    """

    centroids: Tensor
    codes: Tensor


# (values, k, generator) -> codebook
Method = Callable[[Tensor, int, torch.Generator | None], Codebook]

# Name -> function, filled by the decorator below.
METHODS: dict[str, Method] = {}


def codebook_method(function: Method) -> Method:
    """Registers a weight-sharing method under its function's name.

    A method takes a one-dimensional floating-point tensor of N finite values (the weights to be shared, without the
    pruned ones), the largest number k of values to replace them by and a generator, which deterministic methods ignore.

    Raises:
        ValueError: the name is taken.
    """
    return enlist(METHODS, function, "codebook_method")


def checked(values: Tensor, k: int) -> NDArray[np.float64]:
    """The values as float64 numpy, or an error that names the argument."""
    check_k(k)
    if not isinstance(values, Tensor) or values.dim() != 1 or not values.is_floating_point():
        got = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"values: expected a floating-point tensor of one dimension, got {got}")
    result: NDArray[np.float64] = values.detach().cpu().double().numpy()
    if not np.isfinite(result).all():
        at = int(np.flatnonzero(~np.isfinite(result))[0])
        raise ValueError(f"values: expected finite numbers, got {result[at]} at index {at}")
    return result


def check_k(k: int) -> None:
    """Raises ValueError unless k is an integer in 2..256."""
    if isinstance(k, bool) or not isinstance(k, int) or not 2 <= k <= LARGEST:
        raise ValueError(f"k: expected an integer in 2..{LARGEST}, got {k!r}")


def from_codes(centroids: NDArray[np.float64], codes: NDArray[np.int64]) -> Codebook:
    """A codebook of any centroids: rounded to float32, sorted, equal and unused ones dropped."""
    # Adding 0.0 turns -0.0 into 0.0: they must be one symbol.
    rounded = centroids.astype(np.float32) + np.float32(0)
    used = np.bincount(codes, minlength=len(centroids)) > 0
    distinct, position = np.unique(rounded[used], return_inverse=True)
    index = np.zeros(len(centroids), np.int64)
    index[used] = position
    return Codebook(torch.from_numpy(distinct), torch.from_numpy(index[codes]))


def from_cuts(order: NDArray[np.int64], cuts: NDArray[np.int64], centroids: NDArray[np.float64]) -> Codebook:
    """A codebook of intervals: of the values in ascending ``order``, those from ``cuts[i]`` to ``cuts[i + 1]`` share
    ``centroids[i]``."""
    codes = np.empty(len(order), np.int64)
    codes[order] = np.repeat(np.arange(len(centroids)), np.diff(cuts))
    return from_codes(centroids, codes)
