"""A strict reader of YAML settings: one mapping, no key twice, no aliases or tags; errors name line and column."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

__all__ = ["Document", "Place", "read_document", "read_mapping", "read_value"]

_MAX_BYTES = 1 << 20

Place = str
"""``path:line:column: ``, to begin a message with."""

CheckValue = Callable[[str, Any, Place], None]

_Trail = tuple[str | int, ...]
_CheckKey = Callable[[object, Place, _Trail], None]


@dataclasses.dataclass(frozen=True)
class Document:
    """A file that was read.

    Attributes:
        values: its outermost mapping.
        places: where each value stands: ``("a", "b")`` is the key ``b`` of the mapping ``a``, ``("c", 0)`` the first
            item of the list ``c``, ``()`` the document.
    """

    values: dict[str, Any]
    places: dict[_Trail, Place]

    def place(self, *trail: str | int) -> Place:
        """Where a value stands, or what holds it if it is not there."""
        while trail not in self.places:
            trail = trail[:-1]
        return self.places[trail]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader, for which ``1e-3`` is a number and ``2:4`` is not (120 + 4), as in YAML 1.2."""


_BEGIN_OF_NUMBER = "-+0123456789"
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list(_BEGIN_OF_NUMBER)
)
for _character in _BEGIN_OF_NUMBER:  # the first that fits counts, and the method above appends
    _Loader.yaml_implicit_resolvers[_character].insert(
        0, ("tag:yaml.org,2002:str", re.compile(r"^[-+]?[0-9]+(:[0-9]+)+(\.[0-9]*)?$"))
    )


def read_mapping(
    path: Path, check_key: Callable[[object, Place], None], check_value: CheckValue, depth: int, lists: int = 0
) -> dict[str, Any]:
    """Reads a file of at most 1 MiB.

    Args:
        path: the file.
        check_key: called with each key of the outermost mapping as it is met, to refuse it.
        check_value: called with each of its keys and values.
        depth: of mappings in mappings; 1 is flat.
        lists: of lists in lists; 0: none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large, no YAML text or no such mapping, or has a key twice.
    """

    def check_outermost(key: object, place: Place, trail: _Trail) -> None:
        if not trail:
            check_key(key, place)

    return _read(path, check_outermost, check_value, depth=depth, lists=lists).values


def read_document(path: Path, *, depth: int, lists: int) -> Document:
    """Reads a file of at most 1 MiB and remembers where its values stand.

    Args:
        path: the file.
        depth: of mappings in mappings; 1 is flat. Keys of all of them are strings.
        lists: of lists in lists; 0: none. They hold plain values.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large, no YAML text or no such mapping, or has a key twice.
    """
    return _read(path, _check_string, lambda *_: None, depth=depth, lists=lists)


def _check_string(key: object, place: Place, trail: _Trail) -> None:
    if not isinstance(key, str):
        raise ValueError(f"{place}expected a key that is a string, got {key!r}")


def _read(path: Path, check_key: _CheckKey, check_value: CheckValue, *, depth: int, lists: int) -> Document:
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{path}: expected at most {_MAX_BYTES} bytes of YAML, got more")
    try:
        reader = _Reader(path, data, check_key, check_value, lists)
        return Document(reader.document(depth), reader.places)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{_place(path, error.problem_mark)}{error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML text: {error}") from error


def read_value(text: str) -> Any:
    """One value as YAML 1.2 writes it: ``1e-3``, ``true``, ``[0.5, 0.75]``.

    Raises:
        ValueError: no YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"expected a YAML value, got {text!r}") from error


def _place(path: Path, mark: Any) -> str:
    return f"{path}:{mark.line + 1}:{mark.column + 1}: " if mark is not None else f"{path}: "


class _Reader:
    """Reads events, not nodes: a nested or self-referring document ends at its first wrong event, whatever its size."""

    def __init__(self, path: Path, data: bytes, check_key: _CheckKey, check_value: CheckValue, lists: int) -> None:
        self.path, self.loader, self.lists = path, _Loader(data), lists
        self.check_key, self.check_value = check_key, check_value
        self.places: dict[_Trail, Place] = {(): _place(path, None)}

    def document(self, depth: int) -> dict[str, Any]:
        loader = self.loader
        loader.get_event()  # stream start
        if loader.check_event(yaml.StreamEndEvent):
            raise ValueError(f"{self.path}:1:1: expected a mapping of settings, got an empty file")
        loader.get_event()  # document start
        opening = loader.get_event()
        if not isinstance(opening, yaml.MappingStartEvent):
            raise ValueError(f"{_place(self.path, opening.start_mark)}expected a mapping of settings (key: value)")
        values = self._mapping(depth, ())
        loader.get_event()  # document end
        rest = loader.get_event()
        if not isinstance(rest, yaml.StreamEndEvent):
            raise ValueError(f"{_place(self.path, rest.start_mark)}expected one document, got a second")
        return values

    def _mapping(self, depth: int, trail: _Trail) -> dict[str, Any]:
        """What follows a mapping's start. The caller of the reader looks at nested ones as a whole."""
        values: dict[str, Any] = {}
        while not self.loader.check_event(yaml.MappingEndEvent):
            event = self.loader.get_event()
            key, place = self._scalar(event), _place(self.path, event.start_mark)
            self.check_key(key, place, trail)
            if key in values:
                raise ValueError(f"{place}key {key!r} is given twice")
            self.places[*trail, key] = place
            value = self.loader.get_event()
            if depth > 1 and isinstance(value, yaml.MappingStartEvent) and not value.anchor:
                values[key] = self._mapping(depth - 1, (*trail, key))
            else:
                values[key] = self._list_or_scalar(value, self.lists, (*trail, key))
            if not trail:
                self.check_value(key, values[key], place)
        self.loader.get_event()  # mapping end
        return values

    def _list_or_scalar(self, event: Any, lists: int, trail: _Trail) -> Any:
        if not lists or not isinstance(event, yaml.SequenceStartEvent) or event.anchor or event.tag is not None:
            return self._scalar(event)
        values: list[Any] = []
        while not self.loader.check_event(yaml.SequenceEndEvent):
            item, here = self.loader.get_event(), (*trail, len(values))
            self.places[here] = _place(self.path, item.start_mark)
            values.append(self._list_or_scalar(item, lists - 1, here))
        self.loader.get_event()  # list end
        return values

    def _scalar(self, event: Any) -> Any:
        place = _place(self.path, event.start_mark)
        if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
            raise ValueError(f"{place}expected a plain value, got a list, a mapping, an alias or a tag")
        tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        try:
            return self.loader.construct_object(yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark))
        except ValueError as error:  # such as the date 2001-99-99
            raise ValueError(f"{place}{error}") from error
