"""ANS codecs: sizes beside the entropy, equal symbols on every instruction set, and hostile payloads by name."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pqk_ext import _core
from pqk_ext.errors import FormatError
from pqk_ext.runtime.entropy import bound

Int8 = NDArray[np.int8]

# The example of FORMAT.md: 0 0 0 0 1 1 2 3.
EXAMPLE = np.array([0, 0, 0, 0, 1, 1, 2, 3], np.int8)
TABLE = bytes.fromhex("00 80 83 ff 64 00")
STATE = bytes.fromhex("00 80 7e 40")
PAYLOAD = b"\0" + TABLE + STATE


def weights(count: int, bits: int, zeros: float) -> Int8:
    values = np.random.default_rng(count + bits).standard_normal(count)
    values[np.argsort(np.abs(values))[: round(zeros * count)]] = 0
    largest = 2 ** (bits - 1) - 1
    return np.rint(values / np.abs(values).max() * largest).astype(np.int8)


def decode(codec: str, payload: bytes, count: int) -> Int8:
    return _core.decode_weight(codec, payload, count, 1, "w")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.8, 0.9, 0.95])
def test_sizes_are_the_entropy(bits: int, zeros: float) -> None:
    """Everything included, where a Huffman code is up to 5 % above."""
    values = weights(262_144, bits, zeros)
    smallest = min(len(_core.encode_weight(codec, values, 1)) for codec in ("ans", "sparse-ans"))
    least = bound(values).bits / 8
    assert 0.9999 * least <= smallest <= 1.006 * least + 8


@pytest.mark.parametrize("zeros", [0.8, 0.9, 0.95])
def test_tables_of_a_small_layer_are_small(zeros: float) -> None:
    """64 x 64 weights of 8 bits: values and their mirror images share an entry of the table."""
    values = weights(4096, 8, zeros)
    payload = _core.encode_weight("sparse-ans", values, 64)
    tables = _core.payload_parts("sparse-ans", payload, 4096, 64, "w")["tables"]
    assert tables <= 56
    assert (
        tables
        <= 0.6
        * _core.payload_parts("sparse-huffman", _core.encode_weight("sparse-huffman", values, 64), 4096, 64, "w")[
            "tables"
        ]
    )


@pytest.mark.parametrize("codec", ["ans", "sparse-ans"])
@pytest.mark.parametrize("count", [300_000, 300_031, 40_007, 20_000, 10_003, 5_001, 700, 1])
@pytest.mark.parametrize("zeros", [0.0, 0.7])
def test_every_instruction_set_decodes_every_number_of_states(codec: str, count: int, zeros: float, isa: str) -> None:
    values = weights(count, 8, zeros if count > 1 else 0)
    payload = _core.encode_weight(codec, values, 1)
    np.testing.assert_array_equal(decode(codec, payload, count), values)


def test_gaps_of_tiny_layers() -> None:
    """Few gaps cost least in a mirrored table, whose other half would lie above the escape."""
    for seed in range(2000):
        weight = np.random.default_rng(seed).normal(0, 1, (4, 7)).astype(np.int8)
        payload = np.frombuffer(_core.encode_weight("sparse-ans", weight, 4), np.uint8)
        np.testing.assert_array_equal(_core.decode_weight("sparse-ans", payload, 28, 4, "w"), weight.reshape(-1))


def test_numbers_of_states() -> None:
    """All of 1 to 32 are used, so that the test above covers them."""
    counts = (700, 5_001, 10_003, 20_000, 40_007, 300_031)
    assert [_core.encode_weight("ans", weights(count, 8, 0), 1)[0] for count in counts] == [0, 1, 2, 3, 4, 5]


def test_the_example_of_the_format() -> None:
    assert _core.encode_weight("ans", EXAMPLE, 1) == PAYLOAD
    np.testing.assert_array_equal(decode("ans", PAYLOAD, 8), EXAMPLE)


def test_a_constant_takes_no_bits() -> None:
    values = np.full(100_000, -7, np.int8)
    payload = _core.encode_weight("ans", values, 1)
    assert len(payload) <= 12
    np.testing.assert_array_equal(decode("ans", payload, values.size), values)


SPARSE = bytes.fromhex("04 04 07 00 01 00 04 ff 7b 68 00 81 83 ff 60 00 1c 67 02")
GAPS, VALUES = bytes.fromhex("01 00 04 ff 7b 68"), bytes.fromhex("00 81 83 ff 60")

CASES: dict[str, tuple[str, bytes, int, str, str]] = {
    "no byte": ("ans", b"", 8, "E_TRUNCATED", "w.states"),
    "64 states": ("ans", b"\6" + TABLE + 64 * STATE, 8, "E_ANS_STREAM", "w.states"),
    "form": ("ans", b"\0\x20" + TABLE[1:] + STATE, 8, "E_ANS_TABLE", "w.shares"),
    "range": ("ans", b"\0\0\x83\x80" + TABLE[3:] + STATE, 8, "E_ANS_TABLE", "w.shares"),
    "mirrored below the middle": ("ans", b"\0\x10\x7f\x83" + TABLE[3:] + STATE, 8, "E_ANS_TABLE", "w.shares"),
    "class 0": ("ans", b"\0\0\x80\x80\xff\xe0" + STATE, 8, "E_HUFF_LENGTH", "w.shares"),
    "a step of 12": ("ans", b"\0\0\x80\x80\xff\xff" + STATE, 8, "E_HUFF_LENGTH", "w.shares"),
    "no symbol": ("ans", b"\0\0\x80\x80\xc0" + STATE, 8, "E_ANS_TABLE", "w.shares"),
    "spare bit of the table": ("ans", b"\0" + TABLE[:-1] + b"\1" + STATE, 8, "E_ANS_TABLE", "w.shares"),
    "table cut": ("ans", b"\0" + TABLE[:4], 8, "E_TRUNCATED", "w.shares"),
    "states cut": ("ans", PAYLOAD[:-1], 8, "E_TRUNCATED", "w.states"),
    "state too small": ("ans", PAYLOAD[:-2] + b"\0\0", 8, "E_ANS_STREAM", "w.stream"),
    "word left": ("ans", PAYLOAD + b"\0\0", 8, "E_ANS_STREAM", "w.stream"),
    "half a word left": ("ans", PAYLOAD + b"\0", 8, "E_ANS_STREAM", "w.stream"),
    "one symbol less": ("ans", PAYLOAD, 7, "E_ANS_STREAM", "w.stream"),
    "one symbol more": ("ans", PAYLOAD, 9, "E_ANS_STREAM", "w.stream"),
    "another state": ("ans", PAYLOAD[:-1] + b"\x41", 8, "E_ANS_STREAM", "w.stream"),
    "too many": ("ans", PAYLOAD, 2**50, "E_BOMB", "w.stream"),
    "something of nothing": ("ans", b"\0", 0, "E_SIZE_MISMATCH", "w"),
    "nnz above count": ("sparse-ans", SPARSE, 3, "E_CSR_NNZ", "w.nnz"),
    "all zero, then a byte": ("sparse-ans", b"\0\0", 8, "E_SIZE_MISMATCH", "w"),
    "fewer tokens than values": ("sparse-ans", b"\4\3" + SPARSE[2:], 8, "E_VALUE_RANGE", "w.tokens"),
    "escape 0": ("sparse-ans", b"\4\4\0" + SPARSE[3:], 8, "E_VALUE_RANGE", "w.tokens"),
    "escapes beyond the weight": ("sparse-ans", b"\4\5" + SPARSE[2:], 8, "E_VALUE_RANGE", "w.tokens"),
    "gap above the escape": ("sparse-ans", b"\4\4\3" + SPARSE[3:], 8, "E_VALUE_RANGE", "w.gaps"),
    "a share of value 0": (
        "sparse-ans",
        SPARSE[:4] + GAPS + TABLE[:3] + TABLE[3:] + SPARSE[-4:],
        8,
        "E_VALUE_RANGE",
        "w.values",
    ),
    "position beyond the weight": ("sparse-ans", SPARSE, 7, "E_CSR_INDEX", "w.gaps"),
    "stream cut": ("sparse-ans", SPARSE[:-1], 8, "E_TRUNCATED", "w.states"),
    "streams go on": ("sparse-ans", SPARSE + b"\0\0", 8, "E_ANS_STREAM", "w.stream"),
}


@pytest.mark.parametrize("name", CASES)
def test_hostile_payloads(name: str) -> None:
    codec, payload, count, code, field = CASES[name]
    with pytest.raises(FormatError) as caught:
        decode(codec, payload, count)
    assert (caught.value.code, caught.value.field) == (code, field)


def test_escapes_are_no_values() -> None:
    """Tokens that are right one by one, but of which too many or too few are values."""
    values = np.zeros(4000, np.int8)
    values[[10, 900, 3999]] = [1, -1, 2]
    payload = bytearray(_core.encode_weight("sparse-ans", values, 1))
    assert payload[0] == 3
    for nnz in (2, 4):
        payload[0] = nnz
        with pytest.raises(FormatError) as caught:
            decode("sparse-ans", bytes(payload), values.size)
        assert caught.value.code in ("E_CSR_NNZ", "E_ANS_STREAM", "E_VALUE_RANGE")
