"""What is compared: arms, seeds and pairs, from a file or from a command line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from pqk_ext.methods.recipe import parse_change
from pqk_ext.strict_yaml import Document, read_document

__all__ = ["Arm", "Experiment", "expand", "from_methods", "read_experiment", "set_words"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}")
_PLAIN = re.compile(r"[A-Za-z_/$][\w./:$+-]*( [\w./$+-]+)*")  # texts that need no quotes in YAML, but for such as true
_FIELDS = ("title", "about", "seeds", "device", "set", "arms", "compare")
_ARM_FIELDS = ("recipe", "set", "network", "budget")
_FREE = "free"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to make a network.

    Attributes:
        name: names its directory, and its row of the tables.
        recipe: name of a recipe in the package, or path of a recipe file.
        overrides: settings in place of the recipe's, by dotted path, as ``pqk train --set`` takes them. In texts,
            ``$NAME`` stands for a variable of the environment, such as the folder of the data.
        network: which of the networks that the recipe makes, or None: each is a row.
        free: it need not spend as many steps as the others.
    """

    name: str
    recipe: str
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    network: str | None = None
    free: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms that run with the same seeds.

    Attributes:
        title: heading of the results.
        about: what they are to show, in a sentence or two, or empty.
        seeds: how many; they are 0, 1, ...
        arms: by name.
        pairs: names of rows, first minus second. A row is an arm or, where it makes several networks, ``arm/network``.
        device: where the cells train: ``cpu``, ``cuda`` or ``cuda:N``.
    """

    title: str
    about: str = ""
    seeds: int
    arms: dict[str, Arm]
    pairs: list[tuple[str, str]]
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise ValueError("title: expected some text, got none")
        if self.seeds < 1:
            raise ValueError(f"seeds: expected at least 1, got {self.seeds}")
        if not self.arms:
            raise ValueError("arms: expected at least one, got none")

    def changed(
        self,
        *,
        seeds: int | None = None,
        overrides: Mapping[str, Any] | None = None,
        budget: int | None = None,
        device: str | None = None,
    ) -> Experiment:
        """The same with other values: ``overrides`` for all arms, ``budget`` steps for those that are not free."""
        arms = {}
        for name, arm in self.arms.items():
            values = arm.overrides | dict(overrides or {})
            if budget is not None and not arm.free:
                values["training.steps"] = budget
            arms[name] = dataclasses.replace(arm, overrides=values)
        return dataclasses.replace(
            self, arms=arms, seeds=self.seeds if seeds is None else seeds, device=device or self.device
        )

    def to_yaml(self) -> str:
        """The text of a file that :func:`read_experiment` reads as this."""
        arms: dict[str, Any] = {}
        for arm in self.arms.values():
            values: dict[str, Any] = {"recipe": arm.recipe}
            values |= {"set": dict(arm.overrides)} if arm.overrides else {}
            values |= {"network": arm.network} if arm.network is not None else {}
            values |= {"budget": _FREE} if arm.free else {}
            arms[arm.name] = values
        content: dict[str, Any] = {"title": self.title} | ({"about": self.about} if self.about else {})
        content |= {"device": self.device} if self.device != "cpu" else {}
        content |= {"seeds": self.seeds, "arms": arms, "compare": [list(pair) for pair in self.pairs]}
        return str(yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True))


def set_words(overrides: Mapping[str, Any]) -> list[str]:
    """Words of a command line: ``--set NAME=VALUE`` for each."""
    return [word for name, value in overrides.items() for word in ("--set", f"{name}={_yaml_value(value)}")]


def _yaml_value(value: Any) -> str:
    """One word that YAML reads as ``value``."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_yaml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml_value, value)) + "]"
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")
        return f"{mantissa}.0e{exponent}" if e and "." not in mantissa else repr(value)  # YAML 1.1 has no 1e-05
    is_plain = isinstance(value, str) and _PLAIN.fullmatch(value) and value == yaml.safe_load(value)
    return str(value) if is_plain else json.dumps(value)


def expand(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the variables of the environment in place of their names.

    Raises:
        ValueError: a variable that is not set.
    """
    values = {name: os.path.expandvars(value) if isinstance(value, str) else value for name, value in overrides.items()}
    for name, value in values.items():
        unset = re.search(r"\$\w+|\$\{\w+\}", value) if isinstance(value, str) else None
        if unset is not None:
            raise ValueError(f"{name}: {unset[0]} is not set in the environment: {overrides[name]!r}")
    return values


def read_experiment(path: str | os.PathLike[str]) -> Experiment:
    """Reads a file such as those of ``benchmarks/methods``::

        title: Route-constrained optimization on keywords
        seeds: 5
        arms:
          rco: {recipe: rco}
          kd:  {recipe: rco, set: {settings.anchors: 1}}
        compare:
          - [rco, kd]

    An arm may also have ``network`` (which of several networks) and ``budget: free`` (other steps than the rest); a
    recipe that ends in ``.yaml`` is a file beside this one. Beside ``arms``, ``set`` holds settings of all arms that do
    not say otherwise, and ``device: cuda`` trains all of them there.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file; the message begins with ``path:line:column``.
    """
    path = Path(path)
    document = read_document(path, depth=6, lists=2)
    _check_keys(document, (), document.values, _FIELDS, required=("title", "seeds", "arms"))
    values = document.values
    for name, kind in (
        ("title", str),
        ("about", str),
        ("seeds", int),
        ("device", str),
        ("set", dict),
        ("arms", dict),
        ("compare", list),
    ):
        if name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool)):
            raise ValueError(f"{document.place(name)}{name}: expected {_KINDS[kind]}, got {values[name]!r}")
    arms = {name: _read_arm(document, name, path.parent) for name in values["arms"]}
    pairs = [_read_pair(document, index, arms) for index in range(len(values.get("compare", [])))]
    try:
        plain = {key: values[key] for key in ("title", "about", "seeds", "device") if key in values}
        return Experiment(arms=arms, pairs=pairs, **plain)
    except ValueError as error:
        raise ValueError(f"{document.place(str(error).partition(':')[0])}{error}") from error


_KINDS = {str: "text", int: "a whole number", dict: "a mapping", list: "a list"}


def _check_keys(
    document: Document, trail: tuple[str, ...], values: Any, known: Sequence[str], required: Sequence[str]
) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{document.place(*trail)}{trail[-1]}: expected a mapping, got {values!r}")
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
            raise ValueError(f"{document.place(*trail, key)}unknown key {key!r}; {hint}")
    for key in required:
        if key not in values:
            raise ValueError(f"{document.place(*trail)}expected the key {key!r}, which is missing")


def _read_arm(document: Document, name: str, folder: Path) -> Arm:
    trail = ("arms", name)
    values = document.values["arms"][name]
    if not _NAME.fullmatch(name):
        raise ValueError(f"{document.place(*trail)}arm {name!r}: expected a name of letters, digits and _ . + -")
    _check_keys(document, trail, values, _ARM_FIELDS, required=("recipe",))
    for key in ("recipe", "network"):
        if key in values and not (isinstance(values[key], str) and values[key]):
            raise ValueError(f"{document.place(*trail, key)}{key}: expected text, got {values[key]!r}")
    if values.get("budget", _FREE) != _FREE:
        raise ValueError(f"{document.place(*trail, 'budget')}budget: expected {_FREE!r}, got {values['budget']!r}")
    overrides = values.get("set", {})
    if not isinstance(overrides, dict):
        raise ValueError(f"{document.place(*trail, 'set')}set: expected a mapping of settings, got {overrides!r}")
    overrides = document.values.get("set", {}) | overrides
    recipe = values["recipe"]
    recipe = str(folder / recipe) if recipe.endswith((".yaml", ".yml")) else recipe
    return Arm(name=name, recipe=recipe, overrides=overrides, network=values.get("network"), free="budget" in values)


def _read_pair(document: Document, index: int, arms: Mapping[str, Arm]) -> tuple[str, str]:
    pair, place = document.values["compare"][index], document.place("compare", index)
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(row, str) for row in pair):
        raise ValueError(f"{place}compare: expected pairs [first, second] of rows, got {pair!r}")
    for row in pair:
        if row.partition("/")[0] not in arms:
            raise ValueError(f"{place}compare: expected one of the arms {', '.join(arms)}, got {row!r}")
    return pair[0], pair[1]


def from_methods(methods: Sequence[str], *, seeds: int) -> Experiment:
    """An experiment of recipes, the first of which is compared with each of the others.

    Args:
        methods: each ``RECIPE`` or ``RECIPE:NAME=VALUE`` with any number of settings behind further colons.
        seeds: how many.

    Raises:
        ValueError: no methods, one of them given twice, or not of that form.
    """
    arms: dict[str, Arm] = {}
    for text in methods:
        recipe, *settings = re.split(r":(?=[\w.]+=)", text)
        overrides = dict(map(parse_change, settings))
        if not recipe or "=" in recipe:
            raise ValueError(f"methods: expected RECIPE or RECIPE:NAME=VALUE, got {text!r}")
        stem = Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe
        name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", ":".join([stem, *settings])).strip("-")
        if not _NAME.fullmatch(name) or name in arms:
            raise ValueError(f"methods: expected each once, and names of at most 80 letters, got {text!r}")
        arms[name] = Arm(name=name, recipe=recipe, overrides=overrides)
    first, *others = arms or [""]
    return Experiment(title=", ".join(arms), seeds=seeds, arms=arms, pairs=[(first, other) for other in others])
