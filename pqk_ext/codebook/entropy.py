"""Centroids chosen for both error and coded size."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqk_ext.codebook._registry import Codebook, checked, codebook_method, from_cuts

__all__ = ["entropy"]

_ROUNDS = 300
_TOLERANCE = 1e-6  # relative improvement of the objective below which the iteration ends
_BISECTIONS = 24
_STRONGEST = 100.0  # weight of the rate, in variances per bit, at which everything is one cell

_Float64 = NDArray[np.float64]
_Int64 = NDArray[np.int64]


@codebook_method
def entropy(
    values: Tensor, k: int, generator: torch.Generator | None = None, *, rate_weight: float | None = None
) -> Codebook:
    """Least squared error plus ``rate_weight`` times the bits of an ideal code (ECSQ).

    Deterministic. Entropy-constrained scalar quantization (Chou, Lookabaugh and Gray, 1989; for networks Choi, El-Khamy
    and Lee, 2017): from 3 k cells of equal count, values go to the cell of least ``(v - c)^2 - rate_weight * log2(p)``,
    c becomes the mean and p the share of its cell, and empty cells are dropped, until the objective stands still.
    Beyond the survey, neighbouring cells that cost less as one are put together, and 3 k cells of equal length are
    tried too: iterations never divide a cell, and the best cells are of nearly equal length. (The survey's code also
    takes the absolute error.) At equal k, error is larger and entropy lower than those of k-means; at equal entropy the
    error is smaller. With k of 2 or 3 it may spend a centroid on a few values far out.

    Args:
        values: floating-point ``(N,)``, finite.
        k: largest number of centroids, 2..256.
        generator: ignored.
        rate_weight: squared error that a bit is worth; by default it is found by bisection, as the smallest that leaves
            no more than k centroids. With a given one that leaves more, ValueError.

    Raises:
        ValueError: an argument of the wrong kind, or a value that is not finite.
    """
    array = checked(values, k)
    if rate_weight is not None and not 0 <= rate_weight < float("inf"):
        raise ValueError(f"rate_weight: expected a number of at least 0, got {rate_weight}")
    order = np.argsort(array, kind="stable")
    ordered = array[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-np.inf))
    if len(array) == 0 or (len(first) <= k and rate_weight is None):
        return from_cuts(order, np.append(first, len(ordered)), ordered[first])
    problem = _Problem(ordered, 3 * k)
    if rate_weight is None:
        cuts = _largest_fit(problem, k)
    else:
        cuts = problem.solve(rate_weight)
        if len(cuts) - 1 > k:
            raise ValueError(
                f"rate_weight: expected one that leaves at most k = {k} centroids, got {rate_weight}, which leaves "
                f"{len(cuts) - 1}"
            )
    return from_cuts(order, cuts, np.add.reduceat(ordered, cuts[:-1]) / np.diff(cuts))


def _largest_fit(problem: _Problem, k: int) -> _Int64:
    """The cells of the smallest weight of the rate that gives no more than k of them."""
    high = np.log(_STRONGEST * problem.variance)
    low = high - np.log(1e15)
    # Values far out may keep cells of their own even then.
    best = problem.merged(problem.solve(float(np.exp(high))), k)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        cuts = problem.solve(float(np.exp(middle)))
        if len(cuts) - 1 > k:
            low = middle
            continue
        high = middle
        if len(cuts) >= len(best):
            best = cuts
    return best


class _Problem:
    """Sorted values and their running sums; a solution is the cuts between cells."""

    def __init__(self, ordered: _Float64, cells: int) -> None:
        self.ordered = ordered
        self.centre = float(ordered.mean())
        centred = ordered - self.centre
        self.variance = float(np.mean(centred**2))
        self.sums = np.concatenate([[0.0], np.cumsum(centred)])
        self.squares = np.concatenate([[0.0], np.cumsum(centred**2)])
        equal_counts = ordered[np.arange(cells) * len(ordered) // cells]
        equal_lengths = np.linspace(ordered[0], ordered[-1], cells, endpoint=False)
        ends = [0, len(ordered)]
        # Equal values stay together.
        self.starts = [np.unique(np.append(ends, np.searchsorted(ordered, at))) for at in (equal_counts, equal_lengths)]

    def means(self, cuts: _Int64) -> _Float64:
        result: _Float64 = np.diff(self.sums[cuts]) / np.diff(cuts) + self.centre
        return result

    def objective(self, cuts: _Int64, rate_weight: float) -> float:
        """Mean squared error plus ``rate_weight`` times the entropy in bits."""
        counts = np.diff(cuts)
        error = np.sum(np.diff(self.squares[cuts]) - np.diff(self.sums[cuts]) ** 2 / counts)
        shares = counts / len(self.ordered)
        return float(error / len(self.ordered) - rate_weight * np.sum(shares * np.log2(shares)))

    def solve(self, rate_weight: float) -> _Int64:
        """Cuts at which moving values and moving centroids no longer helps; the best of all starts."""
        found = [self.descended(start, rate_weight) for start in self.starts]
        return min(found, key=lambda cuts: self.objective(cuts, rate_weight))

    def descended(self, cuts: _Int64, rate_weight: float) -> _Int64:
        """Where the iteration ends that begins at ``cuts``."""
        before = np.inf
        for _ in range(_ROUNDS):
            now = self.objective(cuts, rate_weight)
            if before - now <= _TOLERANCE * abs(now):
                break
            before, cuts = now, self.improved(self.joined(cuts, rate_weight), rate_weight)
        return cuts

    def merged(self, cuts: _Int64, k: int) -> _Int64:
        """Neighbouring cells put together, those of least additional error first, until there are ``k``."""
        while len(cuts) - 1 > k:
            cuts = np.delete(cuts, int(np.argmin(self.rise(cuts))) + 1)
        return cuts

    def rise(self, cuts: _Int64) -> _Float64:
        """How much the mean squared error rises when two neighbouring cells become one."""
        counts = np.diff(cuts) / len(self.ordered)
        result: _Float64 = np.diff(self.means(cuts)) ** 2 * counts[:-1] * counts[1:] / (counts[:-1] + counts[1:])
        return result

    def joined(self, cuts: _Int64, rate_weight: float) -> _Int64:
        """Cells put together with a neighbour where that lowers the objective, and more than with the other one."""
        shares = np.diff(cuts) / len(self.ordered)
        both = shares[:-1] + shares[1:]
        bits = shares * np.log2(shares)
        change = self.rise(cuts) + rate_weight * (bits[:-1] + bits[1:] - both * np.log2(both))
        around = np.concatenate([[np.inf], change, [np.inf]])
        joined = (change < 0) & (change <= around[:-2]) & (change < around[2:])
        return np.delete(cuts, np.flatnonzero(joined) + 1)

    def improved(self, cuts: _Int64, rate_weight: float) -> _Int64:
        """One round: each value to the cell that costs least, given the cells' means and shares."""
        means = self.means(cuts)
        penalty = -rate_weight * np.log2(np.diff(cuts) / len(self.ordered))
        borders = _lower_envelope(means, penalty)
        inner = np.searchsorted(self.ordered, borders)
        return np.unique(np.concatenate([[0], inner, [len(self.ordered)]]))


def _lower_envelope(means: _Float64, penalty: _Float64) -> _Float64:
    """Where one cell's cost ``(v - mean)^2 + penalty`` takes over from another's as the least, ascending in v.

    A cell whose neighbours meet before its own stretch begins is least nowhere, and is dropped; that may expose others.
    """
    while True:
        with np.errstate(over="ignore"):  # infinite where means of huge values coincide
            rise = np.diff(penalty) / np.maximum(np.diff(means), 1e-300)
        borders: _Float64 = (means[:-1] + means[1:] + rise) / 2
        keep = np.ones(len(means), bool)
        keep[1:-1] = borders[1:] > borders[:-1]
        if keep.all():
            return borders
        means, penalty = means[keep], penalty[keep]
