"""Functions listed under their own names, for decorators that register."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["enlist"]

Function = TypeVar("Function", bound=Callable[..., Any])


def enlist(table: dict[str, Any], function: Function, decorator: str) -> Function:
    """Puts a function into a table under its name; gives it back.

    Raises:
        ValueError: the name is taken; ``decorator`` says in whose words.
    """
    name = getattr(function, "__name__", "")
    if name in table:
        raise ValueError(f"{decorator}: the name {name!r} is registered already")
    table[name] = function
    return function
