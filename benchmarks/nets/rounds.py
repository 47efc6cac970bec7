"""Who is fastest on one case: all peers briefly, then the best of them and ours in many interleaved rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from paired import median_interval

QUICK_ROUNDS, ROUNDS, MOST_ROUNDS = 5, 15, 60
NEAR = 1.15  # peers this close to the best of the quick rounds go on beside it
FINALISTS = 3
HOPELESS = 2.0  # peers this much slower than the best are timed in one round only
LONG = 0.05  # seconds: such a call tells its time at once


class Timed(Protocol):
    def seconds(self, calls: int) -> float: ...


@dataclass
class Times:
    """Seconds of one call, one entry a round."""

    calls: int = 1
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def _run_round(engines: Mapping[str, Timed], times: dict[str, Times], index: int) -> None:
    """One block of calls each; the order turns from round to round."""
    names = list(engines)
    turn = index % len(names)
    for name in names[turn:] + names[:turn]:
        calls = times[name].calls
        times[name].seconds.append(engines[name].seconds(calls) / calls)


def quick(engines: Mapping[str, Timed], seconds_a_round: float) -> dict[str, Times]:
    """A few interleaved rounds of every engine, each called at least once before."""
    times = {}
    for name, engine in engines.items():
        once = engine.seconds(1)
        if once < LONG:
            once = min(engine.seconds(1), engine.seconds(1))
        times[name] = Times(max(1, int(seconds_a_round / max(once, 1e-7))), [])
    for index in range(QUICK_ROUNDS):
        best = min((t.median for t in times.values() if t.seconds), default=0.0)
        hopeful = {n: e for n, e in engines.items() if index < 1 or times[n].median < HOPELESS * best}
        _run_round(hopeful, times, index)
    return times


def finalists(times: Mapping[str, Times]) -> list[str]:
    """The fastest, and those near it."""
    least = {name: min(t.seconds) for name, t in times.items()}  # few rounds: a median would still be noisy
    order = sorted(least, key=lambda name: least[name])
    return [name for name in order[:FINALISTS] if least[name] <= NEAR * least[order[0]]]


@dataclass(frozen=True)
class Outcome:
    """Ours against the best peer.

    Attributes:
        ours: our times in the final rounds.
        peers: times of every peer: those of the final rounds where it was in them, otherwise of the quick ones.
        best: the fastest peer by median.
        ratio: median over the rounds of its time / our time, with the 95 % interval.
    """

    ours: Times
    peers: dict[str, Times]
    best: str
    ratio: float
    interval: tuple[float, float]


def contest(ours: Timed, peers: Mapping[str, Timed], *, seconds_a_round: float, seconds: float) -> Outcome:
    """Times all of it; at least `ROUNDS` final rounds, more while `seconds` last."""
    preliminary = quick(peers, seconds_a_round)
    chosen = finalists(preliminary)
    engines: dict[str, Timed] = {"pqk": ours, **{name: peers[name] for name in chosen}}
    times = quick({"pqk": ours}, seconds_a_round) | {name: Times(preliminary[name].calls) for name in chosen}
    times["pqk"].seconds.clear()
    until = time.perf_counter() + seconds
    index = 0
    while index < ROUNDS or (index < MOST_ROUNDS and time.perf_counter() < until):
        _run_round(engines, times, index)
        index += 1
    best = min(chosen, key=lambda name: times[name].median)
    ratios = [theirs / our for our, theirs in zip(times["pqk"].seconds, times[best].seconds, strict=True)]
    peer_times = preliminary | {name: times[name] for name in chosen}
    return Outcome(times["pqk"], peer_times, best, statistics.median(ratios), median_interval(ratios))
