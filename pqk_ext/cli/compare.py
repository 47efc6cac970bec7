"""``pqk compare``: several methods, several seeds, in parallel processes, as one table."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pqk_ext.cli.failures import ExitCode, Failure
from pqk_ext.cli.options import JsonPath
from pqk_ext.cli.output import check_json, emit, progress_bar, table
from pqk_ext.cli.train_recipe import check_device

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from pqk_ext.compare import Experiment
    from pqk_ext.compare.cells import Cell
    from pqk_ext.compare.processes import Ended


# Columns of the table on a terminal of 80 characters; the others stand in summary.md.
_SHOWN = ("", "seeds", "test", "bytes", "effective MACs", "latency", "time")


def compare(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory of cells and results; goes on in it.")],
    experiment: Annotated[
        Path | None, typer.Argument(metavar="[EXPERIMENT.yaml]", help="Arms, seeds and pairs; or use --methods.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="LIST", help="Recipes, such as pqk,pqk:pqk.teacher=false,rco."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="In place of the file's; else 5.")] = None,
    budget: Annotated[int | None, typer.Option("--budget", min=1, help="Steps of each arm that is not free.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="In place of the recipes'; '$NAME' in quotes stays so in the results."
        ),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of all arms; may be repeated.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="Where all cells train: cpu, cuda or cuda:N.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Cells at a time, each with one thread.")] = 1,
    run: Annotated[
        bool, typer.Option("--run/--no-run", help="--no-run: only tables of the cells that are done.")
    ] = True,
    json: JsonPath = None,
) -> None:
    """Compare methods at equal steps with equal seeds: means, deviations, paired differences.

    Stopped at any time, the same command goes on. Writes summary.json, summary.md and pareto.svg into DIR (the picture
    needs matplotlib, as pqk report does). Ends with 1 if a cell failed; the others are done all the same.
    """
    check_json(json)
    from pqk_ext.compare import run_experiment

    chosen = _read(experiment, methods, seeds).changed(
        seeds=seeds, overrides=_overrides(changes, data), budget=budget, device=device
    )
    if run:
        check_device(chosen.device)
    try:
        with progress_bar() as bar:
            shown = _Shown(bar)
            summary = run_experiment(
                chosen, out, jobs=jobs, run=run, on_plan=shown.plan, on_start=shown.start, on_end=shown.end
            )
    except (KeyboardInterrupt, SystemExit):
        print(f"pqk: stopped; this goes on with it: pqk {shlex.join(context.obj)}", file=sys.stderr)
        raise
    failed = [cell for cell in summary["cells"] if cell["state"] == "failed"]
    done = sum(cell["state"] == "done" for cell in summary["cells"])
    emit(summary, json, *_tables(summary), f"{out / 'summary.md'}: {done} of {len(summary['cells'])} cells")
    if failed:
        raise Failure(ExitCode.FAILED, f"{len(failed)} of {len(summary['cells'])} cells failed: {_listed(failed)}")


def _read(experiment: Path | None, methods: str | None, seeds: int | None) -> Experiment:
    from pqk_ext.compare import from_methods, read_experiment

    if (experiment is None) == (methods is None):
        raise Failure(ExitCode.USAGE, "expected either EXPERIMENT.yaml or --methods")
    if experiment is None:
        return from_methods(str(methods).split(","), seeds=seeds or 5)
    try:
        return read_experiment(experiment)
    except OSError as error:
        raise Failure(ExitCode.USAGE, f"{experiment}: cannot read: {error.strerror}") from error


def _overrides(changes: list[str] | None, data: str | None) -> dict[str, Any]:
    from pqk_ext.methods.recipe import parse_change

    values = dict(map(parse_change, changes or []))
    return values if data is None else values | {"data": data}


class _Shown:
    """Progress: a bar on a terminal, a line a cell elsewhere."""

    def __init__(self, bar: Progress) -> None:
        self.bar, self.task, self.running, self.left = bar, bar.add_task("cells", total=None), list[str](), 0

    def plan(self, cells: list[Cell], waiting: list[Cell]) -> None:
        self.left = len(waiting)
        self.bar.update(self.task, total=len(cells), completed=len(cells) - len(waiting))
        if waiting and len(waiting) < len(cells):
            self._say(f"{len(cells) - len(waiting)} of {len(cells)} cells are done already")

    def start(self, cell: Cell) -> None:
        self.running.append(cell.name)
        self._describe()

    def end(self, ended: Ended) -> None:
        self.left -= 1
        self.running.remove(ended.cell.name)
        self.bar.advance(self.task)
        self._describe()
        if ended.error is not None:
            self._say(f"{ended.cell.name}: failed: {ended.error} (see {ended.cell.log})")
            return
        networks = ended.cell.result()["networks"].items()
        figures = "; ".join(
            f"{name} {found['test_accuracy']:.2%}, {found['bytes']:,} bytes" for name, found in networks
        )
        self._say(f"{ended.cell.name}: {figures}, {ended.seconds:.0f} s, {self.left} to go")

    def _describe(self) -> None:
        self.bar.update(self.task, description="; ".join(self.running) or "latency")

    def _say(self, text: str) -> None:
        if self.bar.disable:
            print(f"pqk: {text}", file=sys.stderr, flush=True)
        else:
            self.bar.console.print(text, markup=False, highlight=False)


def _listed(failed: list[dict[str, Any]]) -> str:
    return "; ".join(f"{cell['arm']}, seed {cell['seed']}: {cell['error']}" for cell in failed)


def _tables(summary: dict[str, Any]) -> list[Table]:
    from pqk_ext.compare.tables import pair_cells, row_cells

    header, rows = row_cells(summary)
    kept = [i for i, name in enumerate(header) if name in _SHOWN]
    columns = [header[i] if i == 0 else f">{header[i]}" for i in kept]
    shown = [table(summary["title"], columns, [[row[i] for i in kept] for row in rows])]
    header, rows = pair_cells(summary)
    if rows:
        title = "test accuracy, first minus second, points, 95 % interval"
        shown.append(table(title, [header[0], *(f">{name}" for name in header[1:])], rows))
    return shown
