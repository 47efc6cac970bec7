"""Recipes: a method, a network, data and settings, as frozen dataclasses and YAML files."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pqk_ext.config import PQKConfig
from pqk_ext.methods._registry import METHODS
from pqk_ext.strict_yaml import read_document, read_value

__all__ = ["Recipe", "Training", "load_recipe", "parse_change", "recipe_names"]

_FOLDER = Path(__file__).parent / "recipes"
_OPTIMIZERS = ("sgd", "adamw")
_SCHEDULES = ("cosine", "steps", "constant")
_AUGMENTATIONS = ("none", "keywords", "crop_flip")
_PIXELS = ("cifar", "imagenet", "raw")


def _choice(name: str, value: object, allowed: Collection[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, allowed))}, got {reprlib.repr(value)}")


def _number(name: str, value: object, low: float, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}], got {reprlib.repr(value)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How each stage of a method is trained, unless the method says otherwise.

    Attributes:
        steps: optimizer steps of the deployed network: what methods are compared at.
        batch_size: samples a step.
        optimizer: ``sgd`` (Nesterov momentum) or ``adamw``.
        lr: learning rate of the weights, at its highest.
        weight_decay: of the weights.
        momentum: of SGD.
        warmup: share of the steps in which the learning rate rises to ``lr``.
        schedule: what it does then: ``cosine`` falls to 0 along half a cosine, ``steps`` is multiplied by ``gamma`` at
            each of ``milestones``, ``constant`` stays.
        milestones: shares of the steps.
        gamma: see ``schedule``.
        augment: ``keywords`` (shift in time and noise), ``crop_flip`` (CIFAR) or ``none``.
        dropout: whether the network's dropout works; a network of few weights has none to spare.
    """

    steps: int = 920
    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float = 0.002
    weight_decay: float = 1e-4
    momentum: float = 0.9
    warmup: float = 0.05
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    augment: str = "none"
    dropout: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {getattr(self, name)!r}")
        for name in ("lr", "weight_decay", "momentum", "gamma"):
            _number(name, getattr(self, name), 0)
        _number("warmup", self.warmup, 0, 1)
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for place in self.milestones:
            _number("milestones", place, 0, 1)
        _choice("optimizer", self.optimizer, _OPTIMIZERS)
        _choice("schedule", self.schedule, _SCHEDULES)
        _choice("augment", self.augment, _AUGMENTATIONS)
        if type(self.dropout) is not bool:
            raise ValueError(f"dropout: expected true or false, got {self.dropout!r}")

    def lr_factor(self, progress: float) -> float:
        """Multiple of ``lr`` at a progress in [0, 1) through the steps."""
        rise = min(1.0, (progress * self.steps + 1) / max(1.0, self.warmup * self.steps))
        if self.schedule == "cosine":
            return rise * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "steps":
            return rise * self.gamma ** sum(progress >= place for place in self.milestones)
        return rise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment but for its seed.

    Attributes:
        method: a name in ``METHODS``.
        data: as ``--data`` of the command line: ``keyword_spotting``, ``cifar10:DIR``, ``cifar100:DIR`` ...
        model: network of the zoo.
        pretrained: start from the weights in the package (true), from a published archive (its path, which may be
            relative to the folder of the data), or from nothing.
        pixels: scaling of images: ``cifar`` or ``imagenet`` (less that mean, over that deviation), or ``raw``, 0..255.
        training: steps, optimizer, augmentation.
        pqk: fields of ``PQKConfig``; ``total_steps`` is that of the training.
        settings: what only the method has; a dataclass of its own.
    """

    method: str
    data: str = "keyword_spotting"
    model: str = "ds_cnn"
    pretrained: bool | str = False
    pixels: str = "cifar"
    training: Training = dataclasses.field(default_factory=Training)
    pqk: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Any = None

    def __post_init__(self) -> None:
        _choice("method", self.method, METHODS)
        _choice("pixels", self.pixels, _PIXELS)
        object.__setattr__(self, "pqk", dict(self.pqk))
        if "total_steps" in self.pqk:
            raise ValueError("pqk.total_steps: training.steps gives the length of a run; leave it out")
        self.config()
        if self.settings is None:
            object.__setattr__(self, "settings", METHODS[self.method].settings())

    def config(self, steps: int | None = None, **changes: Any) -> PQKConfig:
        """Settings of a prepared network, for ``steps`` or the recipe's own."""
        values = {**self.pqk, **changes, "total_steps": steps or self.training.steps}
        try:
            return PQKConfig.from_dict(values)
        except ValueError as error:
            raise ValueError(f"pqk.{error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values; ``from_dict`` gives an equal recipe back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return values | {
            "training": _plain(dataclasses.asdict(self.training)),
            "pqk": _plain(self.pqk),
            "settings": _plain(dataclasses.asdict(self.settings)),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Makes a recipe; what is not given keeps its default.

        Raises:
            ValueError: an unknown key (the nearest known one is suggested), or a value outside its range.
        """
        values = dict(values)
        if "method" not in values:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got none")
        _choice("method", values["method"], METHODS)
        values["training"] = _section(Training, "training", values.get("training", {}))
        values["settings"] = _section(METHODS[values["method"]].settings, "settings", values.get("settings", {}))
        if not isinstance(values.get("pqk", {}), Mapping):
            raise ValueError(f"pqk: expected a mapping, got {reprlib.repr(values['pqk'])}")
        _check_keys(cls, values, "")
        return cls(**values)

    def with_changes(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy in which some values are replaced: ``{"training.steps": 100, "pqk.sparsity": 0.95}``.

        Raises:
            ValueError: an unknown key, or a value outside its range.
        """
        values = self.to_dict()
        for path, value in changes.items():
            section, dot, name = path.partition(".")
            if dot and section in ("training", "pqk", "settings"):
                values[section] = {**values[section], name: value}
            elif not dot and section not in ("training", "pqk", "settings"):
                values[section] = value
            else:
                raise ValueError(f"{path}: expected training.NAME, pqk.NAME, settings.NAME or a field of the recipe")
        return Recipe.from_dict(values)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _section(kind: type[Any], name: str, values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}: expected a mapping, got {reprlib.repr(values)}")
    _check_keys(kind, values, f"{name}.")
    lists = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return kind(**lists)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from error


def _check_keys(kind: type[Any], values: Mapping[str, Any], prefix: str) -> None:
    known = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
            raise ValueError(f"{prefix}{key}: unknown key; {hint}")


def recipe_names() -> list[str]:
    """The recipes in the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(name: str | os.PathLike[str], changes: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe.

    Args:
        name: one of :func:`recipe_names`, or the path of a YAML file.
        changes: see :meth:`Recipe.with_changes`.

    Raises:
        OSError: the file cannot be read.
        ValueError: no such recipe, or what is wrong in it.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if str(name) not in recipe_names():
            near = difflib.get_close_matches(str(name), recipe_names(), n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(recipe_names())}"
            raise ValueError(f"recipe: no recipe {str(name)!r} in the package, and no path of a .yaml file; {hint}")
        path = _FOLDER / f"{name}.yaml"
    values = read_document(path, depth=4, lists=1).values
    try:
        recipe = Recipe.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return recipe.with_changes(changes) if changes else recipe


def parse_change(text: str) -> tuple[str, Any]:
    """``"pqk.sparsity=0.9"`` as name and value, which is read as YAML.

    Raises:
        ValueError: no ``=``, or no YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"set: expected NAME=VALUE such as training.steps=100, got {text!r}")
    try:
        return name, read_value(value)
    except ValueError as error:
        raise ValueError(f"set: {name}: {error}") from error
