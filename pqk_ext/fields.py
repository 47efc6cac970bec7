"""Fields of settings that check themselves: frozen dataclasses whose every value is refused by name if it is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
from collections.abc import Callable, Collection
from typing import Any

__all__ = [
    "Checked",
    "check_value",
    "choice",
    "field",
    "flag",
    "integer",
    "integers",
    "names",
    "number",
    "numbers",
    "one_of",
    "text",
    "text_or_flag",
    "unknown",
]

# A check returns what is allowed when the value is refused, and None when it is fine.
Check = Callable[[object], str | None]


def field(check: Check, default: object) -> Any:
    """A field with a check of its own."""
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, hash=False, metadata={"check": check})
    return dataclasses.field(default=default, metadata={"check": check})


def number(
    default: float, low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> Any:
    """A finite number in an interval; integers become floats, so that equal settings have equal texts."""
    allowed = f"a number in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high or high == math.inf else ']'}"

    def check(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return allowed
        fits = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
        return None if fits else allowed

    return field(check, float(default))


def integer(default: int, low: int, high: int | None = None) -> Any:
    """An integer in an interval, its ends included."""
    return field(_integer_check(low, high), default)


def _integer_check(low: int, high: int | None) -> Check:
    allowed = f"an integer from {low} to {high}" if high is not None else f"an integer of at least {low}"

    def check(value: object) -> str | None:
        fits = type(value) is int and value >= low and (high is None or value <= high)
        return None if fits else allowed

    return check


def flag(default: bool) -> Any:
    """True or false."""
    return field(lambda value: None if type(value) is bool else "true or false", default)


def one_of(default: int, *others: int) -> Any:
    """One of some integers."""
    allowed = (default, *others)
    words = "one of " + ", ".join(map(str, allowed))
    return field(lambda value: None if type(value) is int and value in allowed else words, default)


def choice(default: str, *others: str) -> Any:
    """One of some words."""
    allowed = (default, *others)
    words = "one of " + ", ".join(allowed)
    return field(lambda value: None if isinstance(value, str) and value in allowed else words, default)


def integers(default: tuple[int, ...], low: int, high: int | None = None, *, least: int = 0) -> Any:
    """A list of integers in an interval, at least ``least`` of them."""
    check_one = _integer_check(low, high)
    return _list(default, check_one, str(check_one(None)).replace("an integer", "integers", 1), least)


def numbers(default: tuple[float, ...], low: float, high: float = math.inf, *, least: int = 0) -> Any:
    """A list of numbers in an interval."""
    check_one: Check = number(low, low, high).metadata["check"]
    return _list(default, check_one, str(check_one(None)).replace("a number", "numbers", 1), least)


def names(default: tuple[str, ...] = (), *, least: int = 0) -> Any:
    """A list of names."""
    return _list(default, lambda value: None if isinstance(value, str) and value else "a name", "names", least)


def _list(default: tuple[Any, ...], check_one: Check, allowed: str, least: int) -> Any:
    words = f"a list of {f'at least {least} ' if least else ''}{allowed}"

    def check(value: object) -> str | None:
        fits = isinstance(value, tuple | list) and len(value) >= least and all(check_one(one) is None for one in value)
        return None if fits else words

    return field(check, default)


def text(default: str = "") -> Any:
    """Any text, also an empty one."""
    return field(lambda value: None if isinstance(value, str) else "a text", default)


def text_or_flag(default: bool | str) -> Any:
    """True, false, or a text."""
    return field(lambda value: None if isinstance(value, bool | str) else "true, false or a text", default)


def check_value(owner: type[Any], name: str, value: object, place: str = "") -> None:
    """Raises ValueError unless a field of ``owner`` may have that value."""
    check: Check | None = next(f for f in dataclasses.fields(owner) if f.name == name).metadata.get("check")
    allowed = check(value) if check is not None else None
    if allowed is not None:
        raise ValueError(f"{place}{name}: expected {allowed}, got {reprlib.repr(value)}")


class Checked:
    """Base of frozen dataclasses whose fields are made by the functions of this module."""

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, one.name)
            check_value(type(self), one.name, value)
            if type(one.default) is float:
                object.__setattr__(self, one.name, float(value))
            elif isinstance(value, list):
                object.__setattr__(self, one.name, tuple(value))
        self.check_together()

    def check_together(self) -> None:
        """Raises ValueError where values that are fine by themselves do not go together."""


def unknown(key: object, known: Collection[str], place: str = "") -> str:
    """What to say of a key that there is not, with the nearest one that there is."""
    nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "known keys: " + (", ".join(known) or "none")
    return f"{place}unknown key {reprlib.repr(key)}; {hint}"
