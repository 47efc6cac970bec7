"""How long calls take on a machine that does other things too. Needs neither torch nor the native code."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

__all__ = ["interleaved"]

_WARM_UP_SECONDS = 0.2
_ROUND_SECONDS = 0.02


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
