"""JSON as files from strangers need it: no duplicate keys, no NaN or Infinity, no overflow, bounded integers."""

from __future__ import annotations

import json
import math
from typing import NoReturn

from pqk_ext.errors import FormatError

__all__ = ["Json", "canonical", "parse"]

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_MAX_LENGTH = 20  # of -2^63 as text


def parse(text: bytes, field: str) -> Json:
    """The one JSON value that ``text`` holds.

    Raises:
        FormatError: ``E_HEADER`` with the byte offset where there is one, or ``E_DUPLICATE`` naming the key.
    """

    def refuse(code: str, expected: str, got: str, offset: int = -1) -> NoReturn:
        raise FormatError(code, field, offset, expected, got)

    def pairs(items: list[tuple[str, Json]]) -> dict[str, Json]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            for key, _ in items:
                if key in seen:
                    refuse("E_DUPLICATE", "every key once", repr(key))
                seen.add(key)
        return result

    def integer(digits: str) -> int:
        if len(digits) > _MAX_LENGTH or not -(2**63) <= int(digits) < 2**63:
            refuse("E_HEADER", "an integer of 64 bits", digits[:40])
        return int(digits)

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            refuse("E_HEADER", "a finite number", digits[:40])
        return value

    def constant(name: str) -> NoReturn:
        refuse("E_HEADER", "a finite number", name)

    try:
        decoded = text.decode("ascii")
    except UnicodeDecodeError as error:
        refuse("E_HEADER", "ASCII text", f"byte 0x{text[error.start]:02x}", error.start)
    try:
        value: Json = json.loads(
            decoded, object_pairs_hook=pairs, parse_int=integer, parse_float=number, parse_constant=constant
        )
    except json.JSONDecodeError as error:
        refuse("E_HEADER", "valid JSON", error.msg, error.pos)
    except RecursionError:
        refuse("E_HEADER", "at most 8 levels of nesting", "many more")
    return value


def canonical(value: Json) -> str:
    """Sorted keys, no spaces, floats with the fewest digits that give the same double: one text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
