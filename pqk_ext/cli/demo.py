"""``pqk demo``: a trained network compressed, written, run without torch and compared, in a few minutes."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pqk_ext.cli.failures import ExitCode, Failure
from pqk_ext.cli.options import DeviceName, Force, JsonPath
from pqk_ext.cli.output import check_json, check_output, emit, kilobytes, progress_bar, table
from pqk_ext.cli.train_recipe import check_device

if TYPE_CHECKING:
    from rich.table import Table

    from pqk_ext.demo import Recipe

_TITLES = {
    "float": "float, fine-tuned",
    "int8": "8 bits after training",
    "prune_quantize": "pruned + quantized",
    "pqk": "PQK",
}


def demo(
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs; accuracies are their mean.")] = 1,
    sparsity: Annotated[float | None, typer.Option("--sparsity", help="Share of zero weights, in [0, 1).")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=2, help="Optimizer steps of each arm.")] = None,
    device: DeviceName = "cpu",
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Keep the .pqk files of the first seed there.")
    ] = None,
    force: Force = False,
    json: JsonPath = None,
) -> None:
    """Compress MLPerf Tiny's keyword-spotting network on data inside the package.

    Three arms of equal length: float; pruned and quantized; PQK. The compressed ones run without torch, in a process
    of their own, on the test fold.
    """
    check_json(json)
    check_device(device)
    if output is not None:
        _check_folder(output, force=force)
    from pqk_ext.demo import Recipe
    from pqk_ext.training import keep_freed_memory

    keep_freed_memory()
    chosen = {"sparsity": sparsity, "steps": steps}
    recipe = Recipe(**{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]
    recipe.config(teacher=True)  # refuses a sparsity out of range before any work
    started = time.perf_counter()
    with _folder(output) as folder:
        values = _measure(recipe, seeds, folder, device)
    values["seconds"] = time.perf_counter() - started
    emit(values, json, _table(values), _notes(values))


def _measure(recipe: Recipe, seeds: int, folder: Path, device: str) -> dict[str, Any]:
    from pqk_ext import demo

    with progress_bar() as bar:
        task = bar.add_task("training", total=seeds * len(demo.ARMS) * recipe.steps)

        def on_step(arm: str, seed: int) -> None:
            bar.update(task, advance=1, description=f"seed {seed}: {_TITLES[arm]}")

        return demo.measure(recipe, range(seeds), folder, on_step, device)


@contextlib.contextmanager
def _folder(output: Path | None) -> Iterator[Path]:
    if output is not None:
        output.mkdir(exist_ok=True)
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="pqk-demo-") as name:
        yield Path(name)


def _check_folder(output: Path, *, force: bool) -> None:
    if output.exists() and not output.is_dir():
        raise Failure(ExitCode.ENVIRONMENT, f"{output}: exists and is no directory")
    if output.is_dir() and any(output.iterdir()) and not force:
        raise Failure(ExitCode.ENVIRONMENT, f"{output}: is not empty; --force writes into it")
    check_output(output / "x" if output.is_dir() else output.parent / "x", force=True)


def _table(values: dict[str, Any]) -> Table:
    arms = values["arms"]
    base = arms["float"]
    rows = []
    for name, title in _TITLES.items():
        arm = arms[name]
        rows.append(
            (
                title,
                f"{arm['accuracy']:.2%}",
                f"{100 * (arm['accuracy'] - base['accuracy']):+.2f}" if name != "float" else "",
                f"{arm['sparsity']:.1%}",
                f"{arm['zeros']:.1%}",
                kilobytes(arm["bytes"]),
                f"{base['bytes'] / arm['bytes']:.1f}x",
                f"{arm['latency_us']:.0f}",
                f"{base['latency_us'] / arm['latency_us']:.1f}x",
            )
        )
    columns = ("arm", ">test accuracy", ">points", ">pruned", ">zeros", ">bytes", ">smaller", ">us/clip", ">faster")
    return table(f"DS-CNN, keyword spotting, {values['sparsity']:.0%} sparsity, 8 bits", columns, rows)


def _notes(values: dict[str, Any]) -> str:
    sizes, parity = values["reference_bytes"], values["parity"]
    return (
        f"pruned: share of the prunable weights (first and pointwise convolutions); zeros: of all weights\n"
        f"bytes: float32 weights {kilobytes(sizes['float32'])}, gzip'd {kilobytes(sizes['float32_gzip'])}, dense int8 "
        f"weights {kilobytes(sizes['int8'])}; for a .pqk the whole file\n"
        f"latency: batch 1, one thread; float is torch eager, the others the runtime; medians of interleaved rounds\n"
        f"start: {values['start_accuracy']:.2%} on the test fold before any fine-tuning\n"
        f"parity: {parity['samples']} samples run from the files without torch, {parity['different']} differ from "
        f"evaluation in training in any bit\n"
        f"{values['seeds']} seed{'s' if values['seeds'] > 1 else ''}, {values['steps']} steps an arm, "
        f"{values['seconds']:.0f} s"
    )
