"""Files and graphs with float codebooks: round trips, required features, every rule in the reader and in the engine."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pqk_ext.errors import FormatError
from pqk_ext.runtime import Graph, Model, Node, Value
from pqk_ext.runtime import format as pqk_format
from tests.runtime.files import ALL_OPS, REMOVED, refused, set_metadata, split
from tests.runtime.graphs import Builder
from tests.runtime.test_hostile_graphs import BAD_SCALES, attribute, changed, inputs, tensor, value, without


@pytest.fixture(scope="module")
def graph(golden_graphs: ModuleType) -> Graph:
    """float_ops: 0 and 1 are convolutions, 2 a map, 3 an addition, 5 affine, 12 linear, 13 softmax."""
    built: Graph = golden_graphs.float_ops()
    return built


def layer(codes: np.ndarray[Any, Any], codebook: np.ndarray[Any, Any], zero: int) -> Graph:
    """A linear layer with these weights."""
    features = len(codes)
    tensors = {"weight": codes.astype(np.int8), "codebook": codebook.astype(np.float32)}
    tensors |= {"multiplier": np.ones(features, np.float32), "bias": np.zeros(features, np.float32)}
    node = Node("float_linear", "linear", (0,), Value((features,), "f32"), {"zero": zero}, tensors)
    return Graph(Value((codes.shape[1],), "f32"), (node,))


@pytest.mark.parametrize("codec", [None, *pqk_format.CODECS])
@pytest.mark.parametrize("zero", [128, 0, 255, 100])
def test_all_codes_in_every_codec(codec: str | None, zero: int) -> None:
    codes = np.arange(max(-128, -zero), min(127, 255 - zero) + 1)
    graph = layer(np.stack([codes, np.zeros_like(codes)]), np.linspace(-1, 1, 256), zero)
    loaded = pqk_format.loads(pqk_format.dumps(graph, codec=codec))
    for name, tensor_ in graph.nodes[0].tensors.items():
        np.testing.assert_array_equal(loaded.nodes[0].tensors[name], tensor_)
    assert loaded.nodes[0].attributes == graph.nodes[0].attributes
    x = np.random.default_rng(0).normal(size=(1, codes.size)).astype(np.float32)
    got = Model.from_graph(loaded)(x)[0, 0]
    assert abs(got - np.linspace(-1, 1, 256)[codes + zero] @ x[0]) < 1e-4


def test_only_files_that_need_it_require_the_feature(graph: Graph, golden_graphs: ModuleType) -> None:
    _, metadata, _ = split(pqk_format.dumps(graph, codec="huffman", compact=False))
    assert (metadata["version"], metadata["required_features"]) == ([1, 1], ["float-codebook"])
    _, metadata, _ = split(pqk_format.dumps(golden_graphs.all_ops(), codec="huffman", compact=False))
    assert metadata["version"] == [1, 0]
    assert "required_features" not in metadata
    # Operators that are older than the feature, on values that are not.
    nodes = (Node("pad", "pad", (0,), Value((2, 1, 3), "f32"), {"before": [0, 0, 1], "after": [0, 0, 1]}),)
    _, metadata, _ = split(pqk_format.dumps(Graph(Value((2, 1, 1), "f32"), nodes), compact=False))
    assert metadata["required_features"] == ["float-codebook"]


def test_a_feature_that_is_not_listed_or_not_used(graph: Graph) -> None:
    data = pqk_format.dumps(graph, codec="huffman", compact=False)
    for features in (REMOVED, [], ["float-codebook", "float-codebook"]):
        error = refused(set_metadata(["required_features"], features, data))
        assert (error.code, error.field) == ("E_FEATURE", "required_features")
    assert refused(set_metadata(["required_features"], ["float-codebook"], ALL_OPS)).code == "E_FEATURE"


METADATA_CASES: dict[str, tuple[list[str | int], object, str, str]] = {
    "no codebook": (["nodes", 0, "weight", "codebook"], REMOVED, "E_HEADER", "weight"),
    "codebook 0": (["nodes", 0, "weight", "codebook"], 0, "E_GRAPH_SHAPE", "weight.codebook"),
    "codebook 257": (["nodes", 0, "weight", "codebook"], 257, "E_GRAPH_SHAPE", "weight.codebook"),
    "codebook real": (["nodes", 0, "weight", "codebook"], 256.0, "E_GRAPH_SHAPE", "weight.codebook"),
    "codebook true": (["nodes", 0, "weight", "codebook"], True, "E_GRAPH_SHAPE", "weight.codebook"),
    "codebook of another size": (["nodes", 12, "weight", "codebook"], 6, "E_SIZE_MISMATCH", "tensors['12.codebook']"),
    "too few entries": (["nodes", 12, "zero"], 5, "E_GRAPH_ATTR", "nodes[12].zero"),
    "zero elsewhere": (["nodes", 12, "zero"], 0, "E_VALUE_RANGE", "nodes[12].weight"),
    "zero negative": (["nodes", 0, "zero"], -1, "E_GRAPH_ATTR", "nodes[0].zero"),
    "zero missing": (["nodes", 0, "zero"], REMOVED, "E_GRAPH_ATTR", "nodes[0].zero"),
    "zero real": (["nodes", 0, "zero"], 3.0, "E_GRAPH_ATTR", "nodes[0].zero"),
    "bits": (["nodes", 0, "weight", "bits"], 7, "E_VALUE_RANGE", "tensors['0.weight']"),
    "clamp integer": (["nodes", 0, "clamp_min"], 0, "E_QPARAM", "nodes[0].clamp_min"),
    "clamp above": (["nodes", 0, "clamp_min"], 7.0, "E_QPARAM", "nodes[0].clamp_min"),
    "clamp double": (["nodes", 0, "clamp_max"], 0.1, "E_QPARAM", "nodes[0].clamp_max"),
    "clamp of a pool": (["nodes", 8, "clamp_min"], 0.0, "E_HEADER", "node"),
    "function": (["nodes", 2, "function"], "exp", "E_ENUM", "nodes[2].function"),
    "function number": (["nodes", 2, "function"], 1, "E_ENUM", "nodes[2].function"),
    "function list": (["nodes", 2, "function"], [], "E_ENUM", "nodes[2].function"),
    "function missing": (["nodes", 2, "function"], REMOVED, "E_GRAPH_ATTR", "nodes[2].function"),
    "codes": (["nodes", 2, "dtype"], "u8", "E_GRAPH_ATTR", "nodes[2].dtype"),
    "scale": (["nodes", 2, "scale"], 0.5, "E_QPARAM", "nodes[2].scale"),
    "concat to codes": (["nodes", 4, "dtype"], "u8", "E_GRAPH_ATTR", "nodes[4].dtype"),
    "slice to codes": (["nodes", 7, "dtype"], "u8", "E_GRAPH_ATTR", "nodes[7].dtype"),
    "add of two shapes": (["nodes", 3, "inputs"], [0, 1], "E_GRAPH_SHAPE", "nodes[3].inputs[1]"),
    "residual of another shape": (["nodes", 1, "inputs"], [1, 0], "E_GRAPH_SHAPE", "nodes[1].inputs[1]"),
    "three inputs": (["nodes", 1, "inputs"], [1, 1, 1], "E_GRAPH_REF", "nodes[1].inputs"),
    "window in the padding": (["nodes", 8, "padding"], [3, 1, 0, 1], "E_GRAPH_ATTR", "nodes[8].padding"),
    "output size": (["nodes", 10, "output_size"], [0, 2], "E_GRAPH_ATTR", "nodes[10].output_size"),
    "quant_min": (["nodes", 0, "quant_min"], 0, "E_HEADER", "node"),
}


@pytest.mark.parametrize("name", METADATA_CASES)
def test_metadata(graph: Graph, name: str) -> None:
    path, new, code, field = METADATA_CASES[name]
    error = refused(set_metadata(path, new, pqk_format.dumps(graph, codec="huffman", compact=False)))
    assert error.code == code
    assert field in error.field


@pytest.mark.parametrize(
    ("name", "numbers", "code"),
    [
        ("codebook", [0.0, np.nan], "E_QPARAM"),
        ("codebook", [0.0, np.inf], "E_QPARAM"),
        ("codebook", [0.0, 1e30], "E_QPARAM"),
        ("codebook", [0.5, 0.0], "E_QPARAM"),
        ("weight", [0, 2], "E_VALUE_RANGE"),
        ("weight", [0, -1], "E_VALUE_RANGE"),
        ("multiplier", [np.nan, 0.0], "E_QPARAM"),
        ("bias", [0.0, -np.inf], "E_QPARAM"),
    ],
)
def test_values_of_tensors(name: str, numbers: list[float], code: str) -> None:
    good = layer(np.array([[0, 1], [1, 0]]), np.array([0.0, 1.0]), 0)
    old = good.nodes[0].tensors[name]
    bad = tensor(0, name, np.resize(np.array(numbers), old.shape).astype(old.dtype))(good)
    for use in (pqk_format.dumps, Model.from_graph):
        with pytest.raises(FormatError) as caught:
            use(bad)  # type: ignore[operator]
        assert caught.value.code == code
        assert name in caught.value.field


def test_equal_entries_and_a_codebook_of_one() -> None:
    for codebook in ([0.5], [-0.0, 0.0, 0.0]):
        loaded = pqk_format.loads(pqk_format.dumps(layer(np.zeros((1, 3)), np.array(codebook), 0)))
        got = Model.from_graph(loaded)(np.ones((1, 3), np.float32))
        assert got[0, 0] == 3 * codebook[0]


# What the engine itself refuses, whatever read the file.
HOSTILE: list[tuple[str, str, Callable[[Graph], Graph]]] = [
    ("E_GRAPH_REF", "inputs[0]", lambda g: quantized(g, 0)),
    ("E_GRAPH_REF", "inputs[1]", lambda g: quantized(g, 1)),
    ("E_GRAPH_REF", "inputs", inputs(1, 1, 1, 1)),
    ("E_ENUM", "value.dtype", value(2, dtype="u8")),
    ("E_ENUM", "value.dtype", value(4, dtype="u8")),
    ("E_ENUM", "value.dtype", value(6, dtype="u8")),
    ("E_ENUM", "value.dtype", value(7, dtype="u8")),
    ("E_ENUM", "function", attribute(2, "function", "exp")),
    ("E_ENUM", "function", attribute(2, "function", "")),
    ("E_GRAPH_ATTR", "function", attribute(2, "function", 1)),
    ("E_GRAPH_ATTR", "function", attribute(2, "function", [1])),
    ("E_GRAPH_ATTR", "function", without(2, "function")),
    ("E_GRAPH_ATTR", "stride", attribute(0, "stride", "relu")),
    ("E_GRAPH_ATTR", "clamp_min", attribute(0, "clamp_min", "relu")),
    ("E_GRAPH_ATTR", "zero", attribute(0, "zero", 256)),
    ("E_GRAPH_ATTR", "zero", attribute(0, "zero", -1)),
    ("E_GRAPH_ATTR", "zero", attribute(12, "zero", 5)),
    ("E_GRAPH_ATTR", "zero", without(0, "zero")),
    ("E_GRAPH_ATTR", "zero", attribute(0, "zero", 2**70)),
    ("E_GRAPH_ATTR", "groups", attribute(1, "groups", 3)),
    ("E_GRAPH_ATTR", "quant_min", attribute(0, "quant_min", 0)),
    ("E_GRAPH_ATTR", "padding", lambda g: value(8, shape=(8, 9, 8))(attribute(8, "padding", [3, 1, 0, 1])(g))),
    ("E_GRAPH_ATTR", "tensors.codebook", lambda g: changed(g, 0, tensors=dropped(g, "codebook"))),
    ("E_GRAPH_ATTR", "tensors.codebook", tensor(0, "codebook", np.zeros(256))),
    ("E_GRAPH_ATTR", "tensors.codebook", tensor(5, "codebook", np.zeros(2, np.float32))),
    ("E_GRAPH_SHAPE", "tensors.codebook", tensor(0, "codebook", np.zeros((2, 2), np.float32))),
    ("E_GRAPH_SHAPE", "tensors.codebook.shape[0]", tensor(0, "codebook", np.zeros(0, np.float32))),
    ("E_GRAPH_SHAPE", "tensors.codebook.shape[0]", tensor(0, "codebook", np.zeros(257, np.float32))),
    ("E_GRAPH_SHAPE", "tensors.weight.shape[1]", tensor(12, "weight", np.zeros((6, 31), np.int8))),
    ("E_GRAPH_SHAPE", "tensors.multiplier.shape[0]", tensor(0, "multiplier", np.zeros(3, np.float32))),
    ("E_GRAPH_SHAPE", "value.shape", value(3, shape=(4, 8, 7))),
    ("E_GRAPH_SHAPE", "value.shape", value(10, shape=(8, 2, 3))),
    ("E_GRAPH_SHAPE", "value.shape", inputs(1, 1, 0)),
    ("E_GRAPH_SHAPE", "value.shape", inputs(3, 1, 0)),
    ("E_GRAPH_SHAPE", "value.shape", inputs(4, 1, 0)),
    ("E_QPARAM", "clamp_min", attribute(0, "clamp_min", 7.0)),
    ("E_QPARAM", "clamp_min", attribute(0, "clamp_min", float("nan"))),
    ("E_QPARAM", "clamp_max", attribute(0, "clamp_max", float("inf"))),
    ("E_VALUE_RANGE", "tensors.weight[3]", lambda g: tensor(12, "weight", one_code(g, 3, 100))(g)),
    ("E_VALUE_RANGE", "tensors.weight[0]", lambda g: tensor(12, "weight", one_code(g, 0, -128))(g)),
    *(("E_QPARAM", "value.scale", value(2, scale=scale, zero_point=0)) for scale in [1.0, *BAD_SCALES]),
]


def quantized(graph: Graph, slot: int) -> Graph:
    """Codes, as the first node gives them, where an addition asks for floats."""
    nodes = (
        Node("quantize", "codes", (0,), Value(graph.input.shape, "u8", 1.0, 0), {"quant_min": 0, "quant_max": 255}),
        Node("float_add", "add", (1, 0) if slot == 0 else (0, 1), graph.input),
    )
    return Graph(graph.input, nodes)


def dropped(graph: Graph, name: str) -> dict[str, Any]:
    return {key: array for key, array in graph.nodes[0].tensors.items() if key != name}


def one_code(graph: Graph, index: int, code: int) -> np.ndarray[Any, Any]:
    weight = graph.nodes[12].tensors["weight"].copy()
    weight.flat[index] = code
    return weight


@pytest.mark.parametrize(
    ("code", "field", "change"), HOSTILE, ids=[f"{c}-{f}-{i}" for i, (c, f, _) in enumerate(HOSTILE)]
)
def test_the_engine_refuses(graph: Graph, code: str, field: str, change: Callable[[Graph], Graph]) -> None:
    with pytest.raises(FormatError) as caught:
        Model.from_graph(change(graph))
    assert caught.value.code == code, caught.value
    assert caught.value.field.endswith(field), caught.value.field


def test_the_engine_runs_the_graph(graph: Graph) -> None:
    got = Model.from_graph(graph)(np.ones((2, 2, 8, 8), np.float32))
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-5)


def test_borders_count_as_memory() -> None:
    """A one-pixel image whose convolution asks for a border of 2^62 bytes: of the graph's input, and of a value."""
    far = 2**30
    window = {"stride": [far, far], "padding": [far] * 4, "dilation": [1, 1], "groups": 1, "zero": 0}
    tensors = {"weight": np.zeros((1, 1, 1, 1), np.int8), "codebook": np.ones(1, np.float32)}
    tensors |= {"multiplier": np.ones(1, np.float32), "bias": np.zeros(1, np.float32)}
    for floats in (False, True):
        b = Builder((1, 1, 1))
        x = b.add("float_map", [0], {"function": "relu"}, dtype="f32") if floats else 0
        b.add("float_conv2d", [x], window, tensors, dtype="f32")
        with pytest.raises(FormatError, match=r"nodes\[0\].*E_BOMB"):
            Model.from_graph(b.graph())
