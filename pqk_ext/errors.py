"""Errors that users of the package may catch. Needs neither torch nor the native code."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["DataError", "FormatError", "refuse"]

_SHOWN_LENGTH = 200


def _shown(text: object) -> str:
    """What came from a file, safe to print: no control characters, at most 200 of them."""
    cleaned = str(text).encode("unicode_escape").decode("ascii")
    return cleaned if len(cleaned) <= _SHOWN_LENGTH else cleaned[:_SHOWN_LENGTH] + "..."


class FormatError(ValueError):
    """A ``.pqk`` file, or a part of one, that breaks a rule of the format.

    Attributes:
        code: stable name of the rule, for example ``"E_DIGEST"``.
        field: the field at fault, for example ``"tensors['3.weight'].payload"``.
        offset: byte offset within that field, or -1 where there is none.
        expected: what the rule asks for.
        got: what the file holds.
    """

    def __init__(self, code: str, field: str, offset: int, expected: str, got: str) -> None:
        self.code = code
        self.field = _shown(field)
        self.offset = offset
        self.expected = _shown(expected)
        self.got = _shown(got)
        super().__init__(code, field, offset, expected, got)

    def __str__(self) -> str:
        at = f" at byte {self.offset}" if self.offset >= 0 else ""
        return f"{self.field}{at}: expected {self.expected}, got {self.got} [{self.code}]"


def refuse(code: str, field: str, expected: str, got: object, offset: int = -1) -> NoReturn:
    """Raises a :class:`FormatError` of its arguments."""
    raise FormatError(code, field, offset, expected, str(got))


class DataError(ValueError):
    """A data file on disk that is missing, cut, mislabelled or of another kind.

    Attributes:
        path: the file or folder at fault.
        record: index of the first bad record of that file, or -1 where there is none.
        offset: byte offset within that file, or -1 where there is none.
        expected: what should stand there.
        got: what does.
    """

    def __init__(self, path: object, expected: str, got: str, *, record: int = -1, offset: int = -1) -> None:
        self.path = _shown(path)
        self.record = record
        self.offset = offset
        self.expected = _shown(expected)
        self.got = _shown(got)
        super().__init__(path, expected, got)

    def __str__(self) -> str:
        record = f", record {self.record}" if self.record >= 0 else ""
        offset = f", byte {self.offset}" if self.offset >= 0 else ""
        return f"{self.path}{record}{offset}: expected {self.expected}, got {self.got}"
