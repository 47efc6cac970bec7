"""What an experiment found: every cell, one row an arm and network, one line a pair."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pqk_ext import __version__, cost
from pqk_ext.compare.cells import Cell
from pqk_ext.compare.experiment import Experiment
from pqk_ext.compare.statistics import paired_difference, spread
from pqk_ext.methods import Recipe

__all__ = ["machine", "summarize"]

# Of each network in a result, and of its file; those that all cells of a row have become columns.
_OF_NETWORK = ("test_accuracy", "validation_accuracy", "bytes", "sparsity")
_OF_FILE = ("macs", "effective_macs", "bit_operations")
_OF_RUN = ("steps", "extra_steps", "seconds")


def summarize(
    experiment: Experiment,
    recipes: Mapping[str, Recipe],
    cells: Sequence[Cell],
    errors: Mapping[Cell, str],
    latencies: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything, as JSON values; says of cells without a result that they are missing or why they failed.

    Args:
        experiment: what was run.
        recipes: of each arm.
        cells: all of it, done or not.
        errors: of cells that failed.
        latencies: measured times, see :mod:`pqk_ext.compare.latency`, or None before that.

    Raises:
        ValueError: a result that is no result, or an arm's or a pair's network that its recipe does not make.
    """
    results = {cell: cell.result() for cell in cells if cell.done}
    rows = _rows(experiment, results, (latencies or {}).get("networks", {}))
    return {
        "title": experiment.title,
        "about": experiment.about,
        "complete": len(results) == len(cells),
        "seeds": experiment.seeds,
        "versions": _versions(),
        "machine": machine(),
        "device": experiment.device,
        "latency": None if latencies is None else {key: latencies[key] for key in ("rounds", "others")},
        "experiment": experiment.to_yaml(),
        "arms": {
            name: {
                "recipe": arm.recipe,
                "set": arm.overrides,
                "network": arm.network,
                "free": arm.free,
                "text": recipes[name].to_dict(),
            }
            for name, arm in experiment.arms.items()
        },
        "rows": list(rows.values()),
        "pairs": _pairs(experiment, rows),
        "cells": [_cell(cell, results.get(cell), errors.get(cell)) for cell in cells],
    }


def _cell(cell: Cell, result: dict[str, Any] | None, error: str | None) -> dict[str, Any]:
    values: dict[str, Any] = {"arm": cell.arm.name, "seed": cell.seed, "command": cell.command}
    if result is not None:
        return values | {"state": "done", "result": {key: value for key, value in result.items() if key != "recipe"}}
    return values | ({"state": "failed", "error": error} if error is not None else {"state": "missing"})


def _rows(
    experiment: Experiment, results: Mapping[Cell, dict[str, Any]], latencies: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Row name -> its figures, arm by arm."""
    rows: dict[str, dict[str, Any]] = {}
    for arm in experiment.arms.values():
        mine = {cell: result for cell, result in results.items() if cell.arm is arm}
        names = list(dict.fromkeys(name for result in mine.values() for name in _measured(result)))
        if arm.network is not None and mine:
            if arm.network not in names:
                raise ValueError(f"arm {arm.name}: network: expected one of {', '.join(names)}, got {arm.network!r}")
            names = [arm.network]
        for name in names:
            row = arm.name if len(names) == 1 else f"{arm.name}/{name}"
            made = {cell: result for cell, result in mine.items() if name in _measured(result)}
            rows[row] = _row(row, name, made, latencies)
    return rows


def _measured(result: Mapping[str, Any]) -> dict[str, Any]:
    """The networks, and what a method says of things without a file of their own, such as an average of networks."""
    return {**result["networks"], **result.get("facts", {}).get("accuracies", {})}


def _row(
    name: str, network: str, made: Mapping[Cell, dict[str, Any]], latencies: Mapping[str, float]
) -> dict[str, Any]:
    values: dict[str, Any] = {"row": name, "arm": next(iter(made)).arm.name, "network": network}
    values["seeds"] = [cell.seed for cell in made]
    networks = [_measured(result)[network] for result in made.values()]
    found_files = zip(made, networks, strict=True)
    files = [cell.directory / found["file"] if "file" in found else None for cell, found in found_files]
    costs = [{} if file is None else _cost(file) for file in files]
    measured = {key: [found.get(key) for found in networks] for key in _OF_NETWORK}
    measured |= {key: [found.get(key) for found in costs] for key in _OF_FILE}
    measured |= {key: [result.get(key) for result in made.values()] for key in _OF_RUN}
    measured["latency_us"] = [latencies.get(str(file)) for file in files]
    for key, figures in measured.items():
        if all(isinstance(figure, int | float) for figure in figures):
            values[key] = dataclasses.asdict(spread(figures)) | {"values": figures}
    values["command"] = next(iter(made)).command
    return values


def _cost(file: Path) -> dict[str, Any]:
    try:
        state = file.stat()
    except OSError:
        return {}  # removed since
    return _measured_cost(str(file), state.st_mtime_ns)


@functools.cache
def _measured_cost(file: str, mtime: int) -> dict[str, Any]:
    return cost.measure(file, rounds=0).to_dict()


def _pairs(experiment: Experiment, rows: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    pairs, arms = [], {row["arm"] for row in rows.values()}
    for first, second in experiment.pairs:
        matching = _matching(first, second, rows)
        if not matching and {name.partition("/")[0] for name in (first, second)} <= arms:
            raise ValueError(f"compare: [{first}, {second}]: expected two of the rows {', '.join(rows)}")
        for one, other in matching:
            seeds = [seed for seed in rows[one]["seeds"] if seed in rows[other]["seeds"]]
            if seeds:
                pairs.append(_pair(rows[one], rows[other], seeds))
    return pairs


def _matching(first: str, second: str, rows: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pair itself, or that of each network which two arms of several networks have in common."""
    if first in rows and second in rows:
        return [(first, second)]
    names = [row.removeprefix(f"{first}/") for row in rows if row.startswith(f"{first}/")]
    if second in rows:
        return [(f"{first}/{name}", second) for name in names]
    if first in rows:
        return [(first, row) for row in rows if row.startswith(f"{second}/")]
    return [(f"{first}/{name}", f"{second}/{name}") for name in names if f"{second}/{name}" in rows]


def _pair(first: Mapping[str, Any], second: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    def of(row: Mapping[str, Any], key: str) -> list[float]:
        return [row[key]["values"][row["seeds"].index(seed)] for seed in seeds]

    values: dict[str, Any] = {"first": first["row"], "second": second["row"], "seeds": list(seeds)}
    for key in ("test_accuracy", "validation_accuracy"):
        if key in first and key in second:
            values[key] = dataclasses.asdict(paired_difference(of(first, key), of(second, key)))
    if "bytes" in first and "bytes" in second:
        values["bytes_ratio"] = sum(of(first, "bytes")) / sum(of(second, "bytes"))
    return values


def _versions() -> dict[str, str]:
    return {
        "pqk_ext": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def machine() -> dict[str, Any]:
    """Processor, and how many of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "logical_cpus": os.cpu_count()}
