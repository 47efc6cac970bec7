"""Sizes that come from a file are added and multiplied by checked_add and checked_mul only.

What is looked at are the places where a size becomes memory or a range of the file: ByteReader::take, new T[...], the
size of a vector. What stands there must be a name, or come from the checked helpers, in every file that reads what
others wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).parent.parent.parent / "csrc" / "core"
# These write payloads, of values that are there.
ENCODERS = {"interleaved_encode.cpp", "interleaved_sparse.cpp"}
FILES = sorted(
    path
    for pattern in ("byte_reader.h", "bit_stream.h", "codec*", "csr.cpp", "huffman*", "interleaved*", "packed*")
    for path in CORE.glob(pattern)
    if path.name not in ENCODERS
)
FILES += sorted(path for name in ("graph", "check", "schema") for path in (CORE / "engine").glob(f"{name}*.cpp"))

PLACES = re.compile(
    r"\.take(?P<take>\()"
    r"|\bnew \w+(?P<new>\[)"
    r"|\.resize(?P<resize>\()"
    r"|std::vector<[\w:<> ]+> \w+(?P<vector>\()(?=[^)]*\);)"
)
CLOSING = {"(": ")", "[": "]"}
ARITHMETIC = re.compile(r"(?<=[\w\])]) ?(?:[*+]|<<) ?(?=[\w(])")


def without_comments(text: str) -> str:
    return re.sub(r'//[^\n]*|"(?:\\.|[^"\\\n])*"', "", text)


def balanced(text: str, begin: int) -> str:
    """What stands between the bracket at `begin` and its partner."""
    opening, depth = text[begin], 0
    for at in range(begin, len(text)):
        depth += (text[at] == opening) - (text[at] == CLOSING[opening])
        if depth == 0:
            return text[begin + 1 : at]
    raise ValueError(f"no partner for {text[begin : begin + 40]}")


def sizes(text: str) -> Iterator[str]:
    text = without_comments(text)
    for found in PLACES.finditer(text):
        size = balanced(text, found.start(str(found.lastgroup)))
        while helper := re.search(r"\bchecked_(?:add|mul)\(", size):
            inner = balanced(size, helper.end() - 1)
            size = size[: helper.start()] + "checked" + size[helper.end() + len(inner) + 1 :]
        yield size


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_size_is_computed_unchecked(path: Path) -> None:
    assert [size for size in sizes(path.read_text()) if ARITHMETIC.search(size)] == []


def test_the_places_are_found() -> None:
    text = """
    reader.take(rows * 4, "x"); reader.take(checked_mul(checked_add(rows, 1, f(a + b)), 4, field), "x");
    Bytes b(new uint8_t[count + 1]); std::vector<int32_t> crow(a<<2); out.resize(checked_add(a, b, f) * 2);
    std::vector<int32_t> read(ByteReader& reader, int64_t rows) {
    """
    found = list(sizes(text))
    assert len(found) == 5
    assert [bool(ARITHMETIC.search(size)) for size in found] == [True, False, True, True, True]


def test_decoders_are_among_the_files() -> None:
    assert {"codec_csr.cpp", "huffman.cpp", "byte_reader.h", "graph.cpp"} <= {path.name for path in FILES}
    assert sum(len(list(sizes(path.read_text()))) for path in FILES) >= 15
