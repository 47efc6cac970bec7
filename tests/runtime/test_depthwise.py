"""Depthwise kernels against the numpy reference, each chosen by name: channel tails, odd rows, strides, batches."""

from __future__ import annotations

import numpy as np
import pytest

from pqk_ext.runtime import Graph, Model
from tests.runtime import reference
from tests.runtime.graphs import Builder

# Channels fill blocks of 64, leave one vector's worth or less, or more than half a block; 150 columns do not fit
# what a kernel holds at once.
SHAPES = [(2, 5, 7), (5, 1, 1), (24, 2, 2), (32, 9, 150), (48, 4, 5), (64, 25, 5), (72, 3, 3), (144, 5, 6)]


def network(shape: tuple[int, int, int], stride: int) -> Graph:
    b = Builder(shape, seed=stride)
    x = b.conv2d(b.quantize(0), shape[0], stride=(stride, stride), groups=shape[0])
    b.conv2d(x, 3, (1, 1), padding=(0, 0, 0, 0), floats=True)
    return b.graph()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_3x3(isa: str, shape: tuple[int, int, int], stride: int) -> None:
    graph = network(shape, stride)
    x = np.random.default_rng(0).normal(0, 2, (5, *shape)).astype(np.float32)
    expected = reference.run(graph, x)
    ran = set()
    for kernel in ("depthwise3x3", "depthwise", "direct"):
        for num_threads in (1, 2):
            model = Model.from_graph(graph, num_threads=num_threads, kernels={"*": kernel})
            ran.add(dict(model.kernels)["conv2d_1"])
            np.testing.assert_array_equal(model(x), expected)
            np.testing.assert_array_equal(model(x[:1]), expected[:1])
    assert {"depthwise", "direct"} <= ran
    assert ("depthwise3x3" in ran) == (isa == "avx512vnni")


def test_multipliers_too_large_for_int32() -> None:
    graph = network((8, 4, 4), 1)
    tensors = graph.nodes[1].tensors
    tensors["multiplier"][:] = np.float32([1e19, -1e19, 1e7, -1e7, 1e4, -1e4, 1, -1])
    x = np.random.default_rng(0).normal(0, 2, (2, 8, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(Model.from_graph(graph)(x), reference.run(graph, x))
