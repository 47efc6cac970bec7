"""What ``pqk train`` leaves in a run directory beside ``fit``'s files, and the network that a run holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqk_ext.cli.failures import ExitCode, Failure, reading
from pqk_ext.cli.output import replace_file

if TYPE_CHECKING:
    from torch import nn

__all__ = ["describe", "make_model", "trained_model"]

_NAME = "run.json"


def describe(run_dir: Path, values: dict[str, Any]) -> None:
    """Writes what the run trains, or compares it with what the directory says already."""
    path = run_dir / _NAME
    if path.exists():
        stored = _read(run_dir)
        different = [
            f"{key} was {stored.get(key)!r}, is {values[key]!r}" for key in values if stored.get(key) != values[key]
        ]
        if different:
            raise Failure(ExitCode.MISMATCH, f"{run_dir}: the run on disk cannot go on: {'; '.join(different)}")
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(ExitCode.ENVIRONMENT, f"{run_dir}: cannot make the directory: {error.strerror}") from error
    replace_file(path, (json.dumps(values, indent=2) + "\n").encode())


def _read(run_dir: Path) -> dict[str, Any]:
    path = run_dir / _NAME
    with reading(path):
        text = path.read_bytes()
    try:
        values = json.loads(text)
        if not isinstance(values["model"], str) or not isinstance(values["options"], dict):
            raise ValueError("model must be a text and options a mapping")
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(ExitCode.BAD_FILE, f"{path}: not a run of pqk train: {error}") from error
    return values  # type: ignore[no-any-return]


def make_model(name: str, options: dict[str, Any]) -> nn.Module:
    """A network of the zoo."""
    from pqk_ext import models

    try:
        return models.create(name, **options)
    except (TypeError, ValueError) as error:
        raise Failure(ExitCode.USAGE, f"--model {name}: {error}") from error


def trained_model(run_dir: Path) -> nn.Module:
    """The network of a run with its best weights, in evaluation mode: a prepared one if the run compresses."""
    from pqk_ext.config import PQKConfig
    from pqk_ext.preparation import prepare

    values = _read(run_dir)
    model = make_model(values["model"], values["options"])
    if values["config"] is not None:
        import torch

        config = PQKConfig.from_dict(values["config"])
        model = prepare(model, config, example_inputs=torch.zeros(1, *values["input_shape"]))
    state = _best_state(run_dir)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise Failure(ExitCode.BAD_FILE, f"{run_dir}: the checkpoint holds another network: {error}") from error
    return model.eval()


def _best_state(run_dir: Path) -> dict[str, Any]:
    """The best weights that the newest whole checkpoint names, or its own if none was validated yet."""
    from pqk_ext.training.checkpoint import CheckpointStore, read_checkpoint
    from pqk_ext.training.errors import CheckpointError

    store = CheckpointStore(run_dir)
    damaged: list[str] = []
    for step in reversed(store.steps("step")):
        try:
            state = read_checkpoint(store.path("step", step))
        except (CheckpointError, OSError) as error:
            damaged.append(str(error))
            continue
        best = state["best"]
        weights: dict[str, Any] = (store.load_best(best["step"]) if best else state)["model"]
        return weights
    raise Failure(ExitCode.BAD_FILE, f"{run_dir}: no whole checkpoint: {'; '.join(damaged) or 'there is none'}")
