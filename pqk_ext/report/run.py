"""What a run directory holds, finished or not, read without touching it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from pqk_ext.config import PQKConfig
from pqk_ext.diagnostics import ActivationDiagnosis, Agreement, Diagnosis, LayerDiagnosis
from pqk_ext.errors import DataError
from pqk_ext.training.checkpoint import CheckpointStore, read_checkpoint
from pqk_ext.training.errors import CheckpointError

__all__ = ["Run", "read_run"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The contents of a run directory.

    Attributes:
        path: the directory.
        described: ``run.json`` of ``pqk train``; empty for a run of ``fit``.
        metrics: the lines of ``metrics.jsonl``.
        diagnoses: the lines of ``diagnostics.jsonl``.
        facts: settings, data hashes and environment, from the newest whole checkpoint; empty if there is none.
        checkpoint_step: its step, or None.
        best: step, accuracy and loss of the best validation, or None.
        notes: what the checkpoint says of inexact resumes and the like.
        weights: the best weights, or else the newest, by their names in the ``state_dict``; empty without checkpoint.
        weights_step: the step they are of.
        damaged: what could not be read, for people.
    """

    path: Path
    described: dict[str, Any]
    metrics: list[dict[str, Any]]
    diagnoses: list[dict[str, Any]]
    facts: dict[str, Any]
    checkpoint_step: int | None
    best: dict[str, Any] | None
    notes: list[str]
    weights: dict[str, Any]
    weights_step: int | None
    damaged: list[str]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.resolve().name or str(self.path)

    @property
    def config(self) -> dict[str, Any] | None:
        """The settings of PQK, or None for a float run, or one of which nothing is known yet."""
        settings = self.facts.get("settings", {})
        found = {key.removeprefix("config."): value for key, value in settings.items() if key.startswith("config.")}
        return found or self.described.get("config")

    @property
    def step(self) -> int:
        """The last step that the directory knows of."""
        return max([self.checkpoint_step or 0, *(int(line["step"]) for line in self.metrics)])

    @property
    def total_steps(self) -> int | None:
        """The run's length, where known."""
        total = self.facts.get("settings", {}).get("total_steps") or (self.config or {}).get("total_steps")
        return int(total) if isinstance(total, int | float) else None

    @property
    def schedule(self) -> PQKConfig | None:
        """The config that says what happens when; None without PQK, or where the run's length is not known."""
        config, total = self.config, self.total_steps
        if not config or not total:
            return None
        known = {field.name: config[field.name] for field in dataclasses.fields(PQKConfig) if field.name in config}
        return PQKConfig.from_dict(known | {"total_steps": total})

    @property
    def phase2_step(self) -> int | None:
        """Where phase 2 begins; None without PQK or without a phase 2."""
        return self.schedule.phase1_steps if self.schedule and self.schedule.phase2_steps else None

    @property
    def teacher_step(self) -> int | None:
        """Where the teacher inside begins; None without one, or where that is with phase 2."""
        schedule = self.schedule
        if schedule is None or not schedule.teacher or schedule.teacher_start_step == schedule.phase1_steps:
            return None
        return schedule.teacher_start_step

    @property
    def quantized_step(self) -> int | None:
        """Where quantization begins; None without PQK."""
        return self.schedule.float_steps if self.schedule else None

    @property
    def sparse_step(self) -> int | None:
        """Where the final sparsity is reached; None without PQK."""
        return self.schedule.ramp_end_step if self.schedule else None

    @property
    def finished(self) -> bool:
        return self.checkpoint_step is not None and self.checkpoint_step == self.total_steps

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, finite ones only."""
        found = [
            (line["step"], float(line[name]))
            for line in self.metrics
            if isinstance(line.get(name), int | float) and math.isfinite(line[name])
        ]
        return [step for step, _ in found], [value for _, value in found]


def read_run(run_dir: Path) -> Run:
    """Reads a directory of ``fit`` or ``pqk train``. It may be incomplete, and a process may be writing to it.

    Raises:
        DataError: no run, or a file in it that no run writes.
        OSError: a file cannot be read.
    """
    if not run_dir.is_dir():
        raise DataError(run_dir, "a run directory", "a file" if run_dir.exists() else "nothing of that name")
    known = any((run_dir / name).is_file() for name in ("metrics.jsonl", "run.json"))
    if not known and not CheckpointStore(run_dir).steps("step"):
        raise DataError(run_dir, "a run directory (with metrics.jsonl, run.json or checkpoints)", "none of these in it")
    damaged: list[str] = []
    step, state = _newest(run_dir, damaged)
    best = state.get("best")
    weights_step, weights = step, state.get("model", {})
    if best:
        try:
            weights = CheckpointStore(run_dir).load_best(best["step"])["model"]
            weights_step = best["step"]
        except CheckpointError as error:
            damaged.append(str(error))
    return Run(
        path=run_dir,
        described=_described(run_dir / "run.json"),
        metrics=_lines(run_dir / "metrics.jsonl", damaged),
        diagnoses=_diagnoses(run_dir / "diagnostics.jsonl", damaged),
        facts=state.get("facts", {}),
        checkpoint_step=step,
        best=best,
        notes=[str(note) for note in state.get("progress", {}).get("notes", [])],
        weights=weights,
        weights_step=weights_step,
        damaged=damaged,
    )


def _newest(run_dir: Path, damaged: list[str]) -> tuple[int | None, dict[str, Any]]:
    store = CheckpointStore(run_dir)
    for step in reversed(store.steps("step")):
        try:
            return step, read_checkpoint(store.path("step", step))
        except (CheckpointError, OSError) as error:  # a running process may just have removed it
            damaged.append(str(error))
    return None, {}


def _described(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(path, "JSON", str(error)) from error
    if not isinstance(values, dict) or not isinstance(values.get("config", {}), dict | None):
        raise DataError(path, "what pqk train writes", "other JSON")
    return values


def _lines(path: Path, damaged: list[str]) -> list[dict[str, Any]]:
    """Objects with a step, one a line. A last line that is torn, as a kill leaves it, is left out and told of."""
    if not path.exists():
        return []
    texts = path.read_bytes().split(b"\n")
    if texts.pop():
        damaged.append(f"{path}: its last line is not whole")
    found = []
    for number, text in enumerate(texts):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise DataError(path, "a line of JSON", str(error), record=number) from error
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            raise DataError(path, "an object with a step", "other JSON", record=number)
        found.append(line)
    return found


def _diagnoses(path: Path, damaged: list[str]) -> list[dict[str, Any]]:
    """Lines that hold every field of a diagnosis."""
    found = _lines(path, damaged)
    for number, line in enumerate(found):
        missing = _missing(line, Diagnosis)
        for kind, record in (("layers", LayerDiagnosis), ("activations", ActivationDiagnosis)):
            for entry in line.get(kind) or []:
                missing += _missing(entry, record)
        if line.get("agreement") is not None:
            missing += _missing(line["agreement"], Agreement)
        if missing:
            raise DataError(path, "every field of a diagnosis", f"none of the name {missing[0]}", record=number)
    return found


def _missing(values: Any, record: type[Any]) -> list[str]:
    names = [field.name for field in dataclasses.fields(record)]
    return [name for name in names if name not in values] if isinstance(values, dict) else names
