"""``pqk train --recipe``: a published system from nothing to measured files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from pqk_ext.cli.failures import ExitCode, Failure
from pqk_ext.cli.output import emit, kilobytes, table

__all__ = ["changes_of", "check_device", "run_recipe"]

# Options of `pqk train` that go with a recipe.
_ALLOWED = ("recipe", "set_", "data", "model", "run_dir", "seed", "device", "resume", "json")


def run_recipe(
    context: typer.Context,
    recipe: str,
    changes: dict[str, Any],
    run_dir: Path,
    seed: int,
    device: str,
    json: str | None,
) -> None:
    """Trains, writes the files into ``run_dir`` and shows what they are."""
    from pqk_ext import methods

    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in _ALLOWED and source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise Failure(ExitCode.USAGE, f"--{option}: not with --recipe; --set training.NAME=VALUE changes a recipe")
    check_device(device)
    try:
        loaded = methods.load_recipe(recipe, changes)
    except OSError as error:
        raise Failure(ExitCode.USAGE, f"--recipe: {recipe}: cannot read: {error.strerror}") from error
    result = methods.run(loaded, run_dir, seed=seed, device=device)
    rows = [
        (
            name,
            f"{network['test_accuracy']:.2%}",
            f"{network['validation_accuracy']:.2%}",
            kilobytes(network["bytes"]),
            f"{network['sparsity']:.1%}",
            run_dir / network["file"],
        )
        for name, network in result["networks"].items()
    ]
    columns = ("network", ">test accuracy", ">validation", ">file", ">zeros", "path")
    emit(result, json, table(f"{loaded.method}, seed {seed}, {result['steps']} steps", columns, rows))


def check_device(device: str) -> None:
    """Refuses a device that cannot be used here, before anything is read or written."""
    from pqk_ext.device import usable_device

    try:
        usable_device(device)
    except (RuntimeError, ValueError) as error:
        raise Failure(ExitCode.USAGE, f"--{error}") from error


def changes_of(settings: list[str], data: str | None, model: str | None) -> dict[str, Any]:
    """What ``--set``, ``--data`` and ``--model`` change in a recipe."""
    from pqk_ext.methods import parse_change

    changes = dict(parse_change(text) for text in settings)
    return changes | {name: value for name, value in (("data", data), ("model", model)) if value is not None}
