"""Weight codecs: round trips, sizes against theory, and hostile payloads with the exact error of each."""

from __future__ import annotations

import heapq
import math
import resource
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pqk_ext import _core
from pqk_ext.errors import FormatError

Int8 = NDArray[np.int8]
CODECS = _core.codec_names()
codecs = pytest.mark.parametrize("codec", CODECS)


def decode(codec: str, payload: bytes, count: int, rows: int = 1) -> Int8:
    return _core.decode_weight(codec, payload, count, rows, "w")


def laplace(count: int, scale: float, density: float, seed: int = 0) -> Int8:
    rng = np.random.default_rng(seed)
    values = np.clip(np.rint(rng.laplace(0, scale, count)), -127, 127)
    return (values * (rng.random(count) < density)).astype(np.int8)


def refused(codec: str, payload: bytes, count: int, rows: int = 1) -> FormatError:
    with pytest.raises(FormatError) as caught:
        decode(codec, payload, count, rows)
    return caught.value


# ------------------------------------------------------------------------------------------------ round trips


@codecs
@settings(max_examples=150, deadline=None)
@given(
    values=st.one_of(
        hnp.arrays(np.int8, st.tuples(st.integers(0, 5), st.integers(1, 300))),
        hnp.arrays(np.int8, (3, 700), elements=st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1, -128]), fill=st.just(0)),
    )
)
def test_round_trip(codec: str, values: Int8) -> None:
    rows = values.shape[0]
    payload = _core.encode_weight(codec, values, rows)
    decoded = _core.decode_weight(codec, payload, values.size, rows, "w")
    np.testing.assert_array_equal(decoded, values.reshape(-1))
    assert payload == _core.encode_weight(codec, values.copy(), rows)


FIBONACCI = [1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584, 4181, 6765, 10946, 17711]
EXTREMES = {
    "one symbol": np.full(1000, 5, np.int8),
    "all zero": np.zeros(100_000, np.int8),
    "256 equal symbols": np.tile(np.arange(-128, 128), 7).astype(np.int8),
    "last only": np.r_[np.zeros(99_999), -1].astype(np.int8),
    "first only": np.r_[-128, np.zeros(99_999)].astype(np.int8),
    "every gap": np.concatenate([np.r_[np.zeros(gap), 1] for gap in range(600)]).astype(np.int8),
    "fibonacci": np.repeat(np.arange(22), FIBONACCI).astype(np.int8),
    "dense": laplace(100_003, 30.0, 1.0),
    "sparse": laplace(100_003, 10.0, 0.03),
}


@codecs
@pytest.mark.parametrize("name", EXTREMES)
def test_round_trip_of_extremes(codec: str, name: str) -> None:
    values = EXTREMES[name]
    payload = _core.encode_weight(codec, values, 1)
    np.testing.assert_array_equal(decode(codec, payload, len(values)), values)


@codecs
def test_encoder_names_bad_arguments(codec: str) -> None:
    with pytest.raises(ValueError, match="rows must divide the number of values, 10, got 3"):
        _core.encode_weight(codec, np.zeros(10, np.int8), 3)
    with pytest.raises(TypeError):
        _core.encode_weight(codec, np.zeros(10, np.uint8), 1)
    with pytest.raises(TypeError):
        _core.encode_weight(codec, np.zeros((4, 4), np.int8)[:, ::2], 1)
    error = refused("zip", b"", 0)
    assert (error.code, error.field, error.got) == ("E_ENUM", "w.codec", "zip")


# ------------------------------------------------------------------------------------------------------ sizes


def huffman_cost(counts: list[int]) -> int:
    """Bits of an unlimited Huffman code: the sum of all inner nodes."""
    heap = list(counts)
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def stream_bits(payload: bytes) -> int:
    """Bits of the codes alone, from the payload's own table."""
    _, begin = parse_lengths(payload[1:])
    return 8 * (len(payload) - 1 - begin) - payload[0]


@pytest.mark.parametrize(("scale", "density"), [(2.0, 1.0), (9.0, 1.0), (20.0, 0.4), (5.0, 0.1)])
def test_huffman_is_optimal(scale: float, density: float) -> None:
    count = 1_000_000
    values = laplace(count, scale, density)
    payload = _core.encode_weight("huffman", values, 1)
    lengths, _ = parse_lengths(payload[1:])
    counts = Counter(values.tolist())
    unlimited = huffman_cost(list(counts.values()))
    assert stream_bits(payload) == sum(counts[symbol - 128] * length for symbol, length in lengths.items())
    assert sum(2.0**-length for length in lengths.values()) == 1.0
    # An eighth of a percent pays for a smaller table, half a percent for the limit of 12 bits where it binds.
    assert unlimited <= stream_bits(payload) <= (1.00125 if max(lengths.values()) < 12 else 1.006) * unlimited
    entropy = -sum(n / count * math.log2(n / count) for n in counts.values())
    assert entropy <= stream_bits(payload) / count < entropy + 1


def test_length_limit_binds() -> None:
    lengths, _ = parse_lengths(_core.encode_weight("huffman", EXTREMES["fibonacci"], 1)[1:])
    assert max(lengths.values()) == 12
    assert sum(2.0**-length for length in lengths.values()) == 1.0


@pytest.mark.parametrize("density", [0.2, 0.1, 0.05])
def test_sparse_form_is_near_the_entropy(density: float) -> None:
    values = laplace(1_000_000, 3.0, density)
    shares = np.unique(values, return_counts=True)[1] / len(values)
    entropy = -float((shares * np.log2(shares)).sum())
    bits = {codec: 8 * len(_core.encode_weight(codec, values, 1000)) / len(values) for codec in CODECS}
    assert bits["sparse-huffman"] <= 1.03 * entropy
    assert bits["sparse-ans"] <= 1.005 * entropy
    assert min(bits, key=lambda codec: bits[codec]) == "sparse-ans"


def test_table_of_a_small_layer_is_small() -> None:
    values = laplace(4096, 15.0, 0.2)
    payload = _core.encode_weight("huffman", values, 64)
    lengths, size = parse_lengths(payload[1:])
    assert len(lengths) > 90
    assert size <= 40


# ---------------------------------------------------------------------------------- hostile Huffman payloads


def token(length: int, previous: int) -> str:
    delta = length - previous
    if length == 0:
        return "110"
    if delta == 0:
        return "0"
    sign = "1" if delta < 0 else "0"
    return "10" + sign if abs(delta) == 1 else "111" + "1" * (abs(delta) - 2) + "0" + sign


def table(lengths: list[int], first: int = 128, spare: str = "0") -> bytes:
    """A length table written here, by the words of FORMAT.md; it may break every rule."""
    text, previous = "", 8
    for length in lengths:
        text += token(length, previous)
        previous = length or previous
    text += spare * (-len(text) % 8)
    packed = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    return bytes([first, first + len(lengths) - 1]) + packed


def parse_lengths(data: bytes) -> tuple[dict[int, int], int]:
    """The code lengths of a table, by symbol, and the table's size."""
    text = "".join(f"{byte:08b}" for byte in data[2:])
    lengths: dict[int, int] = {}
    at, previous = 0, 8
    for symbol in range(data[0], data[1] + 1):
        candidates = {length: token(length, previous) for length in range(13)}
        length = next(length for length, code in candidates.items() if text.startswith(code, at))
        at += len(candidates[length])
        if length:
            lengths[symbol] = previous = length
    return lengths, 2 + (at + 7) // 8


VALUES = np.array([0, 0, 0, 0, 1, 1, 2, 3], np.int8)  # lengths 1, 2, 3, 3: 14 bits
TABLE = table([1, 2, 3, 3])
STREAM = bytes([0b00001010, 0b11011100])
PAYLOAD = bytes([2]) + TABLE + STREAM


def test_a_payload_made_by_hand() -> None:
    assert _core.encode_weight("huffman", VALUES, 1) == PAYLOAD
    assert decode("huffman", PAYLOAD, 8).tolist() == VALUES.tolist()


HUFFMAN_CASES: dict[str, tuple[bytes, int, str, str]] = {
    "no symbol used": (b"\0" + table([0, 0, 0]) + STREAM, 8, "E_HUFF_INCOMPLETE", "w.lengths"),
    "one symbol of length 2": (b"\0" + table([2]) + b"\0", 4, "E_HUFF_INCOMPLETE", "w.lengths"),
    "three of length 1": (b"\0" + table([1, 1, 1]) + STREAM, 8, "E_HUFF_OVERSUBSCRIBED", "w.lengths"),
    "4095 of 4096": (b"\0" + table(list(range(1, 13))) + STREAM, 8, "E_HUFF_INCOMPLETE", "w.lengths"),
    "length 13": (b"\0" + table([12, 13]) + STREAM, 8, "E_HUFF_LENGTH", "w.lengths"),
    "length 0 by a step": (b"\0\x80\x80\xff\xe4" + STREAM, 8, "E_HUFF_LENGTH", "w.lengths"),
    "endless step": (b"\0\x80\x80" + b"\xff" * 9, 8, "E_HUFF_LENGTH", "w.lengths"),
    "last before first": (b"\0\x80\x7f" + STREAM, 8, "E_HUFF_LENGTH", "w.lengths"),
    "spare bits of the table": (b"\2" + table([1, 2, 3, 3], spare="1") + STREAM, 8, "E_HUFF_LENGTH", "w.lengths"),
    "table cut": (b"\0\x80\xff\0", 8, "E_TRUNCATED", "w.lengths"),
    "one byte short": (PAYLOAD[:-1], 8, "E_HUFF_STREAM", "w.stream"),
    "one byte long": (PAYLOAD + b"\0", 8, "E_HUFF_STREAM", "w.stream"),
    "spare bit set": (PAYLOAD[:-1] + b"\xdd", 8, "E_HUFF_STREAM", "w.stream"),
    "fewer spare bits": (b"\1" + PAYLOAD[1:], 8, "E_HUFF_STREAM", "w.stream"),
    "8 spare bits": (b"\x08" + PAYLOAD[1:], 8, "E_HUFF_STREAM", "w.stream"),
    "one symbol too many": (PAYLOAD, 9, "E_HUFF_STREAM", "w.stream"),
    "one symbol too few": (PAYLOAD, 7, "E_HUFF_STREAM", "w.stream"),
    "more symbols than bits": (PAYLOAD, 15, "E_BOMB", "w.stream"),
    "1 TiB of symbols": (PAYLOAD, 2**40, "E_BOMB", "w.stream"),
    "symbols without a stream": (b"\0" + TABLE, 8, "E_BOMB", "w.stream"),
    "a 1 in a code of 0 only": (b"\0" + table([1]) + b"\x10", 8, "E_HUFF_STREAM", "w.stream"),
    "bytes for no values": (PAYLOAD, 0, "E_SIZE_MISMATCH", "w"),
    "nothing for values": (b"", 8, "E_TRUNCATED", "w.spare_bits"),
}


@pytest.mark.parametrize("name", HUFFMAN_CASES)
def test_hostile_huffman(name: str) -> None:
    payload, count, code, field = HUFFMAN_CASES[name]
    error = refused("huffman", payload, count)
    assert (error.code, error.field) == (code, field)
    assert error.expected
    assert error.got


def varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


GAPS, NONZEROS = table([1, 1], first=0), table([1, 1], first=129)  # gaps 0 and 1, values 1 and 2
SPARSE = np.array([1, 0, 2, 1, 0, 0], np.int8)  # gaps 0, 1, 0


def sparse(nnz: int, tokens: int, gap_bytes: int, escape: int, spare: int, rest: bytes) -> bytes:
    return varint(nnz) + varint(tokens) + varint(gap_bytes) + bytes([escape, spare]) + rest


SPARSE_REST = GAPS + NONZEROS + b"\x40\x40"
ESCAPED = GAPS + NONZEROS  # with escape 1: token 1 is one zero and no value
SPARSE_CASES: dict[str, tuple[bytes, int, str, str]] = {
    "more values than elements": (varint(7), 6, "E_CSR_NNZ", "w.nnz"),
    "bytes after no values": (b"\0\0", 6, "E_SIZE_MISMATCH", "w"),
    "overlong number": (b"\x80\0", 6, "E_VARINT", "w.nnz"),
    "number of 2^32": (b"\x80\x80\x80\x80\x10", 2**33, "E_VARINT", "w.nnz"),
    "cut after nnz": (b"\1", 6, "E_TRUNCATED", "w.tokens"),
    "escape 0": (sparse(3, 3, 1, 0, 5 + 8 * 5, SPARSE_REST), 6, "E_VALUE_RANGE", "w.tokens"),
    "fewer tokens than values": (sparse(3, 2, 1, 7, 5 + 8 * 5, SPARSE_REST), 6, "E_VALUE_RANGE", "w.tokens"),
    "token above the escape": (
        sparse(3, 3, 1, 7, 45, table([1, 1], first=7) + NONZEROS + b"\0\0"),
        6,
        "E_VALUE_RANGE",
        "w.gaps",
    ),
    "a code for value 0": (
        sparse(3, 3, 1, 7, 45, GAPS + table([1, 1], first=128) + b"\0\0"),
        6,
        "E_VALUE_RANGE",
        "w.values",
    ),
    "gap stream longer than the payload": (sparse(3, 3, 9, 7, 45, SPARSE_REST), 6, "E_TRUNCATED", "w.gaps.stream"),
    "more tokens than bits": (sparse(3, 9, 1, 7, 40, SPARSE_REST), 60, "E_BOMB", "w.gaps.stream"),
    "more values than bits": (
        sparse(3, 3, 1, 7, 5, GAPS + NONZEROS + b"\x40"),
        6,
        "E_BOMB",
        "w.values.stream",
    ),
    "position past the end": (sparse(3, 3, 1, 7, 45, SPARSE_REST), 3, "E_CSR_INDEX", "w.gaps"),
    "more positions than values": (
        sparse(2, 3, 1, 7, 5 + 8 * 6, GAPS + NONZEROS + b"\x40\x40"),
        6,
        "E_CSR_NNZ",
        "w.gaps",
    ),
    "escape at the end": (sparse(1, 2, 1, 1, 6 + 8 * 7, ESCAPED + b"\x40\0"), 6, "E_CSR_NNZ", "w.gaps"),
    "more spare bits than a byte": (sparse(3, 3, 1, 7, 5 + 8 * 9, SPARSE_REST), 6, "E_HUFF_STREAM", "w.values.stream"),
    "gap spare bit set": (
        sparse(3, 3, 1, 7, 45, GAPS + NONZEROS + b"\x41\x40"),
        6,
        "E_HUFF_STREAM",
        "w.gaps.stream",
    ),
    "a byte too many": (sparse(3, 3, 1, 7, 45, SPARSE_REST + b"\0"), 6, "E_HUFF_STREAM", "w.values.stream"),
}


def test_a_sparse_payload_made_by_hand() -> None:
    payload = sparse(3, 3, 1, 7, 5 + 8 * 5, SPARSE_REST)
    assert _core.encode_weight("sparse-huffman", SPARSE, 1) == payload
    assert decode("sparse-huffman", payload, 6).tolist() == SPARSE.tolist()
    escaped = sparse(1, 4, 1, 1, 4 + 8 * 7, ESCAPED + b"\xe0\x80")  # three escapes, then value 2
    assert decode("sparse-huffman", escaped, 6).tolist() == [0, 0, 0, 2, 0, 0]


@pytest.mark.parametrize("name", SPARSE_CASES)
def test_hostile_sparse_huffman(name: str) -> None:
    payload, count, code, field = SPARSE_CASES[name]
    error = refused("sparse-huffman", payload, count)
    assert (error.code, error.field) == (code, field)


# ------------------------------------------------------------------------------- hostile raw, bitmask and CSR


def csr(width: int, nnz: int, crow: list[int], steps: list[int], values: list[int]) -> bytes:
    pointers = np.array(crow, "<i8").astype("<u4").tobytes()
    columns = b"".join(step.to_bytes(max(width, 1), "little") for step in steps)
    return bytes([width]) + varint(nnz) + pointers + columns + np.array(values, np.int8).tobytes()


OTHER_CASES: dict[str, tuple[str, bytes, int, int, str, str]] = {
    "raw short": ("raw", b"abc", 4, 1, "E_SIZE_MISMATCH", "w"),
    "raw long": ("raw", b"abcde", 4, 1, "E_SIZE_MISMATCH", "w"),
    "mask cut": ("bitmask", b"\1", 9, 1, "E_TRUNCATED", "w.mask"),
    "mask values cut": ("bitmask", b"\7\1\2", 8, 1, "E_TRUNCATED", "w.values"),
    "mask values left": ("bitmask", b"\1\1\2", 8, 1, "E_SIZE_MISMATCH", "w"),
    "mask spare bit": ("bitmask", b"\x81\1\1", 7, 1, "E_PADDING", "w.mask"),
    "mask value 0": ("bitmask", b"\3\1\0", 8, 1, "E_VALUE_RANGE", "w.values"),
    "csr width 3": ("csr", csr(3, 0, [0, 0], [], []), 4, 1, "E_CSR_WIDTH", "w.width"),
    "csr nnz": ("csr", csr(1, 5, [0, 5], [0, 1, 1, 1, 1], [1] * 5), 4, 1, "E_CSR_NNZ", "w.nnz"),
    "csr first pointer": ("csr", csr(1, 2, [1, 2, 2], [0, 1], [1, 1]), 4, 2, "E_CSR_INDPTR", "w.crow_indices"),
    "csr decreasing": ("csr", csr(1, 2, [0, 2, 1, 2], [0, 1], [1, 1]), 6, 3, "E_CSR_INDPTR", "w.crow_indices"),
    "csr last pointer": ("csr", csr(1, 2, [0, 1, 1], [0, 1], [1, 1]), 4, 2, "E_CSR_INDPTR", "w.crow_indices"),
    "csr pointer past int32": ("csr", csr(1, 1, [0, -5, 1], [0], [1]), 4, 2, "E_CSR_INDPTR", "w.crow_indices"),
    "csr column": ("csr", csr(1, 1, [0, 1, 1], [2], [1]), 4, 2, "E_CSR_INDEX", "w.col_indices"),
    "csr repeated": ("csr", csr(1, 2, [0, 2, 2], [1, 0], [1, 1]), 4, 2, "E_CSR_INDEX", "w.col_indices"),
    "csr wraps": (
        "csr",
        csr(4, 2, [0, 2, 2], [1, 2**32 - 1], [1, 1]),
        4,
        2,
        "E_CSR_INDEX",
        "w.col_indices",
    ),
    "csr pointers cut": ("csr", b"\1\0\0\0\0", 4, 2, "E_TRUNCATED", "w.crow_indices"),
    "csr columns cut": ("csr", csr(4, 2, [0, 2, 2], [0], []), 4, 2, "E_TRUNCATED", "w.col_indices"),
    "csr values cut": ("csr", csr(1, 2, [0, 2, 2], [0, 1], [1]), 4, 2, "E_TRUNCATED", "w.values"),
    "csr values left": ("csr", csr(1, 1, [0, 1, 1], [0], [1, 1]), 4, 2, "E_SIZE_MISMATCH", "w"),
    "csr value 0": ("csr", csr(1, 1, [0, 1, 1], [0], [0]), 4, 2, "E_VALUE_RANGE", "w.values"),
    "csr rows do not divide": ("csr", csr(1, 0, [0, 0, 0, 0], [], []), 4, 3, "E_SHAPE", "w"),
    "csr 2^31 columns": ("csr", csr(1, 0, [0, 0], [], []), 2**31, 1, "E_CSR_NNZ", "w.nnz"),
}


@pytest.mark.parametrize("name", OTHER_CASES)
def test_hostile_payloads(name: str) -> None:
    codec, payload, count, rows, code, field = OTHER_CASES[name]
    error = refused(codec, payload, count, rows)
    assert (error.code, error.field) == (code, field)


# ------------------------------------------------------------------------------------------------- mutations


def flip(data: bytearray, rng: np.random.Generator) -> None:
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)


def cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[rng.integers(len(data)) :]


def append(data: bytearray, rng: np.random.Generator) -> None:
    data += rng.bytes(rng.integers(1, 9))


def overwrite(data: bytearray, rng: np.random.Generator) -> None:
    at = rng.integers(len(data))
    data[at : at + 4] = rng.choice(np.array([0, 1, 0x7F, 0x80, 0xFF], np.uint8), 4).tobytes()


MUTATIONS: list[Callable[[bytearray, np.random.Generator], None]] = [flip, cut, append, overwrite]


@codecs
def test_mutated_payloads_give_an_array_or_a_named_error(codec: str) -> None:
    rng = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    for seed, (scale, density) in enumerate([(2.0, 0.2), (20.0, 0.6), (30.0, 1.0)]):
        values = laplace(600, scale, density, seed)
        original = _core.encode_weight(codec, values, 6)
        for _ in range(3000):
            data = bytearray(original)
            for _ in range(rng.integers(1, 4)):
                MUTATIONS[rng.integers(4)](data, rng)
                data = data or bytearray(1)
            try:
                decoded = decode(codec, bytes(data), 600, 6)
            except FormatError as error:
                named = error.code.startswith("E_") and error.field.startswith("w")
                outcomes[error.code if named else "unnamed"] += 1
            else:
                assert decoded.shape == (600,)
                # A payload is accepted only as one encoding of what it decodes to.
                again = _core.encode_weight(codec, decoded, 6)
                np.testing.assert_array_equal(decode(codec, again, 600, 6), decoded)
                outcomes["accepted"] += 1
    assert sum(outcomes.values()) == 9000
    assert len(outcomes) >= 2
    assert "unnamed" not in outcomes


def test_bombs_take_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for count in (2**32, 2**40, 2**62):
        for codec in ("raw", "bitmask", "huffman"):
            assert refused(codec, PAYLOAD, count).code in ("E_SIZE_MISMATCH", "E_TRUNCATED", "E_BOMB")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024
