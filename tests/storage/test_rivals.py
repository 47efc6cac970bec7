"""Sizes of the same weights in other forms."""

from __future__ import annotations

import gzip
import lzma

import numpy as np
import pytest

from pqk_ext import rivals, storage_bounds


def weight() -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    rng = np.random.default_rng(0)
    return (rng.integers(-7, 8, (32, 16, 3, 3)) * (rng.random((32, 16, 3, 3)) < 0.2)).astype(np.int8)


def test_compressors_can_be_undone() -> None:
    data = weight().tobytes()
    found = rivals.compressed_bytes(data)
    assert found["gzip -9"] == len(gzip.compress(data, 9)) < len(data)
    assert found["xz -9e"] == len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) < len(data)


def test_zstd() -> None:
    zstandard = pytest.importorskip("zstandard")
    data = weight().tobytes()
    coded = rivals._zstd(data)
    assert zstandard.ZstdDecompressor().decompress(coded) == data
    assert rivals.compressed_bytes(data)["zstd -19"] == len(coded) < len(data)


def test_without_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "has_zstd", lambda: False)
    assert list(rivals.compressed_bytes(b"abc")) == ["gzip -9", "xz -9e"]


def test_layouts_see_inputs_times_outputs() -> None:
    """A matrix of the literature has the inputs as rows: an index counts them, a column is an output channel."""
    codes = weight()
    found = rivals.rival_bytes(codes)
    assert found["int8"] == codes.size
    assert 4 * codes.size < found["safetensors f32"] < 4 * codes.size + 200
    matrix = codes.reshape(32, 144).T
    nnz = int(np.count_nonzero(codes))
    assert found["CSC"] == (32 * nnz + 8 * (nnz + 32)) // 8
    assert found["index map"] == codes.size + 4 * 15
    assert 8 * found["sHAM"] >= storage_bounds.sham_bits(matrix).bits > 8 * (found["sHAM"] - 1)
    assert 8 * found["HAM"] >= storage_bounds.ham_bits(matrix).bits > 8 * (found["HAM"] - 1)


def test_rivals_of_nothing() -> None:
    found = rivals.rival_bytes(np.zeros((0, 3), np.int8))
    assert found["int8"] == found["CSC"] == found["HAM"] == 0
