"""Every kernel for convolutions and linear layers against the numpy reference: equal bits on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pqk_ext import _core
from pqk_ext.runtime import Graph, Model
from tests.runtime import reference
from tests.runtime.graphs import Builder

DENSITIES = (0.0, 0.02, 0.1, 0.3, 1.0)


@pytest.fixture(params=_core.conv2d_kernels())
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class SparseBuilder(Builder):
    """Weights that are zero but for a share, single ones or blocks of four input channels; one channel has more."""

    def __init__(self, shape: tuple[int, ...], density: float, blocks: bool = False, seed: int = 0) -> None:
        super().__init__(shape, seed)
        self.density, self.blocks = density, blocks

    def weight(self, *shape: int) -> np.ndarray:
        values = self.random.integers(1, 128, shape) * self.random.choice([-1, 1], shape)
        size = 4 if self.blocks else 1
        parts = (shape[0], -(-shape[1] // size), *shape[2:])
        kept = self.random.random(parts) < self.density
        if 0 < self.density < 1:
            channel = self.random.integers(shape[0])
            kept[channel] = self.random.random(parts[1:]) < 0.6
        return (values * np.repeat(kept, size, axis=1)[:, : shape[1]]).astype(np.int8)


def check(graph: Graph, kernel: str, batch: int, seed: int = 0) -> list[str]:
    """The kernels that ran, by node; those that are not for a layer were replaced."""
    shape = (batch, *graph.input.shape)
    x = np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)
    expected = reference.run(graph, x)
    for num_threads in (1, 2):
        model = Model.from_graph(graph, num_threads=num_threads, kernels={"*": kernel})
        for part in (slice(0, 1), slice(0, batch)):
            np.testing.assert_array_equal(model(x[part]).view(np.uint32), expected[part].view(np.uint32))
    return [name for _, name in model.kernels]


# Input channels and size, output channels, kernel, stride, padding, dilation.
SHAPES: dict[str, tuple[Any, ...]] = {
    "16 channels": ((16, 8, 8), 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "64 to 65": ((64, 4, 4), 65, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "wide": ((133, 3, 2), 80, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "odd": ((7, 5, 6), 13, (3, 3), (1, 1), (0, 1, 2, 1), (1, 1)),
    "three": ((3, 9, 7), 33, (5, 5), (2, 2), (2, 2, 2, 2), (1, 1)),
    "one channel": ((1, 12, 5), 17, (5, 4), (2, 1), (2, 1, 1, 2), (1, 1)),
    "stride": ((32, 7, 7), 48, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    "dilation": ((20, 7, 6), 18, (3, 3), (1, 2), (2, 3, 2, 3), (2, 3)),
    "1x1": ((70, 5, 3), 31, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "1x1, stride": ((40, 6, 6), 24, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    "one pixel": ((192, 1, 1), 50, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_layers(isa: str, kernel: str, name: str) -> None:
    shape, channels, size, stride, padding, dilation = SHAPES[name]
    for index, (density, blocks) in enumerate([*((d, False) for d in DENSITIES), (0.1, True), (0.5, True)]):
        b = SparseBuilder(shape, density, blocks, seed=index)
        x = b.conv2d(b.quantize(0), channels, size, stride, padding, dilation)
        x = b.conv2d(x, channels, residual=x)
        b.conv2d(x, 11, (1, 1), padding=(0, 0, 0, 0), floats=True)
        check(b.graph(), kernel, 3, seed=index)


def test_linear_layers(isa: str, kernel: str) -> None:
    for index, density in enumerate(DENSITIES):
        b = SparseBuilder((67,), density, seed=index)
        x = b.linear(b.quantize(0), 40)
        b.linear(b.linear(x, 40, residual=x), 10, floats=True)
        check(b.graph(), kernel, 9)
        b = SparseBuilder((6, 5, 3), density, seed=index)
        x = b.flatten(b.conv2d(b.quantize(0), 9))
        b.linear(x, 21, floats=True)
        check(b.graph(), kernel, 9)


@pytest.mark.parametrize("shape", [(5, 24, 23), (70, 4, 4), (66, 5, 5)])
def test_linear_layers_of_whole_images(isa: str, kernel: str, shape: tuple[int, ...]) -> None:
    """More taps than packers take together, as many as they take by vectors, and more than those."""
    for density in (0.1, 1.0):
        b = SparseBuilder(shape, density)
        b.linear(b.flatten(b.quantize(0)), 18, floats=True)
        check(b.graph(), kernel, 2)


def test_images_that_are_part_of_a_concatenation(isa: str, kernel: str) -> None:
    """Their pixels lie further apart than their channels need."""
    for index, density in enumerate(DENSITIES):
        b = SparseBuilder((8, 7, 6), density, seed=index)
        first = b.conv2d(b.quantize(0), 12)
        second = b.conv2d(first, 8, (3, 2), padding=(0, 0, 0, 0))
        padded = b.conv2d(second, 20, (1, 1), padding=(1, 1, 1, 0))
        joined = b.affine(b.concat(first, padded))
        b.conv2d(joined, 10, floats=True)
        check(b.graph(), kernel, 3)


def test_groups_of_images(isa: str, kernel: str) -> None:
    """Tiles of pixels that end amid an image."""
    b = SparseBuilder((24, 3, 3), 0.2)
    x = b.conv2d(b.quantize(0), 40)
    b.conv2d(b.conv2d(x, 40, residual=x), 20, stride=(2, 2), floats=True)
    check(b.graph(), kernel, 9)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_layers(isa: str, kernel: str, data: st.DataObject) -> None:
    def number(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    shape = (number(1, 70), number(1, 6), number(1, 6))
    density = data.draw(st.sampled_from(DENSITIES))
    b = SparseBuilder(shape, density, data.draw(st.booleans()), seed=number(0, 2**32 - 1))
    size, dilation = (number(1, 5), number(1, 5)), (number(1, 2), number(1, 2))
    reach = [(k - 1) * d for k, d in zip(size, dilation, strict=True)]
    padding = (reach[0] - reach[0] // 2, number(0, 1) + reach[1] // 2, reach[0] // 2, reach[1] - reach[1] // 2)
    x = b.conv2d(b.quantize(0), number(1, 70), size, (number(1, 2), number(1, 2)), padding, dilation)
    b.conv2d(x, number(1, 40), (1, 1), padding=(0, 0, 0, 0), floats=True)
    check(b.graph(), kernel, data.draw(st.sampled_from([1, 3, 9])))


def test_the_kernels_take_the_layer(isa: str) -> None:
    b = SparseBuilder((16, 4, 4), 0.1)
    b.conv2d(b.quantize(0), 20, floats=True)
    for kernel in ("direct",) if isa == "baseline" else ("direct", "gather"):
        assert kernel in check(b.graph(), kernel, 1)


@pytest.mark.parametrize("value", [-127, 127])
def test_sums_at_the_limits(isa: str, kernel: str, value: int) -> None:
    """Codes 255 and extreme weights: no product or sum of products may saturate."""
    b = Builder((66, 3, 3))
    weight = np.full((17, 66, 3, 3), value, np.int8)
    weight[1::2] *= np.random.default_rng(0).random((8, 66, 3, 3)) < 0.2
    tensors = {"weight": weight, "multiplier": np.full(17, 1e-5, np.float32), "bias": np.full(17, 100, np.float32)}
    attributes = {"stride": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1], "groups": 1}
    b.add("conv2d", [b.quantize(0, zero_point=0)], attributes, tensors, dtype="f32")
    x = np.full((2, 66, 3, 3), 1e9, np.float32)
    got = Model.from_graph(b.graph(), kernels={"*": kernel})(x)
    np.testing.assert_array_equal(got.view(np.uint32), reference.run(b.graph(), x).view(np.uint32))
