"""Weights that stay coded: the same bits as resident ones, for any file, instruction set, batch and thread count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pqk_ext import _core
from pqk_ext.runtime import Graph, Model, coded, format, load
from tests.runtime import reference
from tests.runtime.graphs import Builder
from tests.runtime.test_kernels import SHAPES, SparseBuilder


def equal(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def check(graph: Graph, batches: tuple[int, ...]) -> list[str]:
    """The kernels that ran."""
    shape = (max(batches), *graph.input.shape)
    x = np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)
    expected = reference.run(graph, x)
    for num_threads in (1, 2):
        model = Model.from_graph(graph, num_threads=num_threads, weights="coded", tune=False)
        for batch in batches:
            equal(model(x[:batch]), expected[:batch])
    return [kernel for _, kernel in model.kernels]


@pytest.mark.parametrize("name", SHAPES)
def test_convolutions(isa: str, name: str) -> None:
    shape, channels, size, stride, padding, dilation = SHAPES[name]
    for index, density in enumerate((0.1, 1.0)):
        b = SparseBuilder(shape, density, seed=index)
        x = b.conv2d(b.quantize(0), channels, size, stride, padding, dilation)
        x = b.conv2d(x, channels, residual=x)
        b.conv2d(x, 11, (1, 1), padding=(0, 0, 0, 0), floats=True)
        assert "coded" in check(b.graph(), (1, 3, 20))


def test_linear_layers(isa: str) -> None:
    for index, density in enumerate((0.0, 0.1, 1.0)):
        b = SparseBuilder((67,), density, seed=index)
        x = b.linear(b.quantize(0), 40)
        b.linear(b.linear(x, 40, residual=x), 133, floats=True)
        assert check(b.graph(), (1, 9, 150)) == ["quantize", "coded", "coded", "coded"]


@pytest.mark.parametrize("shape", [(5, 24, 23), (70, 4, 4), (6, 5, 3)])
def test_linear_layers_of_whole_images(isa: str, shape: tuple[int, ...]) -> None:
    b = SparseBuilder(shape, 1.0)
    b.linear(b.flatten(b.conv2d(b.quantize(0), 9)), 18, floats=True)
    check(b.graph(), (1, 6))


def test_long_rows(isa: str) -> None:
    """Of which few are decoded at a time, and of which the last chunk has fewer."""
    for density in (0.1, 1.0):
        b = SparseBuilder((5000,), density)
        b.linear(b.quantize(0), 75, floats=True)
        check(b.graph(), (1, 5))


def test_networks_of_resident_and_coded_layers(isa: str) -> None:
    """Frames of several images then pass through both kinds on both threads."""
    b = SparseBuilder((24, 3, 3), 0.2)
    x = b.conv2d(b.quantize(0), 40)
    x = b.conv2d(b.conv2d(x, 40, groups=40), 40, residual=x)
    b.linear(b.flatten(b.affine(b.concat(x, b.conv2d(x, 12)))), 20, floats=True)
    graph = b.graph()
    kernels = check(graph, (1, 2, 9, 40))
    assert "coded" in kernels
    assert any(kernel.startswith("depthwise") for kernel in kernels)
    x_ = np.random.default_rng(1).normal(0, 2, (30, 24, 3, 3)).astype(np.float32)
    expected = reference.run(graph, x_)
    name = next(node.name for node in graph.nodes if node.op == "linear")
    for num_threads in (1, 2):
        model = Model.from_graph(graph, weights={name: "coded"}, num_threads=num_threads)
        assert [node for node, kernel in model.kernels if kernel == "coded"] == [name]
        equal(model(x_), expected)


def large() -> Graph:
    b = SparseBuilder((300,), 0.1)
    b.linear(b.linear(b.quantize(0), 500), 400, floats=True)
    return b.graph()


@pytest.mark.parametrize("codec", _core.codec_names())
def test_any_file_loads_in_both_modes(tmp_path: Path, codec: str) -> None:
    graph, path = large(), tmp_path / "net.pqk"
    format.write(graph, path, codec=codec)
    assert {tensor.codec for tensor in format.inspect(path).weights} == {codec}
    x = np.random.default_rng(0).normal(0, 2, (3, 300)).astype(np.float32)
    resident, kept = load(path), load(path, weights="coded")
    equal(kept(x), resident(x))
    assert [kernel for _, kernel in kept.kernels] == ["quantize", "coded", "coded"]
    for a, b in zip(resident.graph.nodes, kept.graph.nodes, strict=True):
        assert dict(a.tensors).keys() == dict(b.tensors).keys()
        for name in a.tensors:
            np.testing.assert_array_equal(a.tensors[name], b.tensors[name])
    if codec in _core.codec_names(openable=True):
        assert kept.weight_bytes == sum(tensor.payload_bytes for tensor in format.inspect(path).weights)


def test_memory_of_weights() -> None:
    graph = large()
    count = 300 * 500 + 500 * 400
    resident, kept = (Model.from_graph(graph, weights=weights, tune=False) for weights in coded.WEIGHTS)
    assert resident.weight_bytes == count
    assert kept.weight_bytes < 0.3 * count


def test_a_payload_of_another_weight_is_refused() -> None:
    graph = large()
    weight = graph.nodes[1].tensors["weight"].copy()
    weight[7, 9] += 1
    with pytest.raises(ValueError, match=r"payload of 'linear_1'.weight is that of another weight"):
        _core.Engine(graph, num_threads=1, max_activation_bytes=1 << 30, coded={1: coded.encode(weight)})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("packed", "weights: expected one of resident, coded, got 'packed'"),
        ({"linear_1": "packed"}, r"weights\['linear_1'\]: expected one of resident, coded, got 'packed'"),
        ({"linear_7": "coded"}, "weights: expected names of nodes that have weights, or '\\*', got 'linear_7'"),
        ({"quantize_0": "coded"}, "weights: expected names"),
    ],
)
def test_bad_choices_are_named(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Model.from_graph(large(), weights=weights)


def test_one_choice_for_all_others() -> None:
    b = Builder((30,))
    b.linear(b.linear(b.quantize(0), 20), 10, floats=True)
    model = Model.from_graph(b.graph(), weights={"*": "coded", "linear_1": "resident"})
    assert [kernel for _, kernel in model.kernels] == ["quantize", "direct", "coded"]
