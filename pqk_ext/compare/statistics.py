"""Means, deviations, and differences of pairs with Student's interval. Needs nothing but the standard library."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

__all__ = ["Difference", "Spread", "paired_difference", "spread", "t_quantile"]

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a sample.

    Attributes:
        mean: of the values.
        sd: their standard deviation (n - 1 in the denominator), or None for a single value.
        n: how many there are.
    """

    mean: float
    sd: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """First minus second, pair by pair.

    Attributes:
        mean: of the differences.
        low: lower end of the 95 % interval of the mean by Student's t, or None for a single pair.
        high: upper end.
        n: pairs.
        better: pairs in which the first is larger.
        worse: pairs in which it is smaller.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    better: int
    worse: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("values: expected at least one number, got none")
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compares two samples whose values belong together in pairs, such as runs with equal seeds.

    Raises:
        ValueError: different lengths, or no values.
    """
    if len(first) != len(second):
        raise ValueError(f"second: expected {len(first)} values, as many as first, got {len(second)}")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    found = spread(differences)
    low = high = None
    if found.sd is not None:
        half = t_quantile((1 + _LEVEL) / 2, found.n - 1) * found.sd / math.sqrt(found.n)
        low, high = found.mean - half, found.mean + half
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return Difference(found.mean, low, high, found.n, better, worse)


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution with an integer number of degrees of freedom.

    Inverts the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4, which are exact, by bisection of the angle.

    Args:
        probability: in [0.5, 1).
        degrees: of freedom, at least 1.

    Raises:
        ValueError: an argument out of its range.
    """
    if not 0.5 <= probability < 1:
        raise ValueError(f"probability: expected 0.5 <= probability < 1, got {probability}")
    if degrees < 1:
        raise ValueError(f"degrees: expected at least 1, got {degrees}")
    wanted = 2 * probability - 1
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < wanted else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _within(theta: float, degrees: int) -> float:
    """Probability that ``|t| < sqrt(degrees) * tan(theta)``."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 if odd else 1, degrees - 2, 2):
        term *= cosine * cosine * k / (k + 1)
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
