"""Rounding to multiples of one step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqk_ext.codebook._registry import Codebook, checked, codebook_method, from_cuts

__all__ = ["uniform"]

_GROWTH = 1.002  # of the step, from one that is tried to the next
_FEW = (
    4096  # values, up to which counting points of the grid over all of them is faster than walking from point to point
)

_Float64 = NDArray[np.float64]
_Int64 = NDArray[np.int64]


@codebook_method
def uniform(values: Tensor, k: int, generator: torch.Generator | None = None) -> Codebook:
    """Rounds each value to a grid of the smallest step that leaves at most k different values (UQ).

    Deterministic. As in Choi, El-Khamy and Lee, "Universal deep neural network compression" (2020), without its random
    shift: the grid is the multiples of the step, or these shifted by half a step, whichever has the smaller squared
    error. Steps are tried upward by 0.2 % from a lower bound, which is that k intervals of one step's length, put
    anywhere, must hold all values. Empty stretches use up no value, so that pruned weights, whose survivors lie away
    from 0, get a finer step. One value far out makes the step coarse for all.

    Args:
        values: floating-point ``(N,)``, finite.
        k: largest number of shared values, 2..256; where there are no more different values, those are kept.
        generator: ignored.

    Raises:
        ValueError: an argument of the wrong kind, or a value that is not finite.
    """
    array = checked(values, k)
    order = np.argsort(array, kind="stable")
    ordered = array[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-np.inf))
    if len(first) <= k:
        return from_cuts(order, np.append(first, len(ordered)), ordered[first])
    lower_bound = _shortest_cover(ordered, k)
    candidates = [_finest(ordered, lower_bound, k, shift) for shift in (0.0, 0.5)]
    return from_cuts(order, *min(candidates, key=lambda cells: _squared_error(ordered, *cells)))


def _finest(ordered: _Float64, step: float, k: int, shift: float) -> tuple[_Int64, _Float64]:
    while True:
        few = len(ordered) > _FEW or np.count_nonzero(np.diff(np.floor(ordered / step + 0.5 - shift))) < k
        cells = _cells(ordered, step, k, shift) if few else None
        if cells is not None:
            return cells
        step *= _GROWTH


def _cells(ordered: _Float64, step: float, k: int, shift: float) -> tuple[_Int64, _Float64] | None:
    """Where the values of one point of the grid begin and end, and these points; None if there are more than ``k``."""
    cuts: list[int] = [0]
    points: list[float] = []
    while cuts[-1] < len(ordered):
        if len(points) == k:
            return None
        index = np.floor(ordered[cuts[-1]] / step + 0.5 - shift)
        points.append(float((index + shift) * step))
        end = int(np.searchsorted(ordered, (index + shift + 0.5) * step))
        cuts.append(max(end, cuts[-1] + 1))
    return np.array(cuts), np.array(points)


def _squared_error(ordered: _Float64, cuts: _Int64, points: _Float64) -> float:
    return float(np.sum((ordered - np.repeat(points, np.diff(cuts))) ** 2))


def _shortest_cover(ordered: _Float64, k: int) -> float:
    """A length just above which k intervals of it, put anywhere, hold all values; by bisection."""
    low, high = 0.0, float(ordered[-1] - ordered[0]) / k
    for _ in range(40):
        middle = (low + high) / 2
        position = 0
        for _ in range(k):
            position = int(np.searchsorted(ordered, ordered[position] + middle, side="right"))
            if position == len(ordered):
                break
        low, high = (low, middle) if position == len(ordered) else (middle, high)
    return high
