"""Float operators in the engine: within the stated bound of exact arithmetic, equal bits for threads and batches."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pqk_ext.runtime
from pqk_ext import _core
from pqk_ext.runtime import Graph, Model
from pqk_ext.runtime import format as pqk_format
from pqk_ext.runtime.graph import FLOAT_OPS, MAPS
from tests.runtime import float_reference
from tests.runtime.float_graphs import FloatBuilder, float_graphs, float_resnet8


def samples(graph: Graph, batch: int, seed: int = 0) -> Any:
    shape = (batch, *graph.input.shape)
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


@lru_cache(maxsize=256)
def layers(name: str, entries: int, density: float) -> tuple[Graph, Any, Any]:
    """A layer of SHAPES and one with a residual behind it, inputs, and what they should give."""
    shape, *layer = SHAPES[name]
    b = FloatBuilder(shape, seed=entries, entries=entries, density=density)
    first = b.float_conv2d(0, *layer)
    b.float_conv2d(first, b.value(first).shape[0], residual=first)
    x = samples(b.graph(), 3)
    return b.graph(), x, float_reference.run(b.graph(), x)


def check(
    graph: Graph,
    batch: int = 3,
    seed: int = 0,
    threads: tuple[int, ...] = (1, 2, 3),
    kernel: str | None = None,
) -> Model:
    """Within the bound, and equal bits for every number of threads and every batch."""
    x = samples(graph, batch, seed)
    return check_against(float_reference.run(graph, x), graph, x, threads, kernel)


def check_against(expected: Any, graph: Graph, x: Any, threads: tuple[int, ...], kernel: str | None) -> Model:
    choices = {"*": kernel} if kernel else None
    model = Model.from_graph(graph, kernels=choices)
    got = model(x)
    assert got.shape == expected.value.shape
    excess = np.abs(got - expected.value) - expected.error
    assert excess.max() <= 0, f"{excess.max()} more than the bound {expected.error.flat[excess.argmax()]}"
    for num_threads in threads:
        other = Model.from_graph(graph, num_threads=num_threads, kernels=choices)
        for size in sorted({1, 2, len(x)}):
            np.testing.assert_array_equal(other(x[:size]).view(np.uint32), got[:size].view(np.uint32))
    return model


# Input, output channels, kernel, stride, padding, dilation, groups.
SHAPES: dict[str, tuple[Any, ...]] = {
    "16 channels": ((16, 8, 8), 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "64 to 65": ((64, 4, 4), 65, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "odd": ((7, 5, 6), 13, (3, 3), (1, 1), (0, 1, 2, 1), (1, 1), 1),
    "three": ((3, 9, 7), 33, (5, 5), (2, 2), (2, 2, 2, 2), (1, 1), 1),
    "one channel": ((1, 12, 5), 17, (5, 4), (2, 1), (2, 1, 1, 2), (1, 1), 1),
    "dilation": ((20, 7, 6), 18, (3, 3), (1, 2), (2, 3, 2, 3), (2, 3), 1),
    "1x1": ((70, 5, 3), 31, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "1x1, stride": ((40, 6, 6), 24, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    "one pixel": ((192, 1, 1), 50, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "groups": ((12, 6, 5), 24, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 4),
    "wide groups": ((40, 4, 4), 80, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2),
    "depthwise": ((37, 7, 6), 37, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 37),
    "depthwise, stride": ((16, 9, 9), 16, (5, 3), (2, 2), (2, 1, 2, 1), (1, 1), 16),
    "depthwise, dilation": ((5, 9, 8), 5, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 5),
    "depthwise, two each": ((6, 5, 5), 12, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 6),
}


@pytest.mark.parametrize("kernel", _core.float_conv2d_kernels())
@pytest.mark.parametrize("name", SHAPES)
def test_convolutions(isa: str, name: str, kernel: str) -> None:
    for entries, density in ((2, 1.0), (16, 0.0), (256, 0.2)):
        graph, x, expected = layers(name, entries, density)
        model = check_against(expected, graph, x, (1, 3), kernel)
        if kernel != "float_depthwise":
            assert {kernel} == {used for name, used in model.kernels if name.startswith("float_conv2d")}


def test_depthwise_layers_have_their_kernel(isa: str) -> None:
    shape, *layer = SHAPES["depthwise"]
    b = FloatBuilder(shape)
    b.float_conv2d(0, *layer)
    assert "float_depthwise" in [kernel for _, kernel in check(b.graph()).kernels]


def test_sparse_layers_have_their_kernel(isa: str) -> None:
    for density, kernel in ((0.1, "float_sparse"), (1.0, "float_direct")):
        b = FloatBuilder((64, 8, 8), density=density)
        b.float_conv2d(0, 64)
        assert kernel in [name for _, name in Model.from_graph(b.graph()).kernels]


def test_kernels_asked_for(isa: str) -> None:
    b = FloatBuilder((8, 4, 4))
    b.float_conv2d(0, 8)
    with pytest.raises(ValueError, match="kernels: expected names of convolution and linear nodes, or '\\*', got 'x'"):
        Model.from_graph(b.graph(), kernels={"x": "float_direct"})
    with pytest.raises(ValueError, match="expected one of float_depthwise, float_sparse, float_direct, got 'direct'"):
        Model.from_graph(b.graph(), kernels={"float_conv2d_0": "direct"})
    with pytest.raises(ValueError, match="no kernel 'float_depthwise' for this layer"):
        Model.from_graph(b.graph(), kernels={"float_conv2d_0": "float_depthwise"})


def test_groups_of_images(isa: str) -> None:
    """Small images, several of which share tiles and vectors of positions."""
    for kernel in ("float_direct", "float_sparse"):
        b = FloatBuilder((24, 3, 3), density=0.3)
        x = b.float_conv2d(0, 40)
        b.float_conv2d(b.float_conv2d(x, 40, residual=x), 20, stride=(2, 2))
        check(b.graph(), batch=20, threads=(1, 2), kernel=kernel)


def test_linear_layers(isa: str) -> None:
    for features in (1, 10, 33, 200):
        for density in (0.1, 1.0):
            b = FloatBuilder((67,), density=density)
            x = b.float_linear(0, features)
            b.float_linear(x, features, residual=x)
            check(b.graph(), batch=9)


def test_linear_layers_read_images(isa: str) -> None:
    """A flatten costs nothing where only linear layers read it, and is a copy where others do."""
    b = FloatBuilder((6, 5, 3))
    flat = b.move("flatten", [b.float_conv2d(0, 9)])
    b.float_linear(flat, 21)
    model = check(b.graph(), batch=4)
    assert "copy" not in [kernel for name, kernel in model.kernels if name.startswith("flatten")]
    b.float_linear(b.float_map(flat, "tanh"), 4)
    model = check(b.graph(), batch=4)
    assert "copy" in [kernel for name, kernel in model.kernels if name.startswith("flatten")]


@pytest.mark.parametrize("function", MAPS)
def test_maps(isa: str, function: str) -> None:
    b = FloatBuilder((5, 3, 7))
    b.float_map(0, function)
    check(b.graph())
    x = np.array([0.0, -0.0, 1e-30, -1e-30, 88, -88, 200, -200, 3, -3, 6, 1e30, -1e30], np.float32)
    b = FloatBuilder((len(x),))
    b.float_map(0, function)
    expected, _ = float_reference.MAPS[function]
    got = Model.from_graph(b.graph())(x[None])[0]
    exact = expected(x.astype(np.float64))
    assert (np.abs(got - exact) <= 2.0**-21 * np.maximum(1, np.abs(exact))).all()


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=float_graphs(), seed=st.integers(0, 2**32 - 1))
def test_random_graphs(isa: str, graph: Graph, seed: int) -> None:
    x = samples(graph, 3, seed)
    expected = float_reference.run(graph, x)
    for kernel in (None, "float_sparse"):
        check_against(expected, graph, x, (1, 3), kernel)


@pytest.mark.parametrize("density", [0.1, 1.0])
def test_a_network(isa: str, density: float) -> None:
    graph = float_resnet8(density=density)
    x = samples(graph, 3)
    model = Model.from_graph(graph)
    expected = float_reference.run(graph, x[:1])
    assert (np.abs(model(x[:1]) - expected.value) <= expected.error).all()
    # The bound is for the worst case; typical errors are far below.
    assert np.abs(model(x[:1]) - expected.value).max() <= 2.0**-18 * np.abs(expected.value).max()
    for num_threads in (1, 2, 3):
        other = Model.from_graph(graph, num_threads=num_threads)
        for batch in (1, 2, 3):
            np.testing.assert_array_equal(other(x[:batch]), model(x)[:batch])


def test_files(isa: str, tmp_path: Path) -> None:
    graph = float_resnet8(density=0.3)
    path = tmp_path / "net.pqk"
    pqk_format.write(graph, path)
    model = pqk_ext.runtime.load(path)
    x = samples(graph, 2)
    np.testing.assert_array_equal(model(x), Model.from_graph(graph)(x))
    steps = model.profile(x, repeats=2)
    assert [(name, kernel) for name, kernel, _ in steps] == model.kernels


def test_agrees_with_torch(isa: str) -> None:
    torch = pytest.importorskip("torch")
    graph = float_resnet8()
    x = samples(graph, 2)
    values = [torch.from_numpy(x)]
    with torch.no_grad():
        for node in graph.nodes:
            values.append(_torch(torch, node, [values[i] for i in node.inputs]))
    got, expected = Model.from_graph(graph)(x), values[-1].numpy()
    assert np.abs(got - expected).max() <= 2.0**-18 * np.abs(expected).max()


def _torch(torch: Any, node: Any, inputs: list[Any]) -> Any:
    functional = torch.nn.functional
    if node.op == "flatten":
        return inputs[0].flatten(1)
    if node.op == "float_adaptive_avg_pool2d":
        return functional.adaptive_avg_pool2d(inputs[0], node.attributes["output_size"])
    codes = torch.from_numpy(node.tensors["weight"]).long() + node.attributes["zero"]
    weight = torch.from_numpy(node.tensors["codebook"])[codes]
    shape = (-1, 1, 1) if node.op == "float_conv2d" else (-1,)
    multiplier, bias = (torch.from_numpy(node.tensors[k]).reshape(shape) for k in ("multiplier", "bias"))
    if node.op == "float_conv2d":
        top, left, _, _ = node.attributes["padding"]
        y = functional.conv2d(inputs[0], weight, stride=node.attributes["stride"], padding=(top, left))
    else:
        y = functional.linear(inputs[0], weight)
    y = y * multiplier + (inputs[1] if len(inputs) == 2 else 0) + bias
    return y.clamp(node.attributes.get("clamp_min", -np.inf), node.attributes.get("clamp_max", np.inf))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_first_nan_is_named(isa: str, num_threads: int) -> None:
    b = FloatBuilder((2, 3, 4))
    b.float_conv2d(0, 5)
    model = Model.from_graph(b.graph(), num_threads=num_threads)
    x = samples(b.graph(), 5)
    x[3, 1, 2, 2] = x[4, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=f"x must not contain NaN, found one at flat index {3 * 24 + 22}"):
        model(x)


def test_numbers_that_overflow_do_no_harm(isa: str) -> None:
    """Infinities and what becomes of them, through codes too: results are of no use, but there are some."""
    b = FloatBuilder((4, 5, 5))
    x = b.float_conv2d(0, 8, clamp={})
    x = b.float_map(b.float_add(x, x), "silu")
    codes = b.quantize(b.float_max_pool2d(x, (2, 2), (2, 2), (0, 0, 0, 0)))
    b.dequantize(codes)
    x_in = samples(b.graph(), 2)
    x_in.flat[::7] = 3e38
    x_in.flat[1] = np.inf
    assert np.isfinite(Model.from_graph(b.graph())(x_in)).all()


def test_every_operator_is_tested() -> None:
    assert set(float_reference._FUNCTIONS) == FLOAT_OPS
    assert set(float_reference.MAPS) == set(MAPS)
