"""Recipes: a method, a network, data and settings, as frozen dataclasses and YAML files."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pqk_ext.config import PQKConfig
from pqk_ext.fields import (
    Checked,
    check_value,
    choice,
    field,
    flag,
    integer,
    number,
    numbers,
    text,
    text_or_flag,
    unknown,
)
from pqk_ext.methods._registry import METHODS
from pqk_ext.strict_yaml import read_document, read_value

__all__ = ["Recipe", "Training", "load_recipe", "parse_change", "recipe_names"]

_FOLDER = Path(__file__).parent / "recipes"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Checked):
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
        learn_from: ``train``, or ``train+validation`` for a last run after all choices are made; what it says of the
            validation split is then of samples that it has learned.
        augment: ``keywords`` (shift in time and noise), ``crop_flip`` (CIFAR) or ``none``.
        dropout: whether the network's dropout works; a network of few weights has none to spare.
        autocast: ``bf16``: losses are computed under ``torch.autocast``; ``none``.
        compile: losses go through ``torch.compile``.
        cuda_graphs: on a GPU, a step of a prepared network is one CUDA graph once quantization has begun; needs
            ``dropout: false``.
    """

    steps: int = integer(920, 1)
    batch_size: int = integer(32, 1)
    optimizer: str = choice("adamw", "sgd")
    lr: float = number(0.002, 0)
    weight_decay: float = number(1e-4, 0)
    momentum: float = number(0.9, 0)
    warmup: float = number(0.05, 0, 1)
    schedule: str = choice("cosine", "steps", "constant")
    milestones: tuple[float, ...] = numbers((), 0, 1)
    gamma: float = number(0.1, 0)
    learn_from: str = choice("train", "train+validation")
    augment: str = choice("none", "keywords", "crop_flip")
    dropout: bool = flag(False)
    autocast: str = choice("none", "bf16")
    compile: bool = flag(False)
    cuda_graphs: bool = flag(False)

    def lr_factor(self, progress: float) -> float:
        """Multiple of ``lr`` at a progress in [0, 1) through the steps."""
        rise = min(1.0, (progress * self.steps + 1) / max(1.0, self.warmup * self.steps))
        if self.schedule == "cosine":
            return rise * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "steps":
            return rise * self.gamma ** sum(progress >= place for place in self.milestones)
        return rise


def _one_of_the_methods(value: object) -> str | None:
    return None if value in METHODS else "one of " + ", ".join(METHODS)


def _mapping_without_length(value: object) -> str | None:
    if not isinstance(value, Mapping):
        return "a mapping"
    return "no total_steps, which training.steps gives" if "total_steps" in value else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
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

    method: str = field(_one_of_the_methods, "")
    data: str = text("keyword_spotting")
    model: str = text("ds_cnn")
    pretrained: bool | str = text_or_flag(False)
    pixels: str = choice("cifar", "imagenet", "raw")
    training: Training = dataclasses.field(default_factory=Training)
    pqk: Mapping[str, Any] = field(_mapping_without_length, {})
    settings: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "pqk", dict(self.pqk))
        self.config()
        if self.settings is None:
            object.__setattr__(self, "settings", METHODS[self.method].settings())

    def config(self, steps: int | None = None, **changes: Any) -> PQKConfig:
        """Settings of a prepared network, for ``steps`` or the recipe's own."""
        values = {**self.pqk, **changes, "total_steps": steps or self.training.steps}
        try:
            return PQKConfig.from_dict(values)
        except ValueError as error:
            raise ValueError(_inside("pqk", error)) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values; ``from_dict`` gives an equal recipe back."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return values | {
            "training": _stated(_plain(dataclasses.asdict(self.training))),
            "pqk": _plain(self.pqk),
            "settings": _stated(_plain(dataclasses.asdict(self.settings))),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Makes a recipe; what is not given keeps its default.

        Raises:
            ValueError: an unknown key (the nearest known one is suggested), or a value outside its range.
        """
        values = dict(values)
        check_value(cls, "method", values.get("method"))
        values["training"] = _section(Training, "training", values.get("training", {}))
        values["settings"] = _section(METHODS[values["method"]].settings, "settings", values.get("settings", {}))
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


_OFF = {
    "learn_from": "train",
    "autocast": "none",
    "teacher_autocast": "none",
    "compile": False,
    "cuda_graphs": False,
}


def _stated(section: dict[str, Any]) -> dict[str, Any]:
    """Without what is off: runs go on, and results are equal, that were begun before there was such a choice."""
    return {name: value for name, value in section.items() if name not in _OFF or value != _OFF[name]}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _section(kind: type[Any], name: str, values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}: expected a mapping, got {reprlib.repr(values)}")
    _check_keys(kind, values, f"{name}: ")
    lists = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return kind(**lists)
    except ValueError as error:
        raise ValueError(_inside(name, error)) from error


def _inside(section: str, error: ValueError) -> str:
    """The message with the section before it: ``training.steps: ...``, ``training: unknown key ...``."""
    return f"{section}{': ' if str(error).startswith('unknown key') else '.'}{error}"


def _check_keys(kind: type[Any], values: Mapping[str, Any], place: str) -> None:
    known = [one.name for one in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise ValueError(unknown(key, known, place))


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
