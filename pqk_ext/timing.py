"""How long calls take on a machine that does other things too. Needs neither torch nor the native code."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

__all__ = ["interleaved", "median_interval"]

_WARM_UP_SECONDS = 0.2
_ROUND_SECONDS = 0.02
_RESAMPLES = 2000


def interleaved(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds a call of each, one figure a round; all take their turn in every round.

    A round repeats a call for about 20 ms, so that the clock's own cost does not count; how often is found while
    warming up.
    """
    repeats = []
    for call in calls:
        started = time.perf_counter()
        count = 0
        while count < 2 or time.perf_counter() - started < _WARM_UP_SECONDS:
            call()
            count += 1
        repeats.append(max(1, round(_ROUND_SECONDS * count / (time.perf_counter() - started))))
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for times, call, count in zip(seconds, calls, repeats, strict=True):
            started = time.perf_counter()
            for _ in range(count):
                call()
            times.append((time.perf_counter() - started) / count)
    return seconds


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median of independent figures, by the percentile bootstrap; the same for the same values.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("values: expected at least one number, got none")
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return medians[round(0.025 * (_RESAMPLES - 1))], medians[round(0.975 * (_RESAMPLES - 1))]
