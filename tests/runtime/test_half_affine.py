"""Multipliers and biases in float16: the same graph from half the bytes, and only where nothing is lost."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from pqk_ext.runtime import format as pqk_format
from tests.runtime.files import GOLDEN, join, refused, split

HALF = (GOLDEN / "v1.1/half_affine.pqk").read_bytes()


def test_they_come_back_as_they_were(golden_graphs: ModuleType) -> None:
    graph = golden_graphs.half_affine()
    back = pqk_format.loads(pqk_format.dumps(graph, codec="huffman"))
    for node, other in zip(graph.nodes, back.nodes, strict=True):
        for name in ("multiplier", "bias"):
            if name in node.tensors:
                assert other.tensors[name].dtype == np.float32
                np.testing.assert_array_equal(node.tensors[name], other.tensors[name])


def test_they_take_half_the_bytes(golden_graphs: ModuleType) -> None:
    header, metadata, _ = split(HALF)
    assert metadata["required_features"] == ["half-affine"]
    assert metadata["version"] == [1, 1]
    entries = {name: fields for name, fields in header.items() if name.endswith(".affine")}
    assert entries
    assert all(fields["dtype"] == "F16" for fields in entries.values())
    whole, _, _ = split(pqk_format.dumps(golden_graphs.small(), codec="huffman", compact=False))
    for name, fields in entries.items():
        begin, end = fields["data_offsets"]
        begin_whole, end_whole = whole[name]["data_offsets"]
        assert 2 * (end - begin) == end_whole - begin_whole


def test_one_value_that_does_not_fit_keeps_them_all(golden_graphs: ModuleType) -> None:
    graph = golden_graphs.half_affine()
    node = next(node for node in graph.nodes if "bias" in node.tensors)
    node.tensors["bias"][0] = 0.1
    header, metadata, _ = split(pqk_format.dumps(graph, codec="huffman", compact=False))
    assert "required_features" not in metadata
    assert all(fields["dtype"] == "F32" for name, fields in header.items() if name.endswith(".affine"))


def test_dtype_and_feature_must_agree() -> None:
    header, metadata, tensors = split(HALF)
    without = {**metadata, "version": [1, 0]}
    del without["required_features"]
    error = refused(join(header, without, tensors))
    assert (error.code, error.expected, error.got) == ("E_ENUM", "F32", "F16")
    small = (GOLDEN / "v1.0/huffman.pqk").read_bytes()
    header, metadata, tensors = split(small)
    error = refused(join(header, {**metadata, "required_features": ["half-affine"]}, tensors))
    assert (error.code, error.expected, error.got) == ("E_ENUM", "F16", "F32")


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00])
def test_infinity_and_nan_are_refused(bits: int) -> None:
    header, metadata, tensors = split(HALF)
    key = next(name for name in header if name.endswith(".affine"))
    begin = header[key]["data_offsets"][0]
    data = bytearray(tensors)
    data[begin : begin + 2] = bits.to_bytes(2, "little")
    assert refused(join(header, metadata, bytes(data))).code == "E_QPARAM"
