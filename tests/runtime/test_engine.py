"""The engine against the numpy reference: equal bits on every instruction set, thread count, batch and caller."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pqk_ext.runtime import Graph, Model
from tests.runtime import reference
from tests.runtime.graphs import Builder, ds_cnn, graphs, resnet8


def samples(graph: Graph, batch: int, seed: int = 0) -> Any:
    shape = (batch, *graph.input.shape)
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def assert_equal_bits(got: Any, expected: Any) -> None:
    assert got.dtype == expected.dtype == np.float32
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=graphs(), seed=st.integers(0, 2**32 - 1))
def test_random_graphs(isa: str, graph: Graph, seed: int) -> None:
    x = samples(graph, 3, seed)
    expected = reference.run(graph, x)
    for num_threads in (1, 3):
        model = Model.from_graph(graph, num_threads=num_threads)
        assert model.isa == isa
        assert_equal_bits(model(x), expected)
        assert_equal_bits(model(x[:1]), expected[:1])
    assert_equal_bits(model(x), expected)


@pytest.mark.parametrize("network", [resnet8, ds_cnn])
def test_known_networks(isa: str, network: Any) -> None:
    graph = network()
    x = samples(graph, 2)
    expected = reference.run(graph, x)
    assert np.unique(expected).size > 10
    for num_threads in (1, 2, 3):
        assert_equal_bits(Model.from_graph(graph, num_threads=num_threads)(x), expected)


def dense_block(growth: int) -> Graph:
    """Nested concatenations; one value is read outside its own, one concatenation has a border."""
    b = Builder((3, 6, 5))
    x = b.conv2d(b.quantize(0), 8)
    for _ in range(3):
        y = b.conv2d(b.affine(x), growth)
        x = b.concat(x, y)
    z = b.affine(b.max_pool2d(b.concat(b.lookup(y), x), (2, 2), (2, 2), (0, 0, 0, 0)))
    left, right = b.conv2d(z, 8, (1, 1), padding=(0, 0, 0, 0)), b.affine(z)
    right = b.add("lookup", [right], {}, {"table": np.arange(256, dtype=np.uint8)[::-1].copy()}, qparams=b.kept(left))
    b.conv2d(b.concat(left, right), 10, floats=True)
    return b.graph()


@pytest.mark.parametrize(("growth", "copies"), [(4, 0), (3, 4)])
def test_concatenations_are_written_in_place(isa: str, growth: int, copies: int) -> None:
    graph = dense_block(growth)
    model = Model.from_graph(graph)
    assert sum(kernel == "copy" for name, kernel in model.kernels if name != "output") == copies
    x = samples(graph, 2)
    for _ in range(2):
        assert_equal_bits(model(x), reference.run(graph, x))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_batches(isa: str, num_threads: int) -> None:
    graph = resnet8(seed=1)
    x = samples(graph, 17)
    expected = np.concatenate([Model.from_graph(graph)(x[i : i + 1]) for i in range(17)])
    model = Model.from_graph(graph, num_threads=num_threads)
    for batch in (0, 1, 2, 3, 17):
        assert_equal_bits(model(x[:batch]), expected[:batch])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_many_callers(num_threads: int) -> None:
    graph = ds_cnn()
    model = Model.from_graph(graph, num_threads=num_threads)
    x = samples(graph, 8)
    expected = model(x)
    wrong: list[int] = []

    def call(index: int) -> None:
        for _ in range(200):
            for batch in (1, 3):
                start = index % (8 - batch)
                if not np.array_equal(model(x[start : start + batch]), expected[start : start + batch]):
                    wrong.append(index)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("num_threads", [1, 3])
def test_fork(num_threads: int) -> None:
    graph = resnet8()
    model = Model.from_graph(graph, num_threads=num_threads)
    x = samples(graph, 5)
    expected = model(x)
    child = os.fork()
    if child == 0:
        same = np.array_equal(model(x), expected) and np.array_equal(model(x[:1]), expected[:1])
        del model
        same = same and np.array_equal(Model.from_graph(graph, num_threads=num_threads)(x), expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert_equal_bits(model(x), expected)


def test_a_model_may_be_freed_while_it_runs() -> None:
    graph = resnet8()
    results: list[Any] = []
    model: Model | None = Model.from_graph(graph, num_threads=2)
    x = samples(graph, 64)
    caller = threading.Thread(target=model.run, args=(x,))
    caller.start()
    model = None
    caller.join()
    assert results == []


def small() -> Graph:
    b = Builder((2, 3, 4))
    b.conv2d(b.quantize(0), 5, floats=True)
    return b.graph()


def test_out_and_layouts() -> None:
    graph = small()
    model = Model.from_graph(graph)
    x = samples(graph, 4)
    expected = reference.run(graph, x)
    out = np.empty((4, 5, 3, 4), np.float32)
    assert model.run(x, out) is out
    assert_equal_bits(out, expected)
    strided = np.zeros((4, 4, 3, 8), np.float32)
    strided[:, ::2, :, ::2] = x
    assert_equal_bits(model(strided[:, ::2, :, ::2]), expected)
    assert_equal_bits(model(np.asfortranarray(x)), expected)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert_equal_bits(model(unaligned), expected)


def test_extreme_inputs() -> None:
    graph = small()
    x = samples(graph, 1)
    x.flat[:8] = [np.inf, -np.inf, 3e38, -3e38, -0.0, 1e-40, 0.01, 0.03]
    assert_equal_bits(Model.from_graph(graph)(x), reference.run(graph, x))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_first_nan_is_named(isa: str, num_threads: int) -> None:
    model = Model.from_graph(small(), num_threads=num_threads)
    x = samples(small(), 5)
    x[3, 1, 2, 2] = np.nan
    x[4, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=f"x must not contain NaN, found one at flat index {3 * 24 + 22}"):
        model(x)
    one = samples(small(), 1)
    one[0, 0, 2, 1] = one[0, 1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="flat index 9"):
        model(one)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((1, 2, 3, 4)), TypeError, "x must be float32, got float64"),
        (np.zeros((1, 2, 3, 4), np.int64), TypeError, "x must be float32, got int64"),
        ([[1.0]], TypeError, "x must be a numpy array of float32, got list"),
        (np.zeros((2, 3, 4), np.float32), ValueError, r"x must have shape \(N, 2, 3, 4\), got \(2, 3, 4\)"),
        (np.zeros((1, 2, 3, 5), np.float32), ValueError, r"x must have shape \(N, 2, 3, 4\), got \(1, 2, 3, 5\)"),
        (np.zeros((1, 2, 3, 4), ">f4"), TypeError, "x must be float32, got >f4"),
    ],
)
def test_bad_inputs(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Model.from_graph(small())(x)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((1, 5, 3, 4)), TypeError, "out must be float32, got float64"),
        (np.zeros((2, 5, 3, 4), np.float32), ValueError, r"out must have shape \(1, 5, 3, 4\), got \(2, 5, 3, 4\)"),
        (np.zeros((1, 5, 3, 8), np.float32)[..., ::2], ValueError, "out must be contiguous, aligned and writeable"),
        (np.broadcast_to(np.float32(0), (1, 5, 3, 4)), ValueError, "out must be contiguous, aligned and writeable"),
    ],
)
def test_bad_outputs(out: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Model.from_graph(small()).run(samples(small(), 1), out)


def test_what_a_model_tells() -> None:
    model = Model.from_graph(resnet8(), num_threads=2)
    assert (model.input_shape, model.output_shape, model.num_threads) == ((3, 32, 32), (10,), 2)
    assert [name for name, _ in model.kernels][:2] == ["quantize_0", "conv2d_1"]
    assert 0 < model.activation_bytes < 200_000
    steps = model.profile(samples(model.graph, 1), repeats=3)
    assert [(name, kernel) for name, kernel, _ in steps] == model.kernels
    assert all(0 < seconds < 1 for _, _, seconds in steps)
    with pytest.raises(ValueError, match="num_threads must be from 1 to 1024, got 0"):
        Model.from_graph(resnet8(), num_threads=0)
