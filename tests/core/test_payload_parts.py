"""What the bytes of a payload are for: nothing forgotten, nothing twice, and each part as large as it must be."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pqk_ext import _core
from pqk_ext.errors import FormatError

PARTS = ["values", "indices", "tables", "chunks", "header"]
codecs = pytest.mark.parametrize("codec", _core.codec_names())
Int8 = NDArray[np.int8]


def parts(codec: str, values: Int8) -> dict[str, int]:
    payload = _core.encode_weight(codec, values, values.shape[0])
    found = _core.payload_parts(codec, payload, values.size, values.shape[0], "w")
    assert list(found) == PARTS
    assert sum(found.values()) == len(payload)
    assert min(found.values()) >= 0
    return found


def pruned(rows: int, cols: int, density: float, largest: int = 7) -> Int8:
    rng = np.random.default_rng(rows * cols)
    values = rng.integers(-largest, largest + 1, (rows, cols))
    return (values * (rng.random((rows, cols)) < density)).astype(np.int8)


def entropy(values: Int8) -> float:
    shares = np.unique(values, return_counts=True)[1] / max(1, values.size)
    return float(-(shares * np.log2(shares)).sum())


SHAPES = [(0, 5), (1, 1), (3, 7), (64, 64), (5, 13_001)]


@codecs
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_parts_are_all_of_the_payload(codec: str, shape: tuple[int, int], density: float) -> None:
    parts(codec, pruned(*shape, density))


@codecs
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_no_part_is_below_its_entropy(codec: str, density: float) -> None:
    """And what is no value, index or table is small."""
    values = pruned(64, 1024, density)
    found = parts(codec, values)
    nonzeros = values[values != 0]
    mask = entropy((values != 0).astype(np.int8)) * values.size / 8
    # Between two runs of one stream, each of up to 32 states may hold two bytes of the other.
    assert found["indices"] == 0 or found["indices"] >= 0.999 * mask - 64
    coded_alone = values if found["indices"] == 0 else nonzeros
    assert found["values"] >= entropy(coded_alone) * coded_alone.size / 8 - 64
    assert found["chunks"] + found["header"] <= 0.02 * values.size


def test_parts_of_the_plain_codecs() -> None:
    values = pruned(8, 100, 0.2)
    nnz = int(np.count_nonzero(values))
    assert parts("raw", values)["values"] == 800
    found = parts("bitmask", values)
    assert (found["values"], found["indices"]) == (nnz, 100)
    found = parts("csr", values)
    assert (found["values"], found["indices"], found["header"]) == (nnz, 4 * 9 + nnz, 3)


def test_parts_of_the_coded() -> None:
    """Uniform 4-bit values take at most half a bit above their entropy; a table of 15 symbols at most 12 bytes."""
    values = pruned(64, 256, 1.0)
    found = parts("huffman", values)
    assert (found["indices"], found["header"]) == (0, 1)
    assert found["tables"] <= 12
    found = parts("sparse-huffman", pruned(64, 256, 0.1))
    assert 0 < found["header"] <= 8
    assert 4 <= found["tables"] <= 40


@codecs
def test_parts_of_a_payload_cut_short(codec: str) -> None:
    """A payload whose parts do not reach its end is refused; the bytes of a plain tail are anybody's."""
    values = pruned(8, 100, 0.2)
    payload = _core.encode_weight(codec, values, 8)
    for size in range(2):
        with pytest.raises(FormatError) as caught:
            _core.payload_parts(codec, payload[:size], values.size, 8, "w")
        assert caught.value.field.startswith("w")
