"""Interleaved rounds and the interval of a median."""

from __future__ import annotations

import random
import statistics

import pytest

from pqk_ext.timing import interleaved, median_interval


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = [lambda name=name: order.append(name) for name in "abc"]
    seconds = interleaved(calls, 4)
    assert [len(times) for times in seconds] == [4] * 3
    assert all(time > 0 for times in seconds for time in times)
    turns = [name for previous, name in zip(["", *order], order, strict=False) if name != previous]
    assert turns == list("abc") * 5  # a warm-up and four rounds


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    source = random.Random(1)
    hits = 0
    for _ in range(60):
        low, high = median_interval([source.gauss(10, 1) for _ in range(25)])
        hits += low <= 10 <= high
    assert 52 <= hits <= 60


def test_the_interval_is_the_same_for_the_same_values_and_narrows_with_more() -> None:
    source = random.Random(2)
    values = [source.gauss(0, 1) for _ in range(400)]
    assert median_interval(values) == median_interval(values)
    few, many = median_interval(values[:20]), median_interval(values)
    assert many[1] - many[0] < 0.5 * (few[1] - few[0])
    assert many[0] <= statistics.median(values) <= many[1]
    assert median_interval([3.0]) == (3.0, 3.0)


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one number, got none"):
        median_interval([])
