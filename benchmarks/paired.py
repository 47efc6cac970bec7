"""Compares callables on a machine that others use too.

Alternatives run in interleaved rounds, so that a slow moment hits all of them. The result is the median of the
per-round ratios with a bootstrap 95 % interval, beside the minima, and the share of the machine's own copy speed.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Paired:
    """Two callables timed in the same rounds.

    Attributes:
        name: what was compared.
        subject_us: fastest call of the subject, microseconds.
        baseline_us: fastest call of the baseline.
        ratio: median over the rounds of baseline time / subject time; above 1 the subject is faster.
        ratio_low: lower end of the 95 % interval of that median (bootstrap over rounds).
        ratio_high: upper end.
        rounds: number of rounds.
        copy_share: time of copying the bytes that the subject must move / subject_us, or None; 1 is the roof.
    """

    name: str
    subject_us: float
    baseline_us: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    copy_share: float | None = None

    def __str__(self) -> str:
        share = "" if self.copy_share is None else f", {self.copy_share:.0%} of copy speed"
        return (
            f"{self.name}: {self.subject_us:.1f} us against {self.baseline_us:.1f} us (minima), median ratio "
            f"{self.ratio:.2f} [{self.ratio_low:.2f}, {self.ratio_high:.2f}] over {self.rounds} rounds{share}"
        )


def _calls_a_round(function: Callable[[], Any], seconds: float) -> int:
    start = time.perf_counter()
    function()
    once = max(time.perf_counter() - start, 1e-7)
    return max(1, int(seconds / once))


def _mean_call(function: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def median_interval(values: list[float], resamples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the median; the same for the same values."""
    draws = np.random.default_rng(0).choice(np.asarray(values), size=(resamples, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def copy_us(nbytes: int, rounds: int = 20) -> float:
    """Fastest copy that reads and writes ``nbytes`` in total, in microseconds."""
    source = np.ones(max(1, nbytes // 2), dtype=np.uint8)
    target = np.zeros_like(source)
    calls = _calls_a_round(lambda: np.copyto(target, source), 1e-3)
    return min(_mean_call(lambda: np.copyto(target, source), calls) for _ in range(rounds)) * 1e6


def compare(
    name: str,
    subject: Callable[[], Any],
    baseline: Callable[[], Any],
    *,
    rounds: int = 40,
    seconds_a_round: float = 0.005,
    bytes_moved: int | None = None,
) -> Paired:
    """Times ``subject`` and ``baseline`` in turn, each about ``seconds_a_round`` a round.

    Args:
        name: label of the result.
        subject: call without arguments.
        baseline: the same work done by a peer.
        rounds: pairs of timings; their order alternates.
        seconds_a_round: how long each runs in a round; at least one call.
        bytes_moved: what the subject must read and write at least, for ``copy_share``.
    """
    for function in (subject, baseline):
        function()
    calls = {f: _calls_a_round(f, seconds_a_round) for f in (subject, baseline)}
    copied = None if bytes_moved is None else copy_us(bytes_moved)
    return interleaved(name, subject, baseline, lambda f: _mean_call(f, calls[f]) * 1e6, rounds, copied)


def interleaved(
    name: str,
    subject: Callable[[], Any],
    baseline: Callable[[], Any],
    call_us: Callable[[Callable[[], Any]], float],
    rounds: int,
    copied_us: float | None,
) -> Paired:
    """Rounds in alternating order, timed by ``call_us``; ``copied_us`` is the roof."""
    times: dict[Callable[[], Any], list[float]] = {subject: [], baseline: []}
    for index in range(rounds):
        for function in (subject, baseline) if index % 2 == 0 else (baseline, subject):
            times[function].append(call_us(function))
    ratios = [theirs / ours for ours, theirs in zip(times[subject], times[baseline], strict=True)]
    low, high = median_interval(ratios)
    best = min(times[subject])
    return Paired(
        name=name,
        subject_us=best,
        baseline_us=min(times[baseline]),
        ratio=statistics.median(ratios),
        ratio_low=low,
        ratio_high=high,
        rounds=rounds,
        copy_share=None if copied_us is None else copied_us / best,
    )


def machine() -> dict[str, Any]:
    """What the timings were taken on."""
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {"cpu": model, "logical_cpus": os.cpu_count(), "load_average": os.getloadavg()[0]}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def write_results(stem: str, results: list[Paired], **context: Any) -> Path:
    """Writes ``benchmarks/results/<stem>.json``; returns its path."""
    path = RESULTS / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), **context, "results": [asdict(result) for result in results]}
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def merge_results(stem: str, section: str, entries: dict[str, Any], **context: Any) -> Path:
    """Puts ``entries`` into a section of ``benchmarks/results/<stem>.json``, beside those that it has.

    Args:
        stem: name of the file.
        section: key of the document whose value takes the entries; one of the same name is replaced.
        entries: name -> result.
        context: further values of the document, replaced too.

    Returns:
        The path. The file is replaced in one step, so that ending the run leaves a whole one.
    """
    path = RESULTS / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = json.loads(path.read_text()) if path.exists() else {}
    document |= {"machine": machine(), **context}
    document.setdefault(section, {}).update(entries)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=2) + "\n")
    partial.replace(path)
    return path
