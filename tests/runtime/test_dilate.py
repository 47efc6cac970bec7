"""The operator `dilate`: zeros between pixels, which make a transposed convolution of a convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pqk_ext.errors import FormatError
from pqk_ext.runtime import Graph, Model, Node, Value
from pqk_ext.runtime import format as pqk_format
from tests.runtime import reference
from tests.runtime.files import refused, set_metadata, split
from tests.runtime.graphs import Builder
from tests.runtime.test_hostile_graphs import attribute, changed, inputs, tensor, value, without


def samples(graph: Graph, batch: int = 3) -> Any:
    return np.random.default_rng(0).normal(0, 2, (batch, *graph.input.shape)).astype(np.float32)


def transposed(channels: int, size: tuple[int, int], dilation: tuple[int, int], zero_point: int) -> Graph:
    b = Builder((channels, *size))
    x = b.dilate(b.quantize(0, zero_point=zero_point), *dilation)
    b.conv2d(x, 5, (2, 3), padding=(1, 2, 0, 1), floats=True)
    return b.graph()


@pytest.mark.parametrize("zero_point", [0, 131, 255])
@pytest.mark.parametrize(
    ("channels", "size", "dilation"),
    [
        (1, (1, 1), (3, 2)),
        (1, (5, 4), (2, 2)),
        (3, (4, 7), (1, 3)),
        (16, (3, 5), (2, 1)),
        (37, (6, 1), (4, 5)),
        (64, (9, 9), (2, 2)),
        (4, (2, 2), (1, 1)),
    ],
)
def test_every_geometry(
    channels: int, size: tuple[int, int], dilation: tuple[int, int], zero_point: int, isa: str
) -> None:
    graph = transposed(channels, size, dilation, zero_point)
    x = samples(graph)
    expected = reference.run(graph, x)
    for num_threads in (1, 2):
        model = Model.from_graph(graph, num_threads=num_threads, tune=False)
        for _ in range(2):  # memory that other values had before
            np.testing.assert_array_equal(model(x).view(np.uint32), expected.view(np.uint32))


def test_beside_others_in_a_concatenation() -> None:
    """Written in place: bytes of its neighbours must stay."""
    b = Builder((8, 3, 3))
    x = b.quantize(0)
    wide = b.add("pad", [x], {"before": [0, 1, 1], "after": [0, 1, 1]}, qparams=b.kept(x))
    up = b.dilate(b.conv2d(x, 8), 2, 2)
    other = b.add("lookup", [wide], {}, {"table": np.arange(256, dtype=np.uint8)}, qparams=b.kept(up))
    b.conv2d(b.affine(b.concat(other, up, other, up)), 4, floats=True)
    graph = b.graph()
    x = samples(graph)
    np.testing.assert_array_equal(Model.from_graph(graph)(x), reference.run(graph, x))


def test_a_large_layer_on_many_threads() -> None:
    graph = transposed(64, (40, 40), (2, 2), 7)
    x = samples(graph, 1)
    np.testing.assert_array_equal(Model.from_graph(graph, num_threads=3)(x), Model.from_graph(graph)(x))


def test_floats(isa: str) -> None:
    node = Node("dilate", "up", (0,), Value((3, 5, 4), "f32"), {"dilation": [2, 3]})
    graph = Graph(Value((3, 3, 2), "f32"), (node,))
    x = samples(graph)
    got = Model.from_graph(graph)(x)
    expected = np.zeros_like(got)
    expected[:, :, ::2, ::3] = x
    np.testing.assert_array_equal(got, expected)
    _, metadata, _ = split(pqk_format.dumps(graph, compact=False))
    assert (metadata["version"], metadata["required_features"]) == ([1, 1], ["dilate", "float-codebook"])


def test_the_feature_is_required() -> None:
    data = pqk_format.dumps(transposed(2, (3, 3), (2, 2), 9), compact=False)
    assert "dilate" in split(data)[1]["required_features"]
    assert refused(set_metadata(["required_features"], [], data)).code == "E_FEATURE"
    error = refused(set_metadata(["nodes", 1, "stride"], [2, 2], data))
    assert (error.code, error.field) == ("E_HEADER", "nodes[1].node")


# Nodes: 0 quantize, 1 dilate (4, 3, 3) -> (4, 5, 5), 2 conv2d.
CASES: list[tuple[str, str, Callable[[Graph], Graph]]] = [
    ("E_GRAPH_ATTR", "dilation", without(1, "dilation")),
    ("E_GRAPH_ATTR", "dilation", attribute(1, "dilation", [0, 2])),
    ("E_GRAPH_ATTR", "dilation", attribute(1, "dilation", [2, -1])),
    ("E_GRAPH_ATTR", "dilation", attribute(1, "dilation", [2, 2**31])),
    ("E_GRAPH_ATTR", "dilation", attribute(1, "dilation", [2, 2, 2])),
    ("E_GRAPH_ATTR", "dilation", attribute(1, "dilation", 2)),
    ("E_GRAPH_ATTR", "dilation", attribute(1, "dilation", [2.0, 2])),
    ("E_GRAPH_ATTR", "stride", attribute(1, "stride", [2, 2])),
    ("E_GRAPH_ATTR", "weight", tensor(1, "weight", np.zeros((4, 4, 1, 1), np.int8))),
    ("E_GRAPH_SHAPE", "shape", attribute(1, "dilation", [2, 3])),
    ("E_GRAPH_SHAPE", "shape", attribute(1, "dilation", [2**31 - 1] * 2)),
    ("E_GRAPH_SHAPE", "shape", value(1, shape=(4, 6, 6))),
    ("E_GRAPH_SHAPE", "shape", value(1, shape=(100,))),
    ("E_GRAPH_REF", "inputs", inputs(1, 1, 1)),
    ("E_GRAPH_REF", "inputs[0]", inputs(1, 2)),
    ("E_QPARAM", "scale", value(1, scale=0.5)),
    ("E_QPARAM", "scale", value(1, zero_point=0)),
]


@pytest.mark.parametrize(("code", "field", "change"), CASES, ids=[f"{c}-{f}-{i}" for i, (c, f, _) in enumerate(CASES)])
def test_refused(code: str, field: str, change: Callable[[Graph], Graph]) -> None:
    graph = change(transposed(4, (3, 3), (2, 2), 131))
    for check in (Model.from_graph, pqk_format.dumps):
        with pytest.raises(FormatError) as caught:
            check(graph)
        assert caught.value.code == code
        assert field in caught.value.field
        assert caught.value.field.startswith("nodes[1]")


def test_channels_of_different_scales_are_refused() -> None:
    """There is no one code for 0."""
    b = Builder((2, 3, 3))
    x = b.quantize(0)
    mixed = b.concat(x, b.conv2d(x, 2))
    b.dequantize(b.dilate(x, 2, 2))
    graph = inputs(3, mixed)(b.graph())
    graph = changed(graph, 3, value=Value((4, 5, 5), "u8"))
    for check in (Model.from_graph, pqk_format.dumps):
        with pytest.raises(FormatError, match=r"inputs\[0\].*E_QPARAM"):
            check(graph)


def test_bombs_are_refused_before_anything_is_allocated() -> None:
    b = Builder((1, 2, 2))
    x = b.quantize(0)
    side = 2**20
    qparams = {"scale": b.value(x).scale, "zero_point": b.value(x).zero_point}
    b.nodes.append(Node("dilate", "up", (x,), Value((1, side, side), "u8", **qparams), {"dilation": [side - 1] * 2}))
    b.dequantize(b.slice(2, (0, 0, 0), (1, 1, 1), (1, 1, 1)))
    for check in (Model.from_graph, pqk_format.dumps):
        with pytest.raises(FormatError, match="E_BOMB"):
            check(b.graph())
