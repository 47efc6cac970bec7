"""Files as accidents and attackers make them, beside those that break a single rule: each with its exact error."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pqk_ext.errors import FormatError
from pqk_ext.runtime import format as pqk_format
from tests.runtime.files import ALL_OPS, SMALL, join, refused, sign, split


def change_entry(name: str, **fields: object) -> bytes:
    header, metadata, tensors = split(SMALL)
    header[name].update(fields)
    return join(header, metadata, tensors)


def moved_floats() -> bytes:
    """Tensors in another order, with an odd number of bytes before the floats."""
    header, metadata, tensors = split(SMALL)
    names = sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["dtype"] != "U8")
    entries, data = {}, b""
    for name in names:
        begin, end = header[name]["data_offsets"]
        entries[name] = {**header[name], "data_offsets": [len(data), len(data) + end - begin]}
        data += tensors[begin:end]
    return join({"__metadata__": header["__metadata__"], **entries}, metadata, data)


CASES: dict[str, tuple[bytes, str, str]] = {
    # No binary version could be swapped: the one binary number is the header's length.
    "big-endian length": (SMALL[:8][::-1] + SMALL[8:], "E_HEADER_LEN", "header length"),
    "line ends of text mode": (SMALL.replace(b"\n", b"\r\n") + b"\r\n", "E_FILE_LEN", "file"),
    "pickle": (pickle.dumps({"weight": np.zeros(100)}), "E_MAGIC", "prefix"),
    "stored bytes above the shape": (
        change_entry("1.weight", shape=[10]),
        "E_SIZE_MISMATCH",
        "header.tensors['1.weight'].data_offsets",
    ),
    "product that wraps only beyond 2^62": (
        change_entry("1.weight", shape=[4, 2**30 - 1, 2**30 + 1]),
        "E_SIZE_MISMATCH",
        "header.tensors['1.weight'].data_offsets",
    ),
    "product that wraps to 0": (
        change_entry("1.weight", shape=[2**32, 2**32]),
        "E_SHAPE_OVERFLOW",
        "header.tensors['1.weight'].shape",
    ),
    "offset whose end wraps": (
        change_entry("1.weight", data_offsets=[2**63 - 1, 2**63 - 1]),
        "E_SIZE_MISMATCH",
        "header.tensors['1.weight'].data_offsets",
    ),
    "unaligned floats": (moved_floats(), "E_OFFSET", "header.tensors['1.affine'].data_offsets"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str) -> None:
    data, code, field = CASES[name]
    error = refused(data)
    assert (error.code, error.field) == (code, field)


def test_a_file_cut_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pqk"
    path.write_bytes(SMALL)
    size = int.from_bytes(SMALL[:8], "little")
    read = os.preadv

    def cut_first(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset >= 8 + size:
            os.truncate(path, len(SMALL) - 5)
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", cut_first)
    with pytest.raises(FormatError) as caught:
        pqk_format.read(path)
    assert (caught.value.code, caught.value.got) == ("E_TRUNCATED", str(len(SMALL) - 5))


def test_saving_over_the_file_that_was_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.pqk"
    path.write_bytes(SMALL)
    graph = pqk_format.read(path)
    before = [tensor.copy() for node in graph.nodes for tensor in node.tensors.values()]
    pqk_format.write(pqk_format.loads(ALL_OPS), path)
    after = [tensor for node in graph.nodes for tensor in node.tensors.values()]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert [node.op for node in pqk_format.read(path).nodes] == [node.op for node in pqk_format.loads(ALL_OPS).nodes]


def test_a_pickle_is_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(marker),))

    path = tmp_path / "model.pqk"
    path.write_bytes(pickle.dumps([Payload(), bytes(100)]))
    script = """
import sys
from pqk_ext.runtime import format
from pqk_ext.errors import FormatError
events = []
sys.addaudithook(lambda name, args: events.append(name) if name.split(".")[0] in
                 ("import", "exec", "compile", "pickle", "subprocess", "socket") else None)
for _ in range(2):  # the first time, Python imports what errors need
    events.clear()
    try:
        format.read(sys.argv[1])
    except FormatError as error:
        outcome = error.code, error.got, events
print(*outcome)
"""
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "E_MAGIC a pickle []", result.stderr
    assert not marker.exists()


def integers(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every integer of a JSON value."""
    if type(value) is int:
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, child in items for place in integers(child, (*path, key))]


def put(root: Any, path: tuple[Any, ...], new: int) -> None:
    for key in path[:-1]:
        root = root[key]
    root[path[-1]] = new


@pytest.mark.parametrize("where", ["header", "metadata"])
def test_every_integer_at_its_limits(where: str) -> None:
    header, metadata, tensors = split(ALL_OPS)
    outcomes: Counter[str] = Counter()
    for path in integers(header if where == "header" else metadata):
        for new in (0, 1, -1, 2**31 - 2, 2**31 - 1, 2**63 - 1):
            changed = json.loads(json.dumps([header, metadata]))
            put(changed[where == "metadata"], path, new)
            try:
                pqk_format.loads(join(*changed, tensors), max_decoded_bytes=2**24)
                outcomes["loaded"] += 1
            except FormatError as error:
                outcomes[error.code if error.field and error.got else "unnamed"] += 1
    assert outcomes["unnamed"] == 0
    assert outcomes.total() > 200
    assert outcomes["loaded"] < outcomes.total() / 2
    assert len(outcomes) >= 4


@pytest.mark.parametrize("position", [0, 4])
def test_header_length_of_every_byte(position: int) -> None:
    """Each byte of the length set to each value: none reads beyond the file."""
    for byte in range(256):
        data = bytearray(SMALL)
        data[position] = byte
        if bytes(data) != SMALL:
            error = refused(sign(bytes(data)) if position else bytes(data))
            assert error.code in ("E_HEADER_LEN", "E_HEADER", "E_PADDING", "E_FILE_LEN", "E_OFFSET")
    assert struct.unpack("<Q", SMALL[:8])[0] < 2**32
