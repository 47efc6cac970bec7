"""Damaged and hostile files: accidents are all found by the digest, attacks under a right digest never crash."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from typing import Any

import numpy as np
import pytest

from pqk_ext.errors import FormatError
from pqk_ext.runtime import Model
from pqk_ext.runtime import format as pqk_format
from pqk_ext.runtime.graph import Graph
from tests.runtime.files import GOLDEN, sign

FILES = {path.stem: path.read_bytes() for path in sorted(GOLDEN.glob("v*/*.pqk"))}
LIMIT = 2**24


def outcome(data: bytes) -> str:
    """The code of a named error, or "loaded"."""
    try:
        graph = pqk_format.loads(data, max_decoded_bytes=LIMIT)
    except FormatError as error:
        named = error.code.startswith("E_") and error.field and error.expected and error.got
        return error.code if named else "unnamed"
    assert_runs(graph)
    return "loaded"


def assert_runs(graph: Graph) -> None:
    """What the reader accepts, the engine accepts and runs."""
    for node in graph.nodes:
        for tensor in node.tensors.values():
            assert tensor.flags.c_contiguous
            assert tensor.nbytes == math.prod(tensor.shape) * tensor.dtype.itemsize
    model = Model.from_graph(graph, max_activation_bytes=2**28)
    output = model(np.full((1, *model.input_shape), 0.25, np.float32))
    assert output.shape == (1, *model.output_shape)


def flip(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(name: str) -> None:
    data = FILES[name]
    outcomes = Counter(outcome(flip(data, at, bit)) for at in range(len(data)) for bit in range(8))
    assert sum(outcomes.values()) == 8 * len(data)
    assert not {"loaded", "unnamed"} & set(outcomes)
    assert outcomes["E_DIGEST"] > len(data)


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_found(name: str) -> None:
    data = FILES[name]
    outcomes = Counter(outcome(data[:size]) for size in range(len(data)))
    header = 8 + int.from_bytes(data[:8], "little")  # a graph of dilations alone has nothing behind it
    assert set(outcomes) == {"E_TRUNCATED", "E_HEADER_LEN"} | ({"E_FILE_LEN"} if len(data) > header else set())


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_of_each_byte_under_a_right_digest(name: str) -> None:
    """Most flips of a text or a code leave something wrong; what loads keeps every rule, and runs."""
    data = FILES[name]
    outcomes = Counter(outcome(sign(flip(data, at, at % 8))) for at in range(len(data)))
    assert "unnamed" not in outcomes
    assert outcomes.total() - outcomes["loaded"] > len(data) // 3


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_under_a_right_digest(name: str) -> None:
    data = FILES[name]
    outcomes = Counter(outcome(sign(flip(data, at, bit))) for at in range(len(data)) for bit in range(8))
    assert "unnamed" not in outcomes


def test_appended_bytes_are_found() -> None:
    rng = np.random.default_rng(0)
    for data in FILES.values():
        for count in range(1, 65):
            assert outcome(data + rng.bytes(count)) == "E_FILE_LEN"


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(changed))) if changed else 0
        match int(rng.integers(6)):
            case 0 | 1 if changed:
                changed[at] ^= 1 << int(rng.integers(8))
            case 2:
                del changed[at:]
            case 3:
                changed += rng.bytes(int(rng.integers(1, 65)))
            case 4:
                size = int(rng.choice([1, 2, 4, 8]))
                changed[at : at + size] = (
                    int(rng.choice([0, 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1])).to_bytes(size, "little")
                    if size < 8
                    else b"\xff" * 8
                )
            case 5:
                other = int(rng.integers(len(changed) + 1))
                changed[at:at] = changed[other : other + int(rng.integers(1, 33))]
    return bytes(changed)


def test_ten_thousand_mutated_files_are_refused() -> None:
    rng = np.random.default_rng(1)
    names = list(FILES)
    outcomes: Counter[str] = Counter()
    while sum(outcomes.values()) < 10_000:
        original = FILES[names[sum(outcomes.values()) % len(names)]]
        data = mutate(original, rng)
        if data != original:
            outcomes[outcome(data)] += 1
    assert not {"loaded", "unnamed"} & set(outcomes)
    assert len(outcomes) >= 5


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_with_a_right_digest(name: str) -> None:
    """An attacker computes the digest too: an error that names the rule, or a graph that keeps every rule."""
    rng = np.random.default_rng(2)
    outcomes = Counter(outcome(sign(mutate(FILES[name], rng))) for _ in range(1500))
    assert "unnamed" not in outcomes
    assert len(outcomes) >= 8


HOSTILE: list[Any] = [0, 1, -1, 2, 7, 255, 256, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 1.5, 0.0, -0.0, 1e-40, 1e38, 3e38]
HOSTILE += [True, None, "", "raw", "csr", "flatten", "../x", [], [0], [1, 1], [2**40, 2**40], [[1]], {}, {"a": 1}]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every field and element of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in items for place in places(child, (*path, key)))]


def hostile_change(root: Any, rng: np.random.Generator) -> None:
    """Replaces, removes or copies one field somewhere."""
    spots = [place for place in places(root) if place and place[0] != "digest"]
    spot = spots[int(rng.integers(len(spots)))]
    target = root
    for key in spot[:-1]:
        target = target[key]
    kind = int(rng.integers(8))
    if kind == 0:
        del target[spot[-1]]
    elif kind == 1 and isinstance(target[spot[-1]], int):
        target[spot[-1]] += int(rng.choice([-2, -1, 1, 2]))
    elif kind == 2 and isinstance(target, list):
        target.insert(spot[-1], target[int(rng.integers(len(target)))])
    else:
        target[spot[-1]] = HOSTILE[int(rng.integers(len(HOSTILE)))]


@pytest.mark.parametrize("name", ["all_ops", "huffman", "four_bits"])
def test_hostile_metadata_with_a_right_digest(name: str) -> None:
    """Well-formed JSON with wrong contents, in the metadata and in the container's header."""
    rng = np.random.default_rng(3)
    data = FILES[name]
    size = int.from_bytes(data[:8], "little")
    header_text, tensors = data[8 : 8 + size], data[8 + size :]
    outcomes: Counter[str] = Counter()
    for round_ in range(1500):
        header = json.loads(header_text)
        metadata = json.loads(header["__metadata__"]["pqk"])
        if round_ % 4:
            hostile_change(metadata, rng)
        else:
            entries = {key: value for key, value in header.items() if key != "__metadata__"}
            hostile_change(entries, rng)
            header = {"__metadata__": header["__metadata__"], **entries}
        header["__metadata__"]["pqk"] = json.dumps(metadata, separators=(",", ":"))
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        outcomes[outcome(sign(struct.pack("<Q", len(raw)) + raw + tensors))] += 1
    assert "unnamed" not in outcomes
    assert {"E_GRAPH_SHAPE", "E_GRAPH_REF", "E_QPARAM", "E_HEADER", "E_SHAPE", "E_OFFSET"} <= set(outcomes)


def test_damaged_weights_with_a_right_digest() -> None:
    """The payloads alone: what only the decoders can find."""
    rng = np.random.default_rng(4)
    outcomes: Counter[str] = Counter()
    for name in sorted(set(pqk_format.CODECS) - {"raw"}):
        data = FILES[name]
        begin = 8 + int.from_bytes(data[:8], "little")
        for _ in range(800):
            changed = bytearray(data)
            for _ in range(rng.integers(1, 4)):
                changed[int(rng.integers(begin, len(data)))] ^= 1 << int(rng.integers(8))
            outcomes[outcome(sign(bytes(changed)))] += 1
    assert "unnamed" not in outcomes
    assert {"E_HUFF_STREAM", "E_HUFF_INCOMPLETE", "E_CSR_INDEX", "E_CSR_INDPTR", "loaded"} <= set(outcomes)
