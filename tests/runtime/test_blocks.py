"""The kernel for weights in 1x4 blocks: panels that share lines between taps, end in the middle, or span images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pqk_ext.runtime import Graph, Model
from tests.runtime import reference
from tests.runtime.graphs import Builder


def blocks_of(weight: Any, density: float, random: Any) -> Any:
    """Random nonzero weights in whole blocks of four input channels, some output channels without any."""
    blocks = random.random((weight.shape[0], -(-weight.shape[1] // 4), *weight.shape[2:])) < density
    blocks[random.integers(weight.shape[0])] = False
    mask = np.repeat(blocks, 4, axis=1)[:, : weight.shape[1]]
    return (random.integers(-127, 128, weight.shape) * mask).astype(np.int8)


def layer(shape: tuple[int, ...], channels: int, density: float = 0.3, residual: bool = False, **conv: Any) -> Graph:
    """One convolution between two identity convolutions, so that images have borders, or with a float output."""
    build = Builder(shape, seed=1)
    x = build.quantize(0, zero_point=77)
    if residual:
        conv["residual"] = build.conv2d(x, channels, (1, 1), conv.get("stride", (1, 1)), (0, 0, 0, 0))
    build.conv2d(x, channels, **conv)
    for node in build.nodes[1:]:
        node.tensors["weight"] = blocks_of(node.tensors["weight"], density, build.random)
    if not conv.get("floats"):
        build.dequantize(len(build.nodes))
    return build.graph()


NONE = (0, 0, 0, 0)
CASES = {
    "rows of 32": ((16, 32, 32), 16, {}),
    "rows of 32, ragged end": ((20, 31, 32), 17, {"residual": True}),
    "rows of 16": ((33, 16, 16), 40, {"residual": True}),
    "pairs of rows": ((18, 11, 8), 24, {"residual": True}),
    "rows of 4": ((64, 4, 4), 33, {"residual": True}),
    "2x2 images": ((132, 2, 2), 20, {}),
    "odd rows": ((7, 9, 13), 21, {"residual": True}),
    "stride 2": ((12, 32, 32), 20, {"stride": (2, 2), "residual": True, "kernel": (3, 3)}),
    "stride 2, row pairs": ((12, 16, 16), 20, {"stride": (2, 2)}),
    "1x1": ((30, 8, 8), 19, {"kernel": (1, 1), "padding": NONE, "residual": True}),
    "1x1 stride 2": ((30, 16, 16), 19, {"kernel": (1, 1), "padding": NONE, "stride": (2, 2)}),
    "dilated": ((9, 16, 16), 16, {"dilation": (2, 2), "padding": (2, 2, 2, 2)}),
    "tall kernel, rows of 4": ((5, 12, 4), 9, {"kernel": (5, 1), "padding": NONE}),
    "tall kernel, wide rows": ((5, 12, 64), 9, {"kernel": (9, 2), "padding": (4, 1, 4, 0)}),
    "floats": ((24, 9, 8), 35, {"floats": True}),
    "one channel": ((1, 10, 16), 8, {}),
    "many channels": ((512, 4, 4), 18, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_layer(isa: str, case: str) -> None:
    shape, channels, conv = CASES[case]
    graph = layer(shape, channels, **conv)
    x = np.random.default_rng(2).normal(0, 2, (5, *shape)).astype(np.float32)
    expected = reference.run(graph, x)
    assert np.unique(expected).size > 4
    for num_threads in (1, 3):
        model = Model.from_graph(graph, num_threads=num_threads, kernels={"*": "blocks"})
        assert all(kernel == "blocks" for name, kernel in model.kernels if name.startswith("conv2d"))
        for batch in (5, 1):
            np.testing.assert_array_equal(model(x[:batch]).view(np.uint32), expected[:batch].view(np.uint32))


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_extremes(isa: str, density: float) -> None:
    graph = layer((24, 16, 16), 20, density)
    x = np.random.default_rng(2).normal(0, 2, (2, 24, 16, 16)).astype(np.float32)
    model = Model.from_graph(graph, kernels={"*": "blocks"})
    np.testing.assert_array_equal(model(x), reference.run(graph, x))


def test_layers_it_is_not_for(isa: str) -> None:
    build = Builder((8, 4, 4))
    build.conv2d(build.quantize(0), 8, groups=2, floats=True)
    with pytest.raises(ValueError, match="no kernel 'blocks' for this layer"):
        Model.from_graph(build.graph(), kernels={build.nodes[-1].name: "blocks"})
