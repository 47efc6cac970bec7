"""Lossless storage as a whole: round trips of hard matrices, entropy below, bounds above, files to the byte."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pqk_ext import _core, rivals, storage_bounds
from pqk_ext.runtime import entropy, format
from pqk_ext.runtime.graph import Graph
from tests.runtime.graphs import ds_cnn

Int8 = NDArray[np.int8]
CODECS = _core.codec_names()
codecs = pytest.mark.parametrize("codec", CODECS)
GOLDEN = sorted((Path(__file__).parents[1] / "golden").rglob("*.pqk"))


def random_weight(rows: int, columns: int, symbols: int, density: float, seed: int = 0) -> Int8:
    """``symbols`` different non-zero codes; a file has at most 255, so that larger k exist only in the layouts."""
    rng = np.random.default_rng(seed)
    codes = np.delete(np.arange(-127, 128), 127)
    values = rng.choice(codes[127 - symbols // 2 :][:symbols], (rows, columns))
    return (values * (rng.random((rows, columns)) < density)).astype(np.int8)


def with_empty_columns() -> Int8:
    """Columns of the matrix are output channels: rows of the weight."""
    weight = random_weight(12, 50, 30, 0.3)
    weight[[0, 3, 4, 11]] = 0
    return weight


HARD = {
    "empty columns": with_empty_columns(),
    "all zero": np.zeros((9, 40), np.int8),
    "k = 1": np.full((9, 40), -3, np.int8),
    "k = 1 and zeros": random_weight(9, 40, 1, 0.2),
    "k = 2": random_weight(9, 40, 2, 1.0),
    "k = 254": random_weight(40, 400, 254, 1.0),
    "k = 256": np.tile(np.arange(-128, 128, dtype=np.int8), (7, 3)),
    "negative zeros": (np.float32([[-0.0, 0.0, -1.0, 1.0]]) * np.ones((5, 1), np.float32)).astype(np.int8),
    "more than 65,535 inputs": random_weight(2, 70_001, 7, 0.0004),
    "more than 65,535 outputs": random_weight(70_001, 2, 7, 0.3),
    "one weight": np.ones((1, 1), np.int8),
    "no weight": np.zeros((4, 0), np.int8),
}


def encoded(codec: str, weight: Int8) -> bytes:
    return _core.encode_weight(codec, weight, weight.shape[0])


@codecs
@pytest.mark.parametrize("name", HARD)
def test_round_trip_of_hard_matrices(codec: str, name: str, isa: str) -> None:
    weight = HARD[name]
    decoded = _core.decode_weight(codec, encoded(codec, weight), weight.size, weight.shape[0], "w")
    np.testing.assert_array_equal(decoded, weight.reshape(-1))


@codecs
@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40), st.integers(0, 400), st.integers(1, 254), st.sampled_from([0, 0.05, 0.5, 1]), st.integers(0, 99)
)
def test_round_trip_of_random_sizes(
    codec: str, rows: int, columns: int, symbols: int, density: float, seed: int
) -> None:
    weight = random_weight(rows, columns, symbols, density, seed)
    decoded = _core.decode_weight(codec, encoded(codec, weight), weight.size, rows, "w")
    np.testing.assert_array_equal(decoded, weight.reshape(-1))


@pytest.mark.parametrize("codec", [codec for codec in CODECS if "huffman" in codec])
@pytest.mark.parametrize("symbols", [2, 14, 30, 254])
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_mean_code_lengths_are_within_a_bit_of_the_entropy(codec: str, symbols: int, density: float) -> None:
    """Of what a codec codes by its frequency: all entries, or the non-zeros alone. Streams fill whole bytes."""
    weight = random_weight(128, 512, symbols, density)
    payload = encoded(codec, weight)
    parts = _core.payload_parts(codec, payload, weight.size, weight.shape[0], "w")
    coded = weight[weight != 0] if parts["indices"] else weight
    slack = 64 * (1 + parts["chunks"])  # streams are filled up, in each chunk
    mean, ideal = 8 * parts["values"] / coded.size, entropy.entropy(coded)
    assert ideal <= mean < ideal + 1 + slack / coded.size


@pytest.mark.parametrize("symbols", [1, 2, 14, 30, 254])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 1.0])
def test_files_are_below_every_published_layout(symbols: int, density: float) -> None:
    """The bounds of the literature hold for the payload that a file takes, and so do the layouts themselves."""
    weight = random_weight(96, 576, symbols, density)
    smallest = 8 * min(len(encoded(codec, weight)) for codec in CODECS)
    matrix = weight.T
    nnz = int(np.count_nonzero(weight))
    ham, sham = storage_bounds.ham_bits(matrix), storage_bounds.sham_bits(matrix)
    index_map = storage_bounds.index_map_bits(matrix, whole_bytes=False)
    constant = symbols == density == 1  # takes a bit an entry in each of them
    assert smallest < min(ham.bits, sham.bits, index_map.bits + 16 * constant)
    assert smallest < storage_bounds.csc_bits(matrix).bits
    distinct = len(np.unique(weight))
    n, m = matrix.shape
    assert smallest <= storage_bounds.ham_upper_bound(n, m, distinct, math.ceil(math.log2(distinct)))
    assert smallest <= storage_bounds.sham_upper_bound(n, m, nnz, symbols, max(1, math.ceil(math.log2(symbols))))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("density", [0.05, 0.1, 0.2, 0.5])
def test_files_are_half_of_sham_and_below_general_compressors(bits: int, density: float) -> None:
    weight = pruned_gaussian(64, 576, density, bits)
    smallest = min(len(encoded(codec, weight)) for codec in CODECS)
    found = rivals.rival_bytes(weight)
    assert 2 * smallest <= found["sHAM"]
    assert all(smallest < found[name] for name in rivals.COMPRESSORS if name in found)
    assert "gzip -9" in found


def pruned_gaussian(rows: int, columns: int, density: float, bits: int) -> Int8:
    weights = np.random.default_rng(0).standard_normal((rows, columns))
    weights[np.abs(weights) < np.quantile(np.abs(weights), 1 - density)] = 0
    largest = 2 ** (bits - 1) - 1
    return np.rint(weights / np.abs(weights).max() * largest).astype(np.int8)


# -------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden_files_are_the_sum_of_their_parts(path: Path) -> None:
    check_file(path)


def check_file(path: Path) -> None:
    info = format.inspect(path)
    assert tuple(info.parts) == format.PARTS
    assert sum(info.parts.values()) == info.total_bytes == path.stat().st_size
    of_layers = {name: sum(layer.parts[name] for layer in info.layers) for name in format.PARTS}
    assert all(of_layers[name] == info.parts[name] for name in ("values", "indices", "tables", "chunks", "header"))
    for tensor in info.tensors:
        assert sum(tensor.parts.values()) == tensor.payload_bytes
        assert 0 <= tensor.mask_bits <= min(1, tensor.entropy_bits + 1e-9)
    for layer in info.layers:
        assert layer.weight.name == f"{layer.node}.weight"
        assert layer.parts["scales"] == (4 if "half_affine" in path.stem else 8) * layer.weight.shape[0]
        assert layer.total_bytes == sum(t.payload_bytes for t in info.tensors if t.name.startswith(f"{layer.node}."))


@pytest.fixture
def network() -> Graph:
    return ds_cnn()


@pytest.mark.parametrize("codec", [None, *CODECS])
def test_written_files_are_the_sum_of_their_parts(codec: str | None, network: Graph, tmp_path: Path) -> None:
    path = tmp_path / "net.pqk"
    format.write(network, path, codec=codec)
    check_file(path)
    info = format.inspect(path)
    for layer in info.layers:
        weight = network.nodes[layer.node].tensors["weight"]
        assert layer.weight.bound_bytes == pytest.approx(entropy.bound(weight).bits / 8)
        assert layer.weight.density == np.count_nonzero(weight) / weight.size
