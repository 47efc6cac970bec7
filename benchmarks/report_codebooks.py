"""The tables of `benchmarks/results/codebooks.json`: accuracy and bytes of each method of weight sharing."""

from __future__ import annotations

import math
import statistics
from typing import Any

from markdown import Document, folded, table

Runs = dict[str, dict[int, Any]]  # "sparsity/method/k" -> by seed


def section(document: Document) -> list[str]:
    runs: Runs = {}
    for key, run in document["runs"].items():
        name, seed = key.rsplit("/", 1)
        runs.setdefault(name, {})[int(seed)] = run
    sizes = sorted({int(name.split("/")[2]) for name in runs} - {0})
    lines = [_sentence(runs), "", *_table(runs, sizes[-1])]
    for k in sizes[:-1]:
        lines += ["", *folded(f"k = {k}", _table(runs, k))]
    return lines


def _table(runs: Runs, k: int) -> list[str]:
    header = ["zeros, method", "accuracy", "points", "before training", "coded weights", "file"]
    rows = [_row(name, runs) for name in runs if name.split("/")[2] in ("0", str(k))]
    return table(header, rows)


def _row(name: str, runs: Runs) -> list[str]:
    sparsity, method, k = name.split("/")
    found = runs[name]
    label = method if k == "0" else f"{method}, k = {k}"
    return [
        f"{float(sparsity):.0%}, {label}",
        f"{_mean(found, 'accuracy'):.1%}",
        "" if name == "0.0/float/0" else _points(found, runs["0.0/float/0"]),
        f"{_mean(found, 'fitted'):.1%}" if k != "0" else "",
        f"{_mean(found, 'weights'):,.0f} B" if method != "float" else "",
        f"{_mean(found, 'file'):,.0f} B" if method != "float" else "",
    ]


def _mean(runs: dict[int, Any], key: str) -> float:
    return statistics.fmean(run[key] for run in runs.values())


def _points(runs: dict[int, Any], base: dict[int, Any]) -> str:
    """Mean of the differences seed by seed, and its standard error where there are seeds enough."""
    points = [100 * (runs[seed]["accuracy"] - base[seed]["accuracy"]) for seed in runs.keys() & base.keys()]
    mean = f"{statistics.fmean(points):+.1f}"
    return f"{mean} ± {statistics.stdev(points) / math.sqrt(len(points)):.1f}" if len(points) > 1 else mean


def _sentence(runs: Runs) -> str:
    seeds = sorted({seed for found in runs.values() for seed in found})
    smaller = total = 0
    for name in runs:
        sparsity, method, k = name.split("/")
        unpruned = runs.get(f"0.0/{method}/{k}")
        if float(sparsity) > 0 and k != "0" and unpruned:
            total += 1
            smaller += _mean(runs[name], "file") < _mean(unpruned, "file")
    return (
        f"Seeds: {len(seeds)}. Points: accuracy less that of the float network, mean over the seeds and its standard "
        "error (that of 1,953 clips is 0.6). int8: the same weights after post-training quantization. Pruned before "
        f"sharing, {smaller} of {total} files are smaller than without pruning."
    )
