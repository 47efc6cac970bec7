"""Networks over sequences: samples (C, L), which the graph holds as images of height 1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pqk_ext.errors import FormatError
from pqk_ext.runtime import Graph, Model, Node, Value, load
from pqk_ext.runtime import format as pqk_format
from tests.runtime import float_reference, reference
from tests.runtime.files import refused, set_metadata, split
from tests.runtime.graphs import Builder

GOLDEN = Path(__file__).parent.parent / "golden" / "v1.1" / "sequence.pqk"


def inputs(*shape: int) -> Any:
    return np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)


def test_the_engine_agrees_with_the_reference(isa: str) -> None:
    graph = pqk_format.read(GOLDEN)
    model = load(GOLDEN, num_threads=2)
    assert (model.input_shape, model.output_shape) == ((5, 21), (4, 5))
    for batch in (0, 1, 7):
        x = inputs(batch, 5, 21)
        expected = reference.run(graph, x)
        assert expected.shape == (batch, 4, 5)
        np.testing.assert_array_equal(model(x).view(np.uint32), expected.view(np.uint32))
        out = np.empty_like(expected)
        assert model.run(x, out) is out
        np.testing.assert_array_equal(out, expected)


def test_weights_that_stay_coded() -> None:
    x = inputs(3, 5, 21)
    np.testing.assert_array_equal(load(GOLDEN, weights="coded")(x), load(GOLDEN)(x))


def test_a_vector_at_the_end(isa: str) -> None:
    builder = Builder((3, 1, 10))
    builder.linear(
        builder.flatten(builder.conv2d(builder.quantize(0), 7, (1, 3), padding=(0, 1, 0, 1))), 4, floats=True
    )
    graph = Graph(Value((3, 10), "f32"), builder.graph().nodes)
    model = Model.from_graph(graph)
    assert model.output_shape == (4,)
    x = inputs(2, 3, 10)
    np.testing.assert_array_equal(model(x), reference.run(graph, x))
    assert pqk_format.loads(pqk_format.dumps(graph)).input == graph.input


def test_float_values(isa: str) -> None:
    nodes = (
        Node("pad", "pad", (0,), Value((3, 1, 8), "f32"), {"before": [1, 0, 2], "after": [0, 0, 1]}),
        Node("float_map", "gate", (1,), Value((3, 1, 8), "f32"), {"function": "tanh"}),
    )
    graph = Graph(Value((2, 5), "f32"), nodes)
    features = split(pqk_format.dumps(graph, compact=False))[1]["required_features"]
    assert features == ["float-codebook", "sequence-input"]
    x = inputs(4, 2, 5)
    expected = float_reference.run(graph, x)
    got = Model.from_graph(graph)(x)
    assert got.shape == (4, 3, 8)
    assert (np.abs(got - expected.value) <= expected.error).all()


@pytest.mark.parametrize("shape", [(2, 5, 1, 21), (5, 21), (2, 21, 5), (2, 105)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(N, 5, 21\)"):
        load(GOLDEN)(inputs(*shape))
    with pytest.raises(ValueError, match=r"out must have shape \(2, 4, 5\)"):
        load(GOLDEN).run(inputs(2, 5, 21), np.empty((2, 4, 1, 5), np.float32))


def test_the_feature_is_required(golden_graphs: ModuleType) -> None:
    data = GOLDEN.read_bytes()
    assert split(data)[1]["required_features"] == ["sequence-input"]
    assert refused(set_metadata(["required_features"], [], data)).code == "E_FEATURE"
    error = refused(set_metadata(["input"], [5, 1, 21], data))
    assert (error.code, error.field) == ("E_FEATURE", "required_features")
    for bad, code in (([5, 0], "E_SHAPE"), ([5, 22], "E_GRAPH_SHAPE"), ([2**31, 21], "E_SHAPE")):
        assert refused(set_metadata(["input"], bad, data)).code == code


def test_a_result_with_a_height_is_refused() -> None:
    graph = pqk_format.read(GOLDEN)
    grown = Node("pad", "pad", (4,), Value((4, 2, 5), "f32"), {"before": [0, 1, 0], "after": [0, 0, 0]})
    graph = replace(graph, nodes=(*graph.nodes, grown))
    with pytest.raises(FormatError, match=r"nodes\[4\].*height 1, as the input is \(C, L\).*E_GRAPH_SHAPE"):
        Model.from_graph(graph)
    with pytest.raises(FormatError, match=r"nodes\[4\]\.shape: expected height 1.*E_GRAPH_SHAPE"):
        pqk_format.dumps(graph)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (2**40, 2**40), (1, 2, 3, 4), ()])
def test_the_engine_checks_the_input_itself(shape: tuple[int, ...]) -> None:
    graph = pqk_format.read(GOLDEN)
    with pytest.raises(FormatError, match=r"input\.shape.*E_(GRAPH_SHAPE|BOMB)"):
        Model.from_graph(replace(graph, input=Value(shape, "f32")))
