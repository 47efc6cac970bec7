"""How few bits weights can take: order-0 entropy, split into where the non-zeros are and what they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bound", "bound", "entropy"]


def _bits(counts: NDArray[np.integer[Any]]) -> float:
    """Total bits of an ideal code for symbols that occur so often."""
    counts = counts[counts > 0]
    total = int(counts.sum())
    return float(-(counts * np.log2(counts / max(1, total))).sum()) + 0.0


def _counts(values: NDArray[Any]) -> NDArray[np.integer[Any]]:
    if values.dtype.itemsize == 1:
        return np.bincount(values.reshape(-1).view(np.uint8), minlength=256)
    return np.unique(values + values.dtype.type(0), return_counts=True)[1]  # -0.0 + 0.0 is 0.0


def entropy(values: NDArray[Any]) -> float:
    """Order-0 entropy in bits an element, 0 for no element: the least mean length of a code of single values.

    Args:
        values: array of any shape and numeric dtype; -0.0 and 0.0 are one symbol.
    """
    return _bits(_counts(values)) / values.size if values.size else 0.0


@dataclass(frozen=True)
class Bound:
    """The least bits for an array of weights whose positions and values say nothing about each other.

    ``mask`` + ``values`` is the order-0 entropy of the array times its size, since
    H(w) = H(w is 0) + P(w is not 0) H(w | w is not 0). It contains no table: a decoder that does not know the shares
    of the symbols needs more.

    Attributes:
        mask: bits for the positions of the non-zeros.
        values: bits for the non-zeros.
    """

    mask: float
    values: float

    @property
    def bits(self) -> float:
        """Both together."""
        return self.mask + self.values


def bound(values: NDArray[Any]) -> Bound:
    """Entropy bound of an array.

    Args:
        values: as for :func:`entropy`.
    """
    nonzeros = values[values != 0]
    mask = _bits(np.array([nonzeros.size, math.prod(values.shape) - nonzeros.size]))
    return Bound(mask, _bits(_counts(nonzeros)))
