"""An experiment from its cells to its tables, in one directory that it can be stopped in and goes on from."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pqk_ext.compare.cells import Cell, check_recipes, load_recipes, make_cells
from pqk_ext.compare.experiment import Experiment
from pqk_ext.compare.latency import measure_latencies
from pqk_ext.compare.processes import PROGRAM, Ended, run_cells
from pqk_ext.compare.summary import summarize
from pqk_ext.compare.tables import to_markdown
from pqk_ext.runtime.replace import replace_file
from pqk_ext.training.durable import RunLock

__all__ = ["run_experiment"]


def run_experiment(
    experiment: Experiment,
    directory: Path,
    *,
    jobs: int = 1,
    run: bool = True,
    on_plan: Callable[[list[Cell], list[Cell]], None] = lambda cells, waiting: None,
    on_start: Callable[[Cell], None] = lambda cell: None,
    on_end: Callable[[Ended], None] = lambda ended: None,
    program: Sequence[str] = PROGRAM,
) -> dict[str, Any]:
    """Runs what is not done yet, then measures, and writes ``summary.json``, ``summary.md`` and ``pareto.svg``.

    The picture needs matplotlib and is left out without it. The summary is rewritten after each cell, without
    latencies, so that a long experiment can be looked at.

    Args:
        experiment: what to run.
        directory: of its cells and results; made if absent.
        jobs: cells at a time, each in a process with one thread.
        run: run the cells that are not done; otherwise only those that are count.
        on_plan: called first, with all cells and with those that have no result yet.
        on_start: called when a cell begins.
        on_end: called when a cell has ended.
        program: words of a command that gets those of ``pqk train``.

    Returns:
        What ``summary.json`` holds. Cells that failed are in it, with the reason.

    Raises:
        ValueError: a recipe that there is not, arms of unequal cost, or a result that is none.
        ResumeMismatchError: the directory holds cells of other recipes.
        RunLockedError: another process runs an experiment in it.
    """
    recipes = load_recipes(experiment)
    cells = make_cells(experiment, directory)
    directory.mkdir(parents=True, exist_ok=True)
    lock = RunLock(directory)
    try:
        check_recipes(cells, recipes)
        replace_file(directory / "experiment.yaml", experiment.to_yaml().encode())
        errors: dict[Cell, str] = {}

        def write(latencies: dict[str, Any] | None) -> dict[str, Any]:
            summary = summarize(experiment, recipes, cells, errors, latencies)
            picture = _draw(summary, directory / "pareto.svg") if latencies is not None else None
            replace_file(directory / "summary.json", (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
            replace_file(directory / "summary.md", to_markdown(summary, picture).encode())
            return summary

        def ended(process: Ended) -> None:
            if process.error is not None:
                errors[process.cell] = process.error
            write(None)
            on_end(process)

        waiting = [cell for cell in cells if run and not cell.done]
        on_plan(cells, waiting)
        run_cells(waiting, jobs, on_start, ended, program=program)
        return write(measure_latencies(_files(cells), directory / "latency.json"))
    finally:
        lock.release()


def _draw(summary: dict[str, Any], path: Path) -> str | None:
    """Name of the picture, if there is anything to draw and to draw it with."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from pqk_ext.compare.picture import to_svg

    picture = to_svg(summary)
    if picture is None:
        return None
    replace_file(path, picture.encode())
    return path.name


def _files(cells: Sequence[Cell]) -> list[Path]:
    """The networks of all cells that are done."""
    named = [
        cell.directory / network["file"]
        for cell in cells
        if cell.done
        for network in cell.result()["networks"].values()
    ]
    return [path for path in named if path.exists()]
