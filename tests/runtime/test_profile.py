"""The costs of layers against plain counting, and how they meet measured times."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings

from pqk_ext.runtime import Model
from pqk_ext.runtime.graph import Graph, Node
from pqk_ext.runtime.profile import LayerCost, block_density, layer_costs, layer_times

from .graphs import Builder, ds_cnn, graphs, resnet8


def count_macs(node: Node) -> int:
    """One by one: for each output, each weight of its channel."""
    if "weight" not in node.tensors:
        return 0
    weight = node.tensors["weight"]
    return sum(weight[channel].size for channel, *_ in np.ndindex(*node.value.shape))


def count_blocks(weight: np.ndarray) -> float:
    """Share of blocks with a weight that is not 0, by walking over every filter tap."""
    blocks = []
    for filter_ in weight.reshape(*weight.shape[:2], -1):
        for tap in filter_.T.tolist():
            blocks += [any(tap[i : i + 4]) for i in range(0, len(tap), 4)]
    return sum(blocks) / len(blocks)


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_costs_of_any_graph(graph: Graph) -> None:
    for node, cost in zip(graph.nodes, layer_costs(graph), strict=True):
        assert (cost.node, cost.op, cost.output_shape) == (node.name, node.op, node.value.shape)
        assert cost.macs == count_macs(node)
        values = [*(graph.value(i) for i in node.inputs), node.value]
        moved = sum(math.prod(v.shape) * (4 if v.dtype == "f32" else 1) for v in values)
        assert cost.memory_bytes == moved + sum(len(t.tobytes()) for t in node.tensors.values())
        assert cost.intensity == cost.macs / cost.memory_bytes
        if "weight" in node.tensors:
            weight = node.tensors["weight"]
            assert cost.density == sum(w != 0 for w in weight.flatten().tolist()) / weight.size
            assert cost.block_density == pytest.approx(count_blocks(weight))
        else:
            assert (cost.density, cost.block_density) == (None, None)


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 7, 8, 130])
def test_blocks_are_aligned_and_the_last_may_be_short(channels: int) -> None:
    weight = np.zeros((2, channels, 3, 1), np.int8)
    weight[1, channels - 1, 2] = -1
    weight[0, 0, 0] = 1
    assert block_density(weight) == pytest.approx(2 / (2 * 3 * math.ceil(channels / 4)))


def test_known_totals() -> None:
    """The multiply-adds that MLPerf Tiny's networks are known for."""
    assert sum(cost.macs for cost in layer_costs(resnet8())) == 12_501_632
    assert sum(cost.macs for cost in layer_costs(ds_cnn())) == 2_656_768


def test_geometry() -> None:
    builder = Builder((8, 9, 7))
    x = builder.quantize(0)
    builder.conv2d(x, 16, (3, 1), stride=(2, 1), padding=(1, 0, 1, 0), groups=4)
    costs = layer_costs(builder.graph())
    assert costs[1] == LayerCost(
        node="conv2d_1",
        op="conv2d",
        input_shape=(8, 9, 7),
        output_shape=(16, 5, 7),
        kernel=(3, 1),
        stride=(2, 1),
        groups=4,
        density=costs[1].density,
        block_density=costs[1].block_density,
        macs=16 * 5 * 7 * 2 * 3,
        memory_bytes=8 * 9 * 7 + 16 * 5 * 7 + 16 * 2 * 3 + 2 * 4 * 16,
    )
    assert (costs[0].kernel, costs[0].stride, costs[0].groups) == (None, None, 1)


def test_every_step_of_a_model_finds_its_cost() -> None:
    graph = resnet8()
    model = Model.from_graph(graph)
    x = np.zeros((1, *graph.input.shape), np.float32)
    times = layer_times(graph, model.profile(x, 2))
    assert [(t.cost.node, t.kernel) for t in times] == model.kernels
    assert sum(t.cost.macs for t in times) == 12_501_632
    assert all(t.seconds > 0 for t in times)


def test_nodes_of_one_name_are_told_apart_by_their_order() -> None:
    graph = resnet8()
    nodes = tuple(Node(n.op, "x", n.inputs, n.value, n.attributes, n.tensors) for n in graph.nodes)
    steps = [("x", f"kernel {i}", 1.0 + i) for i in range(len(nodes))]
    times = layer_times(Graph(graph.input, nodes), steps)
    assert [t.cost.macs for t in times] == [cost.macs for cost in layer_costs(graph)]
    assert times[1].macs_per_second == times[1].cost.macs / 2.0


def test_a_step_that_is_no_node_moves_the_output() -> None:
    graph = resnet8()
    (time,) = layer_times(graph, [("output", "reorder", 1e-6)])
    assert (time.cost.op, time.cost.macs, time.cost.memory_bytes) == ("", 0, 2 * 4 * 10)
    assert time.macs_per_second == 0
