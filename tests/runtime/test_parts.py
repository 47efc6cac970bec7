"""Layers divided among threads by rows and by output channels: equal bits for one image of few rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pqk_ext.runtime import Graph, Model
from tests.runtime import reference
from tests.runtime.graphs import Builder


def wide(floats: bool) -> Graph:
    """Three rows of many channels, the last tile of which is not full: residual codes, then floats or a linear."""
    b = Builder((64, 3, 4), seed=3)
    x = b.conv2d(b.quantize(0), 264)
    x = b.conv2d(x, 250, residual=b.conv2d(x, 250, (1, 1), padding=(0, 0, 0, 0)))
    if floats:
        b.conv2d(x, 170, floats=True)
    else:
        b.linear(b.flatten(x), 301, floats=True)
    return b.graph()


@pytest.mark.parametrize("floats", [False, True])
def test_one_image_on_many_threads(isa: str, floats: bool) -> None:
    graph = wide(floats)
    x = np.random.default_rng(0).normal(0, 2, (3, 64, 3, 4)).astype(np.float32)
    expected = reference.run(graph, x)
    for num_threads in (2, 3, 5):
        model = Model.from_graph(graph, num_threads=num_threads)
        for _ in range(5):
            np.testing.assert_array_equal(model(x[:1]), expected[:1])
        np.testing.assert_array_equal(model(x), expected)


def test_several_callers_and_engines() -> None:
    graphs = [wide(False), wide(True)]
    x = np.random.default_rng(0).normal(0, 2, (1, 64, 3, 4)).astype(np.float32)
    expected = [reference.run(graph, x) for graph in graphs]
    models = [Model.from_graph(graph, num_threads=2) for graph in graphs]

    def call(index: int) -> None:
        for _ in range(20):
            np.testing.assert_array_equal(models[index % 2](x), expected[index % 2])

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(call, range(4)))
