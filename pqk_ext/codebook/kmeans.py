"""Clustering: centroids of least squared error."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqk_ext.codebook._registry import Codebook, checked, codebook_method, from_cuts

__all__ = ["kmeans"]

_EXACT = 2048  # different values up to which the optimum is found
_ROUNDS = 300

_Float64 = NDArray[np.float64]
_Int64 = NDArray[np.int64]


@codebook_method
def kmeans(values: Tensor, k: int, generator: torch.Generator | None = None) -> Codebook:
    """The k-means of the values: weight sharing by clustering (CWS; Han, Mao and Dally, "Deep Compression", 2016).

    Deterministic. For up to 2,048 different values the result is the optimum (dynamic programming over the sorted
    values; Wang and Song, "Ckmeans.1d.dp", R Journal 2011). For more, the optimum of 2,048 groups of equal size is
    improved by Lloyd's iterations over all values, to a local optimum.

    Args:
        values: floating-point ``(N,)``, finite.
        k: largest number of centroids, 2..256; where there are no more different values, those are the centroids.
        generator: ignored.

    Raises:
        ValueError: an argument of the wrong kind, or a value that is not finite.
    """
    array = checked(values, k)
    order = np.argsort(array, kind="stable")
    ordered = array[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-np.inf))
    starts = first
    if len(first) > _EXACT:
        starts = np.arange(_EXACT) * len(ordered) // _EXACT
    counts = np.diff(starts, append=len(ordered))
    if len(starts) <= k:
        return from_cuts(order, np.append(starts, len(ordered)), ordered[starts])
    means = np.add.reduceat(ordered, starts) / counts
    best = _optimal_cuts(means, counts.astype(np.float64), k)
    cuts = np.append(starts, len(ordered))[best]
    if len(first) > _EXACT:
        cuts = _lloyd(ordered, cuts)
    return from_cuts(order, cuts, _means(ordered, cuts))


def _means(ordered: _Float64, cuts: _Int64) -> _Float64:
    result: _Float64 = np.add.reduceat(ordered, cuts[:-1]) / np.diff(cuts)
    return result


def _lloyd(ordered: _Float64, cuts: _Int64) -> _Int64:
    """Cuts between clusters, moved until each value belongs to the nearest mean."""
    total = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(_ROUNDS):
        means = np.diff(total[cuts]) / np.diff(cuts)
        between = np.searchsorted(ordered, (means[:-1] + means[1:]) / 2)
        moved = np.unique(np.concatenate([[0], between, [len(ordered)]]))
        if np.array_equal(moved, cuts):
            break
        cuts = moved
    return cuts


class _Costs:
    """Squared error of any run of sorted weighted points around its mean."""

    def __init__(self, points: _Float64, weights: _Float64) -> None:
        centred = points - np.average(points, weights=weights)
        sums = [np.cumsum(term) for term in (weights, weights * centred, weights * centred**2)]
        self.weight, self.first, self.second = (np.concatenate([[0.0], term]) for term in sums)

    def __call__(self, start: _Int64, end: _Int64) -> _Float64:
        """Of the points from ``start`` to before ``end``, element by element; no run may be empty."""
        first = self.first[end] - self.first[start]
        result: _Float64 = self.second[end] - self.second[start] - first**2 / (self.weight[end] - self.weight[start])
        return result


def _optimal_cuts(points: _Float64, weights: _Float64, k: int) -> _Int64:
    """The k + 1 ends of the k runs of least total cost."""
    count = len(points)
    cost = _Costs(points, weights)
    best = np.full(count + 1, np.inf)  # [j]: least cost of the first j points in as many runs as done so far
    best[1:] = cost(np.zeros(count, np.int64), np.arange(1, count + 1))
    last_starts = []
    for runs in range(2, k + 1):
        best, last_start = _one_run_more(best, cost, runs)
        last_starts.append(last_start)
    cuts = [count]
    for last_start in reversed(last_starts):
        cuts.append(int(last_start[cuts[-1]]))
    return np.array([*cuts, 0][::-1], np.int64)


def _one_run_more(best: _Float64, cost: _Costs, runs: int) -> tuple[_Float64, _Int64]:
    """Least costs with one run more, and where that last run starts.

    The start does not decrease with the end: a start is searched between those of ends already done, first for far
    apart ends, then for those half way between them, all of a level at once.
    """
    count = len(best) - 1
    result = np.full(count + 1, np.inf)
    start = np.full(count + 1, runs - 1, np.int64)
    half = (1 << count.bit_length()) // 2
    while half:
        ends = np.arange(half, count + 1, 2 * half)
        ends = ends[ends >= runs]
        low, beyond = start[ends - half], ends + half
        high = np.where(beyond <= count, start[np.minimum(beyond, count)], count - 1)
        high = np.maximum(np.minimum(high, ends - 1), low)
        half //= 2
        if len(ends) == 0:
            continue
        lengths = high - low + 1
        offsets = np.cumsum(lengths) - lengths
        candidates = np.arange(int(lengths.sum())) - np.repeat(offsets - low, lengths)
        totals = best[candidates] + cost(candidates, np.repeat(ends, lengths))
        result[ends] = np.minimum.reduceat(totals, offsets)
        equal = np.flatnonzero(totals == np.repeat(result[ends], lengths))
        start[ends] = candidates[equal[np.searchsorted(equal, offsets)]]
    return result, start
