"""The cells of an experiment on disk: a directory, a command line and a result each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pqk_ext.compare.experiment import Arm, Experiment, expand, set_words
from pqk_ext.methods import Recipe, load_recipe
from pqk_ext.training.errors import ResumeMismatchError

__all__ = ["Cell", "check_recipes", "load_recipes", "make_cells"]

# What must be equal for arms to be compared at equal cost; an arm that differs says so.
_BUDGET = ("steps", "batch_size")


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One run of an arm with one seed; equal only to itself.

    Attributes:
        arm: what runs.
        seed: its seed.
        directory: of the run.
        device: where it trains.
    """

    arm: Arm
    seed: int
    directory: Path
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Arm and seed, to be read."""
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """What the process said."""
        return self.directory.with_suffix(".log")

    @property
    def words(self) -> list[str]:
        """The command line, without ``pqk``."""
        return self._words(self.directory, expand(self.arm.overrides))

    @property
    def command(self) -> str:
        """A line for a shell that does the same once more, in a new directory."""
        words = self._words(Path("again") / self.arm.name / f"seed{self.seed}", self.arm.overrides)
        return " ".join(["pqk", *map(_quote, words)])

    def _words(self, directory: Path, overrides: Mapping[str, Any]) -> list[str]:
        start = ["train", "--recipe", self.arm.recipe, "--run-dir", str(directory), "--seed", str(self.seed)]
        where = [] if self.device == "cpu" else ["--device", self.device]
        return [*start, *where, *set_words(overrides)]

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return (self.directory / "result.json").exists()

    def result(self) -> dict[str, Any]:
        """What the run wrote.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no JSON object.
        """
        path = self.directory / "result.json"
        try:
            values = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: no JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected an object, got {type(values).__name__}")
        return values


def _quote(word: str) -> str:
    """Like ``shlex.quote``, but the shell puts variables in."""
    return f'"{word}"' if "$" in word and not re.search(r'["`\\\s!]', word) else shlex.quote(word)


def load_recipes(experiment: Experiment) -> dict[str, Recipe]:
    """The recipe of each arm with the arm's settings in it.

    Raises:
        ValueError: a recipe that there is not or that is wrong, or arms of unequal cost; names the arm.
    """
    recipes = {}
    for arm in experiment.arms.values():
        try:
            load_recipe(arm.recipe, expand(arm.overrides))  # refuses what the cells would
            recipes[arm.name] = load_recipe(arm.recipe, arm.overrides)
        except (ValueError, OSError) as error:
            raise ValueError(f"arm {arm.name}: {error}") from error
    _check_budgets(experiment, recipes)
    return recipes


def _check_budgets(experiment: Experiment, recipes: Mapping[str, Recipe]) -> None:
    bound = [arm.name for arm in experiment.arms.values() if not arm.free]
    for field in _BUDGET:
        values = {name: getattr(recipes[name].training, field) for name in bound}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            raise ValueError(f"training.{field}: expected the same in all arms without 'budget: free', got {listed}")


def make_cells(experiment: Experiment, directory: Path) -> list[Cell]:
    """All cells, seed by seed, so that whatever is done first can be compared already."""
    return [
        Cell(arm, seed, directory / "cells" / arm.name / f"seed{seed}", experiment.device)
        for seed in range(experiment.seeds)
        for arm in experiment.arms.values()
    ]


def check_recipes(cells: Sequence[Cell], recipes: Mapping[str, Recipe]) -> None:
    """Refuses results of other recipes, or from another kind of device.

    What the recipes say counts, not the commit that ran them: settings that a later version added have their defaults
    in an older result, and folders of data and weights may have moved.

    Raises:
        ResumeMismatchError: names the cells and all differences.
        ValueError: a result that is none.
    """
    for cell in cells:
        if not cell.done:
            continue  # if it was begun, `pqk train` compares
        result = cell.result()
        changes = _changes(result.get("recipe", {}), recipes[cell.arm.name])
        trained, trains = result.get("device", "cpu"), cell.device.partition(":")[0]
        changes += [f"device: {trained!r} then, {trains!r} now"] if trained != trains else []
        if changes:
            raise ResumeMismatchError(
                f"{cell.name}: the result in {cell.directory} is of another recipe ({'; '.join(changes)}); "
                "take another --out, or remove that folder"
            )


def _changes(old: dict[str, Any], recipe: Recipe) -> list[str]:
    with contextlib.suppress(ValueError):  # a setting that is no more is shown as a difference
        old = Recipe.from_dict(old).to_dict()
    before, now = _flat(old), _flat(json.loads(json.dumps(recipe.to_dict())))
    return [
        f"{key}: {before.get(key, 'not set')!r} then, {now.get(key, 'not set')!r} now"
        for key in {**before, **now}
        if _without_folder(key, before.get(key)) != _without_folder(key, now.get(key))
    ]


def _without_folder(key: str, value: Any) -> Any:
    """The kind of the data, the name of an archive of weights."""
    if not isinstance(value, str) or key not in ("data", "pretrained"):
        return value
    return value.partition(":")[0] if key == "data" else Path(value).name


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
