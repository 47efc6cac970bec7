"""What the engine's own checks refuse, whatever read the file: code and field of every rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pqk_ext.errors import FormatError
from pqk_ext.runtime import Graph, Model, Node, Value
from tests.runtime.graphs import Builder

BAD_SCALES = [0.0, -1.0, float("nan"), float("inf"), 1e-40, 1e39]


def base() -> Graph:
    """One node of every operator."""
    b = Builder((4, 6, 6))
    x = b.quantize(0)  # 0
    y = b.conv2d(x, 4, residual=x)  # 1
    z = b.sum(y, x)  # 2
    wide = b.concat(y, z)  # 3
    w = b.affine(wide)  # 4
    w = b.lookup(w)  # 5
    w = b.max_pool2d(w, (2, 2), (2, 2), (1, 1, 1, 1))  # 6
    w = b.avg_pool2d(w, (2, 2), (1, 1), (0, 0, 0, 0), 1)  # 7
    w = b.pad(w, (0, 1, 1), (0, 1, 1))  # 8
    w = b.slice(w, (0, 0, 0), (8, 5, 5), (1, 2, 2))  # 9
    w = b.adaptive_avg_pool2d(w, 2, 2)  # 10
    w = b.linear(b.flatten(w), 6)  # 11, 12
    w = b.dequantize(w)  # 13
    b.softmax(w)  # 14
    return b.graph()


def changed(graph: Graph, index: int, **fields: Any) -> Graph:
    nodes = list(graph.nodes)
    nodes[index] = replace(nodes[index], **fields)
    return Graph(graph.input, tuple(nodes))


def attribute(index: int, name: str, value: Any) -> Callable[[Graph], Graph]:
    return lambda g: changed(g, index, attributes={**g.nodes[index].attributes, name: value})


def without(index: int, name: str) -> Callable[[Graph], Graph]:
    return lambda g: changed(g, index, attributes={k: v for k, v in g.nodes[index].attributes.items() if k != name})


def tensor(index: int, name: str, value: Any) -> Callable[[Graph], Graph]:
    return lambda g: changed(g, index, tensors={**g.nodes[index].tensors, name: value})


def value(index: int, **fields: Any) -> Callable[[Graph], Graph]:
    return lambda g: changed(g, index, value=replace(g.nodes[index].value, **fields))


def inputs(index: int, *references: Any) -> Callable[[Graph], Graph]:
    return lambda g: changed(g, index, inputs=references)


def weight_code(code: int) -> Callable[[Graph], Graph]:
    def change(graph: Graph) -> Graph:
        weight = graph.nodes[1].tensors["weight"].copy()
        weight.flat[5] = code
        return tensor(1, "weight", weight)(graph)

    return change


def growth(before: list[int]) -> dict[str, Any]:
    return {"before": before, "after": [0, 0, 0]}


CASES: list[tuple[str, str, Callable[[Graph], Graph]]] = [
    ("E_ENUM", "op", lambda g: changed(g, 2, op="exec")),
    ("E_ENUM", "value.dtype", value(1, dtype="f16")),
    ("E_ENUM", "value.dtype", value(13, dtype="u8")),
    ("E_ENUM", "input.dtype", lambda g: Graph(replace(g.input, dtype="u8"), g.nodes)),
    ("E_ENUM", "value.dtype", lambda g: Graph(g.input, g.nodes[:3])),
    ("E_GRAPH_REF", "nodes", lambda g: Graph(g.input, ())),
    ("E_GRAPH_REF", "inputs[0]", inputs(1, -1, 1)),
    ("E_GRAPH_REF", "inputs[0]", inputs(1, 2, 1)),
    ("E_GRAPH_REF", "inputs[1]", inputs(1, 1, 2**63 - 1)),
    ("E_GRAPH_REF", "inputs[1]", inputs(1, 1, 2**70)),
    ("E_GRAPH_REF", "inputs[0]", inputs(1, 1.0, 1)),
    ("E_GRAPH_REF", "inputs", inputs(1)),
    ("E_GRAPH_REF", "inputs", inputs(1, 1, 1, 1)),
    ("E_GRAPH_REF", "inputs", inputs(2, 1)),
    ("E_GRAPH_REF", "inputs[0]", inputs(1, 0, 1)),
    ("E_GRAPH_REF", "inputs[0]", inputs(14, 13)),
    ("E_GRAPH_ATTR", "stride", without(1, "stride")),
    ("E_GRAPH_ATTR", "quant_max", without(1, "quant_max")),
    ("E_GRAPH_ATTR", "residual_multiplier", without(1, "residual_multiplier")),
    ("E_GRAPH_ATTR", "residual_multiplier", inputs(1, 1)),
    ("E_GRAPH_ATTR", "colour", attribute(1, "colour", 1)),
    ("E_GRAPH_ATTR", "stride[1]", attribute(1, "stride", [1, 0])),
    ("E_GRAPH_ATTR", "dilation[0]", attribute(1, "dilation", [0, 1])),
    ("E_GRAPH_ATTR", "padding[2]", attribute(1, "padding", [1, 1, -1, 1])),
    ("E_GRAPH_ATTR", "padding[0]", attribute(1, "padding", [2**31, 1, 1, 1])),
    ("E_GRAPH_ATTR", "padding", attribute(1, "padding", [1, 1])),
    ("E_GRAPH_ATTR", "stride", attribute(1, "stride", 1)),
    ("E_GRAPH_ATTR", "stride[0]", attribute(1, "stride", [1.0, 1])),
    ("E_GRAPH_ATTR", "groups", attribute(1, "groups", 3)),
    ("E_GRAPH_ATTR", "groups", attribute(1, "groups", 0)),
    ("E_GRAPH_ATTR", "groups", attribute(1, "groups", 2**80)),
    ("E_GRAPH_ATTR", "groups", attribute(1, "groups", True)),
    ("E_GRAPH_ATTR", "kernel[0]", attribute(6, "kernel", [0, 2])),
    ("E_GRAPH_ATTR", "padding", attribute(6, "padding", [2, 1, 0, 1])),
    ("E_GRAPH_ATTR", "count_include_pad", attribute(7, "count_include_pad", 2)),
    ("E_GRAPH_ATTR", "stop[1]", attribute(9, "stop", [8, 6, 5])),
    ("E_GRAPH_ATTR", "start[0]", attribute(9, "start", [8, 0, 0])),
    ("E_GRAPH_ATTR", "step[2]", attribute(9, "step", [1, 2, 0])),
    ("E_GRAPH_ATTR", "output_size[0]", attribute(10, "output_size", [0, 2])),
    ("E_GRAPH_ATTR", "before[0]", attribute(8, "before", [-1, 1, 1])),
    ("E_GRAPH_ATTR", "tensors.weight", lambda g: changed(g, 1, tensors={})),
    ("E_GRAPH_ATTR", "tensors.weight", tensor(1, "weight", np.zeros((4, 4, 3, 3), np.int16))),
    ("E_GRAPH_ATTR", "tensors.weight", tensor(1, "weight", [1, 2])),
    ("E_GRAPH_ATTR", "tensors.extra", tensor(1, "extra", np.zeros(4, np.int8))),
    ("E_GRAPH_ATTR", "tensors.bias", tensor(1, "bias", np.zeros(4, ">f4"))),
    ("E_GRAPH_SHAPE", "tensors.weight", tensor(1, "weight", np.zeros((4, 36), np.int8))),
    ("E_GRAPH_SHAPE", "tensors.weight.shape[1]", tensor(1, "weight", np.zeros((4, 5, 3, 3), np.int8))),
    ("E_GRAPH_SHAPE", "tensors.weight.shape[2]", tensor(1, "weight", np.zeros((4, 4, 0, 3), np.int8))),
    ("E_GRAPH_SHAPE", "inputs[0]", tensor(1, "weight", np.zeros((4, 4, 9, 3), np.int8))),
    ("E_GRAPH_SHAPE", "tensors.multiplier.shape[0]", tensor(1, "multiplier", np.zeros(3, np.float32))),
    ("E_GRAPH_SHAPE", "tensors.bias.shape[0]", tensor(12, "bias", np.zeros(7, np.float32))),
    ("E_GRAPH_SHAPE", "tensors.table.shape[0]", tensor(5, "table", np.zeros(255, np.uint8))),
    ("E_GRAPH_SHAPE", "tensors.zero_point.shape[0]", tensor(4, "zero_point", np.zeros(4, np.uint8))),
    ("E_GRAPH_SHAPE", "value.shape", value(1, shape=(4, 6, 5))),
    ("E_GRAPH_SHAPE", "value.shape", value(3, shape=(9, 6, 6))),
    ("E_GRAPH_SHAPE", "value.shape", value(6, shape=(8, 3, 4))),
    ("E_GRAPH_SHAPE", "value.shape", value(8, shape=(8, 5, 6))),
    ("E_GRAPH_SHAPE", "value.shape", value(9, shape=(8, 2, 3))),
    ("E_GRAPH_SHAPE", "value.shape", value(11, shape=(31,))),
    ("E_GRAPH_SHAPE", "value.shape", value(11, shape=(4, 8))),
    ("E_GRAPH_SHAPE", "value.shape[0]", value(1, shape=(0, 6, 6))),
    ("E_GRAPH_SHAPE", "value.shape[0]", value(1, shape=(2**40, 6, 6))),
    ("E_GRAPH_SHAPE", "inputs[0]", inputs(12, 11)),
    ("E_QPARAM", "quant_max", attribute(1, "quant_max", 256)),
    ("E_QPARAM", "quant_min", attribute(1, "quant_min", -1)),
    ("E_QPARAM", "quant_min", lambda g: changed(g, 0, attributes={"quant_min": 9, "quant_max": 8})),
    ("E_QPARAM", "value.zero_point", value(1, zero_point=256)),
    ("E_QPARAM", "value.zero_point", value(0, zero_point=-1)),
    ("E_QPARAM", "value.zero_point", attribute(0, "quant_max", 127)),
    ("E_QPARAM", "value", value(1, zero_point=None)),
    ("E_QPARAM", "value.scale", value(0, scale=None, zero_point=None)),
    ("E_QPARAM", "value.scale", value(13, scale=1.0, zero_point=0)),
    ("E_QPARAM", "value.scale", value(6, scale=0.5)),
    ("E_QPARAM", "value.scale", value(3, scale=0.5, zero_point=1)),
    ("E_QPARAM", "inputs[0]", lambda g: changed(g, 4, op="pad", attributes=growth([0, 0, 0]), tensors={})),
    ("E_QPARAM", "tensors.weight", weight_code(-128)),
    ("E_QPARAM", "tensors.multiplier[2]", tensor(1, "multiplier", np.array([0, 0, np.nan, 0], np.float32))),
    ("E_QPARAM", "tensors.bias[0]", tensor(1, "bias", np.array([np.inf, 0, 0, 0], np.float32))),
    ("E_QPARAM", "tensors.multiplier[3]", tensor(1, "multiplier", np.array([0, 0, 0, 1e30], np.float32))),
    ("E_QPARAM", "multiplier_a", attribute(2, "multiplier_a", float("nan"))),
    ("E_QPARAM", "bias", attribute(2, "bias", float("-inf"))),
    ("E_GRAPH_ATTR", "bias", attribute(2, "bias", [1])),
    *(("E_QPARAM", "value.scale", value(1, scale=scale)) for scale in BAD_SCALES),
]


def test_the_base_is_accepted() -> None:
    assert Model.from_graph(base())(np.zeros((1, 4, 6, 6), np.float32)).shape == (1, 6)


@pytest.mark.parametrize(("code", "field", "change"), CASES, ids=[f"{c}-{f}-{i}" for i, (c, f, _) in enumerate(CASES)])
def test_refused(code: str, field: str, change: Callable[[Graph], Graph]) -> None:
    with pytest.raises(FormatError) as caught:
        Model.from_graph(change(base()))
    assert caught.value.code == code
    assert caught.value.field.endswith(field), caught.value.field


def test_the_node_is_named() -> None:
    with pytest.raises(FormatError, match=r"nodes\[1\] 'conv2d_1'\.stride\[1\]: expected .* got 0 \[E_GRAPH_ATTR\]"):
        Model.from_graph(attribute(1, "stride", [1, 0])(base()))


def accumulator(products: int, code: int) -> Graph:
    b = Builder((products,))
    x = b.quantize(0, zero_point=0)
    node = Node(
        "linear",
        "wide",
        (x,),
        Value((1,), "f32"),
        {},
        {
            "weight": np.full((1, products), code, np.int8),
            "multiplier": np.ones(1, np.float32),
            "bias": np.zeros(1, np.float32),
        },
    )
    return Graph(b.input, (*b.nodes, node))


def test_sums_stay_within_int32(isa: str) -> None:
    limit = (2**31 - 1) // (255 * 127)
    with pytest.raises(FormatError, match=r"tensors\.weight\[0\].*E_QPARAM"):
        Model.from_graph(accumulator(limit + 1, 127))
    for code in (-127, 127):
        ones = np.full((1, limit), 100.0, np.float32)
        assert Model.from_graph(accumulator(limit, code))(ones)[0, 0] == np.float32(255 * limit * code)
    many = 2 * limit
    assert Model.from_graph(accumulator(many, 1))(np.full((1, many), 100.0, np.float32))[0, 0] == np.float32(255 * many)


def bomb(*steps: tuple[str, dict[str, Any], tuple[int, ...]]) -> Graph:
    b = Builder((1, 1, 1))
    b.quantize(0)
    for op, attributes, shape in steps:
        qparams = {"scale": b.value(1).scale, "zero_point": b.value(1).zero_point}
        b.nodes.append(Node(op, f"grow_{len(b.nodes)}", (len(b.nodes),), Value(shape, "u8", **qparams), attributes))
    b.dequantize(b.slice(len(b.nodes), (0, 0, 0), (1, 1, 1), (1, 1, 1)))
    return b.graph()


def test_bombs_are_refused_before_anything_is_allocated() -> None:
    tebibyte = bomb(("pad", growth([2**20 - 1, 2**20 - 1, 0]), (2**20, 2**20, 1)))
    with pytest.raises(FormatError, match=r"nodes\[1\] 'grow_1'\.value\.shape.*E_BOMB"):
        Model.from_graph(tebibyte)
    overflow = bomb(("pad", growth([2**31 - 2] * 3), (2**31 - 1,) * 3))
    with pytest.raises(FormatError, match="E_BOMB"):
        Model.from_graph(overflow)
    # Each value is small enough alone, both together are not.
    x = bomb(("pad", growth([2**29 - 1, 0, 0]), (2**29, 1, 1)), ("pad", growth([2**28, 0, 0]), (3 * 2**28, 1, 1)))
    with pytest.raises(FormatError, match=r"nodes\[2\] 'grow_2': .*E_BOMB"):
        Model.from_graph(x)


def test_borders_count_as_memory() -> None:
    """A one-pixel image whose convolution asks for a border of 2^60 bytes."""
    b = Builder((1, 1, 1))
    x = b.quantize(0)
    far = 2**30
    b.conv2d(x, 1, (1, 1), (far, far), (far, far, far, far), floats=True)
    with pytest.raises(FormatError, match=r"nodes\[0\] 'quantize_0'.*E_BOMB"):
        Model.from_graph(b.graph())


def test_the_limit_is_an_option() -> None:
    graph = base()
    needed = Model.from_graph(graph).activation_bytes
    Model.from_graph(graph, max_activation_bytes=needed)
    with pytest.raises(FormatError, match="E_BOMB"):
        Model.from_graph(graph, max_activation_bytes=needed // 2)
    with pytest.raises(ValueError, match="max_activation_bytes must be positive, got 0"):
        Model.from_graph(graph, max_activation_bytes=0)
