"""Codecs with interleaved streams, and packed: every instruction set and thread count, and exact errors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pqk_ext import _core
from pqk_ext.errors import FormatError
from tests.core.test_codecs import FIBONACCI, decode, laplace, refused, varint

Int8 = NDArray[np.int8]
DENSE, SPARSE = "interleaved-huffman", "interleaved-sparse-huffman"
codecs = pytest.mark.parametrize("codec", [DENSE, SPARSE, "packed"])


def gaussian(rows: int, cols: int, scale: float, density: float = 1.0, largest: int = 127) -> Int8:
    rng = np.random.default_rng(rows + cols)
    values = np.clip(np.rint(rng.normal(0, scale, (rows, cols))), -largest, largest)
    return (values * (rng.random((rows, cols)) < density)).astype(np.int8)


# ------------------------------------------------------------------------------------------------ round trips

WEIGHTS: dict[str, Int8] = {
    "codes of 1 to 4 bits": np.random.default_rng(0).choice([-1, 0, 1], (40, 999), p=[0.3, 0.5, 0.2]).astype(np.int8),
    "4 bits": gaussian(65, 1027, 2.2, largest=7),
    "codes up to 7 bits": gaussian(33, 2049, 9.0, largest=40),
    "plain bits, short codes": np.random.default_rng(1).integers(-128, 128, (31, 1200)).astype(np.int8),
    "plain bits, long codes": gaussian(70, 1111, 14.0),
    "plain bits in long runs": np.r_[np.arange(-128, 128), np.zeros(4000)].astype(np.int8).reshape(2, -1),
    "fibonacci": np.repeat(np.arange(22), FIBONACCI).astype(np.int8).reshape(1, -1),
    "one value": np.full((7, 501), -128, np.int8),
    "sparse": gaussian(100, 1500, 30.0, 0.1),
    "very sparse": gaussian(50, 4000, 3.0, 0.002),
    "a chunk of zeros": np.r_[np.zeros(300_000), laplace(300_000, 2.0, 1.0)].astype(np.int8).reshape(6, -1),
    "zeros only": np.zeros((3, 70), np.int8),
    "chunks": gaussian(37, 20_011, 3.0, 0.6),
}


@codecs
@pytest.mark.parametrize("name", WEIGHTS)
def test_round_trip(codec: str, name: str, isa: str) -> None:
    weight = WEIGHTS[name]
    payload = _core.encode_weight(codec, weight, len(weight))
    for threads in (1, 2):
        decoded = _core.decode_weight(codec, payload, weight.size, len(weight), "w", threads)
        np.testing.assert_array_equal(decoded, weight.reshape(-1))


@codecs
@pytest.mark.parametrize("count", [*range(1, 20), 511, 512, 513, 1023, 1024, 1025, 1536, 2047, 4095, 4096, 5119, 5121])
def test_counts_around_blocks(codec: str, count: int, isa: str) -> None:
    for scale, density in ((1.0, 1.0), (3.0, 1.0), (25.0, 1.0), (2.0, 0.2)):
        weight = laplace(count, scale, density, seed=count)
        payload = _core.encode_weight(codec, weight, 1)
        np.testing.assert_array_equal(decode(codec, payload, count), weight)


@codecs
def test_the_payload_depends_on_the_values_alone(codec: str, isa: str) -> None:
    weight = gaussian(64, 777, 2.0, 0.5)
    payload = _core.encode_weight(codec, weight, 64)
    _core.force_isa("baseline")
    assert payload == _core.encode_weight(codec, weight.copy(), 64)


# ------------------------------------------------------------------------------------------------------ sizes


def entropy(values: Int8) -> float:
    shares = np.unique(values, return_counts=True)[1] / values.size
    return float(-(shares * np.log2(shares)).sum())


@pytest.mark.parametrize("density", [0.2, 0.1, 0.05])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1 << 16, 1 << 20])
def test_sparse_is_near_the_entropy(density: float, bits: int, count: int) -> None:
    rows, largest = 256, 2 ** (bits - 1) - 1
    weight = gaussian(rows, count // rows, largest / 3, density, largest)
    nonzeros = weight[weight != 0]
    bound = entropy((weight != 0).astype(np.int8)) + nonzeros.size / count * entropy(nonzeros)
    found = 8 * len(_core.encode_weight(SPARSE, weight, rows)) / count
    assert bound <= found <= 1.025 * bound


@pytest.mark.parametrize("scale", [5.0, 14.0, 40.0])
def test_wide_alphabets_are_near_the_entropy(scale: float) -> None:
    weight = laplace(1 << 19, scale, 1.0)
    found = 8 * len(_core.encode_weight(DENSE, weight, 256)) / weight.size
    assert entropy(weight) <= found <= 1.015 * entropy(weight)


# ------------------------------------------------------------------------------------------- hostile payloads


def test_payloads_made_by_hand() -> None:
    """The examples of FORMAT.md and ones like them."""
    dense = bytes.fromhex("01 02 80 83 7b 20 02 50 3b")
    assert _core.encode_weight(DENSE, np.array([0, 0, 0, 0, 1, 1, 2, 3], np.int8), 1) == dense
    assert decode(DENSE, dense, 8).tolist() == [0, 0, 0, 0, 1, 1, 2, 3]
    # Gaps 0, 1, 0 of codes 0 and 1; values 1, 2, 1 likewise.
    sparse = bytes.fromhex("03 01 00 07 00 01 7a 81 82 7a 03 01 01 02 02")
    assert decode(SPARSE, sparse, 6).tolist() == [1, 0, 2, 1, 0, 0]
    packed = bytes.fromhex("03 f1 08")
    assert _core.encode_weight("packed", np.array([1, -2, 3, -4, 0], np.int8), 1) == packed
    assert decode("packed", packed, 5).tolist() == [1, -2, 3, -4, 0]


def bits(text: str) -> bytes:
    text = text.replace(" ", "")
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def dense(
    table: bytes = bytes.fromhex("80 83 7b 20"), stream: bytes = b"\x50\x3b", rows: int = 1, tail: int = 2
) -> bytes:
    return varint(rows) + bytes([tail]) + table + varint(len(stream)) + stream


# Steps of lengths: 4 is what the first is against.
DENSE_CASES: dict[str, tuple[bytes, int, str, str]] = {
    "no rows in a chunk": (dense(rows=0), 8, "E_SIZE_MISMATCH", "w.rows_per_chunk"),
    "more rows than there are": (dense(rows=2), 8, "E_SIZE_MISMATCH", "w.rows_per_chunk"),
    "8 blocks in the tail": (dense(tail=8), 8, "E_SIZE_MISMATCH", "w.tail_blocks"),
    "last before first": (dense(b"\x80\x7f\x00"), 8, "E_HUFF_LENGTH", "w.streams.lengths"),
    "no symbol used": (dense(b"\x80\x80" + bits("0 110")), 8, "E_HUFF_INCOMPLETE", "w.streams.lengths"),
    "one symbol of length 2": (dense(b"\x80\x80" + bits("0 11101")), 8, "E_HUFF_INCOMPLETE", "w.streams.lengths"),
    "three of length 1": (dense(b"\x80\x82" + bits("0 111101 0 0")), 8, "E_HUFF_OVERSUBSCRIBED", "w.streams.lengths"),
    "127 of 128": (dense(b"\x80\x86" + bits("0 111101" + 6 * "100")), 8, "E_HUFF_INCOMPLETE", "w.streams.lengths"),
    "length 8": (dense(b"\x80\x80" + bits("0 1111100")), 8, "E_HUFF_LENGTH", "w.streams.lengths"),
    "length 0": (dense(b"\x80\x80" + bits("0 1111101")), 8, "E_HUFF_LENGTH", "w.streams.lengths"),
    "endless step": (dense(b"\x80\x80" + b"\x7f" + b"\xff" * 3), 8, "E_HUFF_LENGTH", "w.streams.lengths"),
    "run that is not aligned": (dense(b"\x81\x84" + bits("1 111101 100")), 8, "E_HUFF_LENGTH", "w.streams.lengths"),
    "run past the last": (dense(b"\x80\x80" + bits("1 111101 100")), 8, "E_HUFF_LENGTH", "w.streams.lengths"),
    "8 plain bits": (dense(b"\x00\xff" + bits("1 111101 111111100")), 8, "E_HUFF_LENGTH", "w.streams.lengths"),
    "no number of plain bits": (dense(b"\x80\x81" + bits("1 111101 110")), 8, "E_HUFF_LENGTH", "w.streams.lengths"),
    "one token with plain bits": (
        dense(b"\x80\x81" + bits("1 111101 100")),
        8,
        "E_HUFF_INCOMPLETE",
        "w.streams.lengths",
    ),
    "spare bit of the table": (dense(bytes.fromhex("80 83 7b 21")), 8, "E_HUFF_LENGTH", "w.streams.lengths"),
    "table cut": (b"\1\0\x80\xff\0", 8, "E_TRUNCATED", "w.streams.lengths"),
    "chunk cut": (dense()[:-1], 8, "E_TRUNCATED", "w.streams"),
    "a byte after the chunk": (dense() + b"\0", 8, "E_SIZE_MISMATCH", "w"),
    "a byte more in the chunk": (dense(stream=b"\x50\x3b\0"), 8, "E_HUFF_STREAM", "w.streams"),
    "a byte less in the chunk": (dense(stream=b"\x50"), 8, "E_HUFF_STREAM", "w.streams"),
    "spare bit set": (dense(stream=b"\x50\x7b"), 8, "E_HUFF_STREAM", "w.streams"),
    "more symbols than bits": (dense(), 17, "E_BOMB", "w.streams"),
    "1 TiB of symbols": (dense(), 2**40, "E_BOMB", "w.streams"),
    "a block without its buffers": (dense(stream=bytes(100), tail=0), 512, "E_HUFF_STREAM", "w.streams"),
    "a block without its words": (dense(stream=b"\xff" * 512, tail=0), 2048, "E_HUFF_STREAM", "w.streams"),
    "a 1 in a code of 0 only": (dense(b"\x80\x80" + bits("0 111101"), b"\2"), 8, "E_HUFF_STREAM", "w.streams"),
    "a byte more of 0 only": (dense(b"\x80\x80" + bits("0 111101"), b"\0\0"), 8, "E_HUFF_STREAM", "w.streams"),
    "bytes for no values": (dense(), 0, "E_SIZE_MISMATCH", "w"),
    "nothing for values": (b"", 8, "E_TRUNCATED", "w.rows_per_chunk"),
}


@pytest.mark.parametrize("name", DENSE_CASES)
def test_hostile_dense(name: str, isa: str) -> None:
    payload, count, code, field = DENSE_CASES[name]
    error = refused(DENSE, payload, count)
    assert (error.code, error.field) == (code, field)
    assert error.expected
    assert error.got


ONES = bytes.fromhex("00 01 7a")  # two symbols, 0 and 1, of length 1
VALUES = bytes.fromhex("81 82 7a")  # the values 1 and 2


def sparse(
    gaps: bytes = ONES,
    values: bytes = VALUES,
    entries: list[tuple[int, bytes, bytes]] | None = None,
    tokens: int = 3,
    longest: int = 7,
) -> bytes:
    entries = [(3, b"\x02", b"\x02")] if entries is None else entries
    out = varint(tokens) + bytes([1, 0, longest]) + gaps + values
    for count, gap_bytes, value_bytes in entries:
        out += varint(count) + varint(len(gap_bytes)) + varint(len(value_bytes))
    return out + b"".join(gap_bytes + value_bytes for _, gap_bytes, value_bytes in entries)


WITH_0 = bytes.fromhex("80 81 7a")  # the values 0 and 1
SPARSE_CASES: dict[str, tuple[bytes, int, int, str, str]] = {
    "more tokens than weights": (sparse(tokens=7), 6, 1, "E_CSR_NNZ", "w.tokens"),
    "bytes for no tokens": (b"\0\0", 6, 1, "E_SIZE_MISMATCH", "w"),
    "longest gap below the table's": (sparse(longest=0), 6, 1, "E_VALUE_RANGE", "w.gaps"),
    "position at the end": (sparse(), 3, 1, "E_CSR_INDEX", "w.gaps"),
    "chunks of fewer tokens": (sparse(tokens=4), 6, 1, "E_CSR_NNZ", "w.chunks"),
    "chunk of more tokens than weights": (
        sparse(entries=[(3, b"\2", b"\2"), (0, b"", b"")]),
        4,
        2,
        "E_CSR_NNZ",
        "w.chunks",
    ),
    "chunks cut": (sparse(entries=[]), 6, 1, "E_TRUNCATED", "w.chunks"),
    "bytes of an empty chunk": (
        sparse(entries=[(3, b"\2", b"\2"), (0, b"\0", b"")]),
        12,
        2,
        "E_SIZE_MISMATCH",
        "w.chunks",
    ),
    "more tokens than bits": (sparse(entries=[(9, b"\2", b"\2")], tokens=9), 60, 1, "E_BOMB", "w.gaps"),
    "more values than bits": (sparse(entries=[(9, b"\2\0", b"\2")], tokens=9), 60, 1, "E_BOMB", "w.values"),
    "gap stream too long": (sparse(entries=[(3, b"\2\0", b"\2")]), 6, 1, "E_HUFF_STREAM", "w.gaps"),
    "value stream too long": (sparse(entries=[(3, b"\2", b"\2\0")]), 6, 1, "E_HUFF_STREAM", "w.values"),
    "a 0 behind a short gap": (sparse(values=WITH_0), 6, 1, "E_VALUE_RANGE", "w.values"),
    "a 0 at the end": (sparse(values=WITH_0, entries=[(3, b"\7", b"\3")], longest=1), 9, 1, "E_CSR_NNZ", "w.values"),
    "stream cut": (sparse()[:-1], 6, 1, "E_TRUNCATED", "w.values"),
    "a byte more": (sparse() + b"\0", 6, 1, "E_SIZE_MISMATCH", "w"),
    "bad table": (sparse(values=b"\x81\x81\0"), 6, 1, "E_HUFF_INCOMPLETE", "w.values.lengths"),
}


@pytest.mark.parametrize("name", SPARSE_CASES)
def test_hostile_sparse(name: str, isa: str) -> None:
    payload, count, rows, code, field = SPARSE_CASES[name]
    error = refused(SPARSE, payload, count, rows)
    assert (error.code, error.field) == (code, field)
    assert error.expected
    assert error.got


PACKED_CASES: dict[str, tuple[bytes, int, str, str]] = {
    "no bits": (b"\0", 0, "E_SIZE_MISMATCH", "w.bits"),
    "9 bits": (b"\x09" + bytes(9), 8, "E_SIZE_MISMATCH", "w.bits"),
    "cut": (b"\x03\0", 5, "E_TRUNCATED", "w.values"),
    "a byte more": (b"\x03\0\0\0", 5, "E_SIZE_MISMATCH", "w"),
    "spare bit set": (b"\x03\0\x80", 5, "E_PADDING", "w.values"),
    "1 TiB of values": (b"\x01\0", 2**43, "E_TRUNCATED", "w.values"),
    "nothing": (b"", 0, "E_TRUNCATED", "w.bits"),
}


@pytest.mark.parametrize("name", PACKED_CASES)
def test_hostile_packed(name: str) -> None:
    payload, count, code, field = PACKED_CASES[name]
    error = refused("packed", payload, count)
    assert (error.code, error.field) == (code, field)


@codecs
def test_every_changed_byte_is_refused_or_decoded(codec: str, isa: str) -> None:
    """And alike on every instruction set: what a payload means is not the machine's choice."""
    rng = np.random.default_rng(5)
    weight = gaussian(4, 4000, 3.0, 0.4)
    payload = _core.encode_weight(codec, weight, 4)
    at = np.r_[: min(60, len(payload)), rng.integers(0, len(payload), 100)]
    for index in at.tolist():
        changed = bytearray(payload)
        changed[index] ^= 1 << int(rng.integers(8))
        outcomes = []
        for name in ("baseline", isa):
            _core.force_isa(name)
            try:
                outcomes.append(_core.decode_weight(codec, bytes(changed), weight.size, 4, "w").tobytes())
            except FormatError as error:
                outcomes.append(error.code.encode())
        assert outcomes[0] == outcomes[1]


@codecs
def test_a_payload_cut_anywhere_is_refused(codec: str, isa: str) -> None:
    weight = gaussian(2, 3000, 2.0, 0.5)
    payload = _core.encode_weight(codec, weight, 2)
    for size in [*range(0, len(payload), 37), len(payload) - 1]:
        refused(codec, payload[:size], weight.size, 2)
