"""Documents with lists, and where their values stand. Flat settings: ``test_config.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from pqk_ext.strict_yaml import read_document

TEXT = """\
title: "A: b"
arms:
  one: {recipe: pqk, set: {settings.milestones: [1, 2e2]}}
pairs:
  - [one, two]
  - [one, three]
empty: []
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "file.yaml"
    path.write_text(text)
    return path


def test_values_and_places(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT)
    document = read_document(path, depth=4, lists=2)
    assert document.values == {
        "title": "A: b",
        "arms": {"one": {"recipe": "pqk", "set": {"settings.milestones": [1, 200.0]}}},
        "pairs": [["one", "two"], ["one", "three"]],
        "empty": [],
    }
    assert document.place("title") == f"{path}:1:1: "
    assert document.place("arms", "one", "recipe") == f"{path}:3:9: "
    assert document.place("pairs", 1, 0) == f"{path}:6:6: "
    assert document.place("pairs", 1, 7, "x") == f"{path}:6:5: "  # what holds it
    assert document.place("nothing") == f"{path}: "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [[[1]]]\n", "1:6: expected a plain value, got a list"),
        ("a: [{b: 1}]\n", "1:5: expected a plain value"),
        ("a: {b: {c: {d: {e: 1}}}}\n", "1:16: expected a plain value"),
        ("a: &x [1]\n", "1:4: expected a plain value"),
        ("a: !!python/tuple [1]\n", "1:4: expected a plain value"),
        ("a: {b: 1, b: 2}\n", "1:11: key 'b' is given twice"),
        ("1: a\n", "1:1: expected a key that is a string, got 1"),
        ("a: {1: a}\n", "1:5: expected a key that is a string, got 1"),
        ("a: [1\n", "expected ',' or ']'"),
        ("- 1\n", "1:1: expected a mapping"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"file\.yaml:") as caught:
        read_document(write(tmp_path, text), depth=4, lists=2)
    assert message in str(caught.value)
