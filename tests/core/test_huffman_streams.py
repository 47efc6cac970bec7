"""Long Huffman streams, which are decoded at several places at once: equal to a decoder that reads bit by bit, also
where codes never fall into step and where the stream is damaged.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pqk_ext import _core
from pqk_ext.errors import FormatError
from tests.core.test_codecs import parse_lengths

COUNT = 40_000


def normal(scale: float, most: int, count: int = COUNT) -> NDArray[np.int8]:
    values = np.rint(np.random.default_rng(0).normal(0, scale, count))
    return np.clip(values, -most, most).astype(np.int8)


def even_lengths() -> NDArray[np.int8]:
    """Codes of 4 and 8 bits only."""
    symbols = np.repeat(np.arange(16 + 15), [16] * 15 + [1] * 16)
    return np.random.default_rng(0).permutation(np.resize(symbols, COUNT)).astype(np.int8)


VALUES = {
    "8 bits": normal(30, 127),
    "4 bits": normal(2, 7, 120_000),
    "mostly one": normal(0.2, 1, 400_000),
    "codes of 8 bits": np.resize(np.arange(-128, 128), COUNT).astype(np.int8),
    "codes of 4 and 8 bits": even_lengths(),
    "all": np.concatenate([normal(30, 127), normal(2, 7), normal(30, 127)]),
}


def bit_by_bit(payload: bytes, count: int) -> NDArray[np.int8] | None:
    """What a `huffman` payload holds; None if it does not hold exactly that many."""
    lengths, size = parse_lengths(payload[1:])
    codes: dict[tuple[int, int], int] = {}
    code, previous = 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in lengths.items()):
        code = code << (length - previous) if previous else 0
        codes[length, code] = symbol
        code, previous = code + 1, length
    bits = np.unpackbits(np.frombuffer(payload[1 + size :], np.uint8))
    values: list[int] = []
    word = width = 0
    for bit in bits[: bits.size - payload[0]].tolist():
        word, width = word << 1 | bit, width + 1
        if (width, word) in codes:
            values.append(codes[width, word] - 128)
            word = width = 0
    return np.array(values, np.int8) if width == 0 and len(values) == count else None


@pytest.mark.parametrize("name", VALUES)
def test_long_streams(name: str) -> None:
    values = VALUES[name]
    payload = _core.encode_weight("huffman", values, 1)
    assert np.array_equal(_core.decode_weight("huffman", payload, values.size, 1, "w"), values)
    assert np.array_equal(bit_by_bit(payload, values.size), values)
    sparse = np.where(np.random.default_rng(1).random(values.size) < 0.3, values, 0).astype(np.int8)
    payload = _core.encode_weight("sparse-huffman", sparse, 1)
    assert np.array_equal(_core.decode_weight("sparse-huffman", payload, sparse.size, 1, "w"), sparse)


@pytest.mark.parametrize("name", ["8 bits", "codes of 4 and 8 bits", "codes of 8 bits"])
def test_damaged_long_streams(name: str) -> None:
    """A bit more or less is another stream, which holds other values or not so many."""
    values = VALUES[name]
    payload = _core.encode_weight("huffman", values, 1)
    rng = np.random.default_rng(0)
    for _ in range(6):
        damaged = bytearray(payload)
        damaged[int(rng.integers(len(payload) // 2, len(payload) - 1))] ^= 1 << int(rng.integers(8))
        expected = bit_by_bit(bytes(damaged), values.size)
        if expected is None:
            with pytest.raises(FormatError) as caught:
                _core.decode_weight("huffman", bytes(damaged), values.size, 1, "w")
            assert caught.value.code == "E_HUFF_STREAM"
        else:
            assert np.array_equal(_core.decode_weight("huffman", bytes(damaged), values.size, 1, "w"), expected)


@pytest.mark.parametrize("more", [-5000, -1, 1, 5000])
@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_count(name: str, more: int) -> None:
    values = VALUES[name]
    payload = _core.encode_weight("huffman", values, 1)
    with pytest.raises(FormatError) as caught:
        _core.decode_weight("huffman", payload, values.size + more, 1, "w")
    assert caught.value.code == "E_HUFF_STREAM"
