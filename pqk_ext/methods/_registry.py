"""Where the methods are listed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from pqk_ext.methods.run import Run

__all__ = ["METHODS", "Method", "method"]

# A run in, the networks that it made out: names -> prepared (or shared float) networks, trained, in evaluation mode.
Train = Callable[["Run"], Mapping[str, nn.Module]]


@dataclasses.dataclass(frozen=True)
class Method:
    """A published system as a recipe on shared parts.

    Attributes:
        name: as recipes call it.
        train: runs it.
        settings: dataclass of what only this method has.
    """

    name: str
    train: Train
    settings: type[Any]


# Name -> method, filled by the decorator below.
METHODS: dict[str, Method] = {}


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """Of a method that has none of its own."""


def method(settings: type[Any] = NoSettings) -> Callable[[Train], Train]:
    """Registers a method under its function's name.

    Args:
        settings: a frozen dataclass of plain values, which checks them when it is made.

    Raises:
        ValueError: the name is taken.
    """

    def register(train: Train) -> Train:
        name = train.__name__
        if name in METHODS:
            raise ValueError(f"method: the name {name!r} is registered already")
        METHODS[name] = Method(name, train, settings)
        return train

    return register
