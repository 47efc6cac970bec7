"""Student's quantiles against printed tables and against simulation; pairs by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pqk_ext.compare.statistics import paired_difference, spread, t_quantile


@pytest.mark.parametrize(
    ("probability", "degrees", "value"),
    [
        (0.975, 1, 12.7062047),
        (0.975, 2, 4.30265273),
        (0.975, 3, 3.18244631),
        (0.975, 4, 2.77644511),
        (0.975, 9, 2.26215716),
        (0.975, 30, 2.04227246),
        (0.995, 5, 4.03214298),
        (0.95, 10, 1.81246112),
        (0.975, 1000, 1.96233908),
        (0.5, 7, 0.0),
    ],
)
def test_quantiles_of_tables(probability: float, degrees: int, value: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(value, rel=1e-8, abs=1e-12)


def test_intervals_hold_the_mean_in_95_of_100_samples() -> None:
    draws = np.random.default_rng(0).normal(0.3, 2.0, size=(4000, 5))
    zeros = [0.0] * 5
    found = [paired_difference(list(draw), zeros) for draw in draws]
    inside = sum(f.low <= 0.3 <= f.high for f in found if f.low is not None and f.high is not None)
    assert inside / len(found) == pytest.approx(0.95, abs=0.011)  # three standard deviations


def test_a_pair_by_hand() -> None:
    found = paired_difference([3.0, 5.0, 4.0], [1.0, 5.0, 5.0])
    assert (found.mean, found.n, found.better, found.worse) == (pytest.approx(1 / 3), 3, 1, 1)
    half = 4.302652729749464 * math.sqrt(7 / 3) / math.sqrt(3)
    assert found.low == pytest.approx(1 / 3 - half)
    assert found.high == pytest.approx(1 / 3 + half)


def test_a_single_value_has_no_deviation() -> None:
    assert spread([2.5]).sd is None
    found = paired_difference([2.0], [1.0])
    assert (found.mean, found.low, found.high, found.better) == (1.0, None, None, 1)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="values: expected at least one"):
        spread([])
    with pytest.raises(ValueError, match="second: expected 2 values"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="probability"):
        t_quantile(0.3, 4)
    with pytest.raises(ValueError, match="degrees"):
        t_quantile(0.9, 0)
