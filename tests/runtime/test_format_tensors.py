"""Contents and sizes of tensors: the exact code and field for each way to break a rule, under a right digest."""

from __future__ import annotations

import struct
import time
from types import ModuleType

import numpy as np
import pytest

from pqk_ext.errors import FormatError
from pqk_ext.runtime import format as pqk_format
from tests.runtime.files import ALL_OPS, GOLDEN, SMALL, join, refused, split


def set_floats(key: str, row: int, channel: int, number: float) -> bytes:
    header, metadata, tensors = split(SMALL)
    begin = header[key]["data_offsets"][0] + 4 * (row * header[key]["shape"][1] + channel)
    data = bytearray(tensors)
    data[begin : begin + 4] = struct.pack("<f", number)
    return join(header, metadata, bytes(data))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize(("row", "name"), [(0, "multiplier"), (1, "bias")])
def test_multiplier_and_bias_are_bounded(row: int, name: str, number: float) -> None:
    error = refused(set_floats("1.affine", row, 5, number))
    assert (error.code, error.field) == ("E_QPARAM", f"nodes[1].{name}[5]")


def test_multiplier_may_be_negative_or_zero() -> None:
    for number in (0.0, -1.5):
        graph = pqk_format.loads(set_floats("1.affine", 0, 5, number))
        assert graph.nodes[1].tensors["multiplier"][5] == number


def test_accumulator_bound(golden_graphs: ModuleType) -> None:
    graph_module = golden_graphs
    features = 66_312  # x 255 x 127 is more than 2^31
    weight = np.full((2, features), -127, np.int8)
    weight[0] = 0
    node = graph_module.Node(
        "linear",
        "fc",
        (1,),
        graph_module.Value((2,), "f32"),
        {},
        {"weight": weight, "multiplier": np.ones(2, np.float32), "bias": np.ones(2, np.float32)},
    )
    quantize = graph_module.Node("quantize", "q", (0,), graph_module.value(features), dict(graph_module.CODES))
    graph = graph_module.Graph(graph_module.Value((features,), "f32"), (quantize, node))
    with pytest.raises(FormatError) as caught:
        pqk_format.dumps(graph)
    assert (caught.value.code, caught.value.field) == ("E_QPARAM", "nodes[1].weight[1]")
    weight[1, 0] = 0
    pqk_format.dumps(graph)


def test_weight_of_minus_128() -> None:
    header, metadata, tensors = split((GOLDEN / "v1.0" / "raw.pqk").read_bytes())
    data = bytearray(tensors)
    data[header["3.weight"]["data_offsets"][0] + 7] = 0x80
    error = refused(join(header, metadata, bytes(data)))
    assert (error.code, error.field, error.got) == ("E_VALUE_RANGE", "tensors['3.weight'][7]", "-128")


def test_tensor_dtype_and_shape() -> None:
    header, metadata, tensors = split(ALL_OPS)
    for key, fields, code in [
        ("3.table", {"dtype": "I8"}, "E_ENUM"),
        ("3.table", {"shape": [16, 16]}, "E_SIZE_MISMATCH"),
        ("6.affine", {"shape": [8, 2]}, "E_SIZE_MISMATCH"),
        ("6.affine", {"dtype": "U8", "shape": [2, 32]}, "E_ENUM"),
        ("13.weight", {"shape": [header["13.weight"]["shape"][0], 1]}, "E_SIZE_MISMATCH"),
    ]:
        error = refused(join({**header, key: {**header[key], **fields}}, metadata, tensors))
        assert error.code == code
        assert error.field.startswith(f"tensors['{key}']")


# ------------------------------------------------------------------------------------------------------ limits


def test_decoded_bytes_are_bounded() -> None:
    error = refused(SMALL, max_decoded_bytes=300)
    assert error.code == "E_BOMB"
    assert "max_decoded_bytes" in error.expected


def test_activations_are_bounded(golden_graphs: ModuleType) -> None:
    """A graph that is right but for needing 1 TiB between its nodes."""
    make = golden_graphs
    grow = {"before": [0, 0, 0], "after": [0, 2**20 - 1, 2**20 - 1]}
    nodes = (
        make.Node("quantize", "q", (0,), make.value(1, 1, 1), dict(make.CODES)),
        make.Node("pad", "grow", (1,), make.value(1, 2**20, 2**20), grow),
        make.Node("dequantize", "output", (2,), make.Value((1, 2**20, 2**20), "f32")),
    )
    with pytest.raises(FormatError) as caught:
        pqk_format.dumps(make.Graph(make.Value((1, 1, 1), "f32"), nodes))
    assert (caught.value.code, caught.value.field) == ("E_BOMB", "nodes[1].shape")


def test_a_sparse_bomb_is_refused_before_decoding() -> None:
    """One byte that stands for 2^32 - 2 zeros."""
    features = 2**31 - 1
    metadata = {
        "digest": "0" * 64,
        "input": [features],
        "nodes": [
            {"op": "quantize", "name": "q", "shape": [features], "scale": 0.5},
            {
                "op": "linear",
                "name": "fc",
                "dtype": "f32",
                "shape": [2],
                "weight": {"codec": "sparse-huffman", "shape": [2, features]},
            },
        ],
        "version": [1, 0],
    }
    header = {
        "__metadata__": {},
        "1.affine": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "1.weight": {"dtype": "U8", "shape": [1], "data_offsets": [16, 17]},
    }
    assert refused(join(header, metadata, bytes(17))).code == "E_BOMB"


def test_many_tensors_take_bounded_time() -> None:
    header, metadata, tensors = split(SMALL)
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [len(tensors), len(tensors)]}
    header.update({f"x{i}": entry for i in range(40_000)})
    data = join(header, metadata, tensors)
    started = time.perf_counter()
    assert refused(data).code == "E_UNREFERENCED"
    assert time.perf_counter() - started < 5  # about 1 s on an idle machine
    header.update({f"y{i}": entry for i in range(40_000)})
    assert refused(join(header, metadata, tensors)).code == "E_HEADER_LEN"
