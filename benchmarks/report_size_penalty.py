"""The table of `benchmarks/results/size_penalty.json`: bytes and accuracy of each arm, beside the usual recipe."""

from __future__ import annotations

import math
import statistics
from typing import Any

from markdown import Document, table

_BASE = "8 bits, default"


def section(document: Document) -> list[str]:
    runs = list(document["runs"].values())
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    by_arm = {arm: {run["seed"]: run for run in runs if run["arm"] == arm} for arm in arms}
    base = by_arm[_BASE]
    rows = [_row(arm, by_arm[arm], base) for arm in sorted(arms, key=lambda arm: -_mean(by_arm[arm], "weights"))]
    header = ["", "seeds", "coded weights", f"against {_BASE}", "their entropy", "file", "accuracy", "points"]
    return [*table(header, rows), "", _note(runs)]


def _mean(runs: dict[int, Any], key: str) -> float:
    return statistics.fmean(run[key] for run in runs.values())


def _row(arm: str, runs: dict[int, Any], base: dict[int, Any]) -> list[str]:
    weights = _mean(runs, "weights")
    return [
        arm,
        f"{len(runs)}",
        f"{weights:,.0f} B",
        f"{weights / _mean(base, 'weights') - 1:+.0%}" if runs is not base else "",
        f"{_mean(runs, 'entropy'):,.0f} B",
        f"{_mean(runs, 'file'):,.0f} B",
        f"{_mean(runs, 'accuracy'):.1%}",
        _points(runs, base) if runs is not base else "",
    ]


def _points(runs: dict[int, Any], base: dict[int, Any]) -> str:
    """Mean of the differences seed by seed, and its standard error where there are seeds enough."""
    points = [100 * (runs[seed]["accuracy"] - base[seed]["accuracy"]) for seed in runs.keys() & base.keys()]
    if not points:
        return ""
    mean = f"{statistics.fmean(points):+.1f}"
    return f"{mean} \u00b1 {statistics.stdev(points) / math.sqrt(len(points)):.1f}" if len(points) > 2 else mean


def _note(runs: list[Any]) -> str:
    steps = sorted({run["steps"] for run in runs})
    return (
        f"{', '.join(map(str, steps))} steps a run. Points: accuracy less that of {_BASE}, mean over the seeds; its "
        "standard error where there are three. The penalty is in loss per kB; the rate is `step_size_lr_factor`, 0.1 "
        "where none is named."
    )
