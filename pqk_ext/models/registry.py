"""The model registry: one decorator, and nothing else to edit when a model is added."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from torch import nn

Factory = TypeVar("Factory", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class _Entry:
    factory: Callable[..., nn.Module]
    input_shape: tuple[int, ...]


_ENTRIES: dict[str, _Entry] = {}


def register_model(*, input_shape: tuple[int, ...]) -> Callable[[Factory], Factory]:
    """Register the decorated function as the model of the function's name.

    Args:
        input_shape: Default shape of one input, without the batch dimension.

    Raises:
        ValueError: Another function already has that name.
    """

    def register(factory: Factory) -> Factory:
        name = factory.__name__
        if name in _ENTRIES and _ENTRIES[name].factory.__module__ != factory.__module__:
            raise ValueError(f"model {name!r} is already registered by {_ENTRIES[name].factory.__module__}")
        _ENTRIES[name] = _Entry(factory, input_shape)
        return factory

    return register


@cache
def _load_zoo() -> None:
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")


def _entry(name: str) -> _Entry:
    _load_zoo()
    if name not in _ENTRIES:
        near = difflib.get_close_matches(name, _ENTRIES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names())}"
        raise ValueError(f"name: no model {name!r}; {hint}")
    return _ENTRIES[name]


def names() -> list[str]:
    """Return the names of all registered models, sorted."""
    _load_zoo()
    return sorted(_ENTRIES)


def create(name: str, **options: object) -> nn.Module:
    """Build the model `name`.

    Args:
        name: One of `names()`.
        **options: Keyword arguments of the model's function, for instance `num_classes`.

    Returns:
        The model, in training mode, on the CPU, freshly initialised unless an option says otherwise.

    Raises:
        ValueError: Unknown name; the message names the nearest one.
        TypeError: An option that the model does not have.
    """
    factory = _entry(name).factory
    accepted = inspect.signature(factory).parameters
    for option in options:
        if option not in accepted:
            raise TypeError(f"model {name!r} has no option {option!r}; it has: {', '.join(accepted)}")
    return factory(**options)


def input_shape(name: str) -> tuple[int, ...]:
    """Return the default shape of one input of the model `name`, without the batch dimension."""
    return _entry(name).input_shape
