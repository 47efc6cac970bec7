"""The engine on CUDA has the bits of the CPU's: both executors, emulated under every order of threads and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pqk_ext.runtime
from pqk_ext.errors import FormatError
from pqk_ext.runtime import Graph, Model, cuda
from pqk_ext.runtime import format as pqk_format
from tests.cuda.emulated import CUDA, EMULATED, PACKAGE, emulation, set_order
from tests.runtime import float_reference, reference
from tests.runtime.float_graphs import FloatBuilder, float_graphs, float_resnet8
from tests.runtime.graphs import Builder, ds_cnn, graphs, resnet8

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("v*/*.pqk"))


def require_gpu() -> None:
    """Skips the test where the engine finds no GPU; with ``PQK_REQUIRE_CUDA=1`` fails it."""
    try:
        Model.from_graph(small(), device="cuda")
    except RuntimeError as error:
        reason = f"the CUDA engine was NOT run on a GPU: {error}"
        if os.environ.get("PQK_REQUIRE_CUDA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(params=[*EMULATED, CUDA])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """``"cuda"``, which is a GPU or the emulation under some order of threads."""
    if request.param == "cuda":
        require_gpu()
        yield "cuda"
        return
    emulation()
    monkeypatch.setattr(cuda, "_module_name", "pqk_ext._engine_cuda_emulated")
    set_order(request.param.removeprefix("emulated-"))
    yield "cuda"
    set_order("forward")


def small() -> Graph:
    b = Builder((2, 3, 4))
    b.conv2d(b.quantize(0), 5, floats=True)
    return b.graph()


def samples(graph: Graph, batch: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(0, 2, (batch, *graph.input.shape)).astype(np.float32)


def assert_equal_bits(got: Any, expected: Any) -> None:
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def check(graph: Graph, device: str, batch: int = 3, seed: int = 0) -> None:
    """Both executors against the reference, for several batches in turn."""
    x = samples(graph, batch, seed)
    expected = reference.run(graph, x)
    for executor in cuda.EXECUTORS:
        model = Model.from_graph(graph, device=device, kernels={"*": executor})
        assert model.executor == executor
        for size in (batch, 1, batch):
            assert_equal_bits(model(x[:size]), expected[:size])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=graphs(), seed=st.integers(0, 2**32 - 1))
def test_random_graphs(device: str, graph: Graph, seed: int) -> None:
    check(graph, device, 2, seed)


@pytest.mark.parametrize("network", [resnet8, ds_cnn])
def test_known_networks(device: str, network: Any) -> None:
    check(network(), device, 2)


# Input, output channels, kernel, stride, padding, dilation, groups: each way to load and each tile.
CONVOLUTIONS: dict[str, tuple[Any, ...]] = {
    "one channel": ((1, 9, 7), 5, (3, 2), (2, 1), (1, 1, 0, 1), (1, 1), 1),
    "one to one": ((1, 5, 5), 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "three": ((3, 9, 9), 17, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "24, dilation": ((24, 7, 6), 20, (3, 3), (1, 2), (2, 3, 2, 3), (2, 3), 1),
    "16, 16 channels": ((16, 8, 8), 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "48 to 33": ((48, 5, 5), 33, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "large tiles": ((16, 24, 24), 32, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "largest tiles": ((16, 20, 20), 64, (3, 1), (1, 1), (1, 0, 1, 0), (1, 1), 1),
    "groups of 16": ((64, 4, 4), 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 4),
    "groups of 4 to 6": ((8, 5, 4), 12, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2),
    "groups of 3 to 1": ((9, 5, 4), 3, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 3),
    "depthwise": ((37, 7, 6), 37, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 37),
    "depthwise, stride": ((16, 9, 9), 16, (5, 3), (2, 2), (2, 1, 2, 1), (1, 2), 16),
    "depthwise, two each": ((6, 5, 5), 12, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 6),
    "one pixel": ((192, 1, 1), 50, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(device: str, name: str) -> None:
    shape, *layer = CONVOLUTIONS[name]
    b = Builder(shape, seed=len(name))
    first = b.conv2d(b.quantize(0), *layer)
    second = b.conv2d(first, b.value(first).shape[0], residual=first)
    b.conv2d(second, 7, floats=True)
    check(b.graph(), device)


def test_tiles_and_loads_are_those_of_their_names(device: str) -> None:
    kernels = {}
    for name, (shape, *layer) in CONVOLUTIONS.items():
        b = Builder(shape)
        b.dequantize(b.conv2d(b.quantize(0), *layer))
        kernels[name] = Model.from_graph(b.graph(), device=device).kernels[1][1]
    assert kernels["one channel"] == kernels["groups of 3 to 1"] == "mma_bytes"
    assert kernels["three"] == kernels["24, dilation"] == kernels["groups of 4 to 6"] == "mma_words"
    assert kernels["largest tiles"] == kernels["groups of 16"] == kernels["one pixel"] == "mma"
    assert kernels["depthwise"] == kernels["depthwise, stride"] == "depthwise"


def test_extremes_of_the_sums(device: str) -> None:
    b = Builder((64, 6, 6))
    x = b.quantize(0, 0.02, 255)
    b.conv2d(x, 16, floats=True)
    node = b.nodes[-1]
    for weight, value in ((-127, -99.0), (127, -99.0), (127, 99.0)):
        node.tensors["weight"][...] = weight
        x = np.full((2, 64, 6, 6), value, np.float32)
        expected = reference.run(b.graph(), x)
        for executor in cuda.EXECUTORS:
            assert_equal_bits(Model.from_graph(b.graph(), device=device, kernels={"*": executor})(x), expected)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files(device: str, path: Path) -> None:
    on_cpu = pqk_ext.runtime.load(path)
    x = samples(on_cpu.graph, 5)
    floats = any(node.op.startswith("float_") for node in on_cpu.graph.nodes)
    for executor in cuda.EXECUTORS:
        model = pqk_ext.runtime.load(path, device=device, kernels={"*": executor})
        if floats:
            np.testing.assert_allclose(model(x), on_cpu(x), rtol=2e-6, atol=1e-7)
        else:
            assert_equal_bits(model(x), on_cpu(x))
        assert model.nbytes == on_cpu.nbytes


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=float_graphs(), seed=st.integers(0, 2**32 - 1))
def test_random_float_graphs(device: str, graph: Graph, seed: int) -> None:
    check_floats(graph, device, seed)


def check_floats(graph: Graph, device: str, seed: int = 0, executors: tuple[str, ...] = cuda.EXECUTORS) -> None:
    """Within the bound; equal bits for every batch and executor."""
    x = samples(graph, 3, seed)
    expected = float_reference.run(graph, x)
    models = [Model.from_graph(graph, device=device, kernels={"*": executor}) for executor in executors]
    got = models[0](x)
    excess = np.abs(got - expected.value) - expected.error
    assert excess.max() <= 0, f"{excess.max()} more than the bound"
    for model in models:
        for size in (1, 2, 3):
            assert_equal_bits(model(x[:size]), got[:size])


def test_float_networks(device: str) -> None:
    check_floats(float_resnet8(), device, executors=("steps",))
    b = FloatBuilder((12, 6, 5))
    b.float_conv2d(b.float_conv2d(0, 24, groups=4), 24, groups=24)
    check_floats(b.graph(), device)


def test_batches(device: str) -> None:
    graph = ds_cnn(seed=1)
    x = samples(graph, 9)
    expected = Model.from_graph(graph)(x)
    for executor in cuda.EXECUTORS:
        model = Model.from_graph(graph, device=device, kernels={"*": executor})
        for batch in (0, 1, 4, 9, 2, 1):
            assert_equal_bits(model(x[:batch]), expected[:batch])


def test_many_callers(device: str) -> None:
    graph = small()
    model = Model.from_graph(graph, device=device)
    x = samples(graph, 8)
    expected = Model.from_graph(graph)(x)
    wrong: list[int] = []

    def call(index: int) -> None:
        for batch in (1, 3) * 10:
            start = index % (8 - batch)
            if not np.array_equal(model(x[start : start + batch]), expected[start : start + batch]):
                wrong.append(index)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_arrays(device: str) -> None:
    graph = small()
    model = Model.from_graph(graph, device=device)
    x = samples(graph, 4)
    expected = Model.from_graph(graph)(x)
    out = np.empty((4, 5, 3, 4), np.float32)
    assert model.run(x, out) is out
    assert_equal_bits(out, expected)
    assert_equal_bits(model(np.asfortranarray(x)), expected)
    assert_equal_bits(model(x[::2]), expected[::2])
    with pytest.raises(TypeError, match="x must be float32, got float64"):
        model(x.astype(np.float64))
    with pytest.raises(ValueError, match=r"x must have shape \(N, 2, 3, 4\)"):
        model(x[0])
    with pytest.raises(ValueError, match=r"out must have shape \(4, 5, 3, 4\)"):
        model.run(x, out[:2])


@pytest.mark.parametrize("executor", cuda.EXECUTORS)
def test_nan(device: str, executor: str) -> None:
    graph = resnet8() if executor == "steps" else small()
    model = Model.from_graph(graph, device=device, kernels={"*": executor})
    x = samples(graph, 3)
    expected = model(x)
    for places in ([5], [x[0].size], [2 * x[0].size + 7, x[0].size + 11, x[0].size + 12], [x.size - 1]):
        wrong = x.copy()
        wrong.reshape(-1)[places] = np.nan
        with pytest.raises(ValueError, match=f"found one at flat index {min(places)}$"):
            model(wrong)
    assert_equal_bits(model(x), expected)
    infinite = x.copy()
    infinite[0, 0, 0, :2] = np.inf, -np.inf
    assert_equal_bits(model(infinite), Model.from_graph(graph)(infinite))


def test_nan_in_a_network_of_floats(device: str) -> None:
    b = FloatBuilder((3, 4, 4))
    b.float_conv2d(0, 8)
    x = samples(b.graph(), 2)
    x[1, 2, 3, 1] = np.nan
    for executor in cuda.EXECUTORS:
        with pytest.raises(ValueError, match=f"flat index {48 + 2 * 16 + 3 * 4 + 1}$"):
            Model.from_graph(b.graph(), device=device, kernels={"*": executor})(x)


def test_which_executor(device: str) -> None:
    assert Model.from_graph(ds_cnn(), device=device).executor == "resident"
    b = Builder((64, 64, 64))
    b.conv2d(b.quantize(0), 64, floats=True)
    assert Model.from_graph(b.graph(), device=device).executor == "steps"
    with pytest.raises(ValueError, match=r"the resident executor needs \d+ bytes of shared memory for this network"):
        Model.from_graph(b.graph(), device=device, kernels={"*": "resident"})


def test_what_a_model_tells(device: str) -> None:
    graph = ds_cnn()
    model, on_cpu = Model.from_graph(graph, device=device), Model.from_graph(graph)
    assert (model.device, on_cpu.device) == ("cuda:0", "cpu")
    assert (model.executor, on_cpu.executor) == ("resident", None)
    assert "device='cuda:0'" in repr(model)
    assert model.weight_bytes == on_cpu.weight_bytes
    assert model.activation_bytes == on_cpu.activation_bytes
    assert [name for name, _ in model.kernels] == [name for name, _ in on_cpu.kernels]
    assert model.isa.startswith(("sm_", "emulated"))
    profile = model.profile(samples(graph, 1), repeats=2)
    assert [(name, kernel) for name, kernel, _ in profile] == model.kernels
    assert all(0 < seconds < 10 for _, _, seconds in profile)
    with pytest.raises(ValueError, match="profile needs at least one image"):
        model.profile(samples(graph, 0))


def test_options_that_are_none(device: str, tmp_path: Path) -> None:
    graph = small()
    with pytest.raises(ValueError, match=r"device must be 'cpu', 'cuda' or 'cuda:N', got 'cuda:x'"):
        Model.from_graph(graph, device="cuda:x")
    with pytest.raises(ValueError, match=r"kernels: on CUDA expected '\*' alone, which names the executor, got 'conv'"):
        Model.from_graph(graph, device=device, kernels={"conv": "mma"})
    with pytest.raises(ValueError, match=r"kernels\['\*'\]: on CUDA expected one of resident, steps, got 'direct'"):
        Model.from_graph(graph, device=device, kernels={"*": "direct"})
    with pytest.raises(ValueError, match="weights: on CUDA expected 'resident', got 'coded'"):
        Model.from_graph(graph, device=device, weights="coded")
    pqk_format.write(graph, tmp_path / "net.pqk")
    with pytest.raises(ValueError, match="weights: on CUDA expected 'resident', got 'coded'"):
        pqk_ext.runtime.load(tmp_path / "net.pqk", device=device, weights="coded")
    with pytest.raises(RuntimeError, match=r'there is no device "cuda:99": CUDA devices are numbered 0 to \d+'):
        Model.from_graph(graph, device="cuda:99")
    with pytest.raises(FormatError, match="E_BOMB"):
        Model.from_graph(graph, device=device, max_activation_bytes=10)


def test_out_of_memory(device: str) -> None:
    if not Model.from_graph(small(), device=device).isa.startswith("emulated"):
        pytest.skip("a GPU's memory is NOT filled here")
    b = Builder((1, 1024, 1024))
    b.conv2d(b.quantize(0), 17, (1, 1), padding=(0, 0, 0, 0), floats=True)
    model = Model.from_graph(b.graph(), device=device)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"out of GPU memory: \d+ bytes wanted, \d+ of 67108864 free"):
            model(samples(b.graph(), 1))
    check(small(), device)


def test_a_build_without_the_engine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_module_name", "pqk_ext._no_such_module")
    with pytest.raises(RuntimeError, match="this installation of pqk_ext has no CUDA engine; it is built where nvcc"):
        Model.from_graph(small(), device="cuda")


WITHOUT_A_GPU = """
import sys
sys.modules["torch"] = None
import numpy as np
import pqk_ext.runtime
try:
    pqk_ext.runtime.load(sys.argv[1], device="cuda")
except RuntimeError as error:
    print(error)
net = pqk_ext.runtime.load(sys.argv[1])
net(np.zeros((1, *net.input_shape), np.float32))
"""


def test_without_a_gpu_the_cause_is_named_and_the_cpu_works(tmp_path: Path) -> None:
    if not list(PACKAGE.glob("_engine_cuda.*so")):
        pytest.skip("_engine_cuda was NOT built (no nvcc): what it says without a GPU was NOT looked at")
    pqk_format.write(small(), tmp_path / "net.pqk")
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PACKAGE.parent)}
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_GPU, str(tmp_path / "net.pqk")],
        env=hidden, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    causes = ("no NVIDIA driver was found", "no CUDA device was found", "the NVIDIA driver is too old")
    assert process.stdout.startswith(causes), process.stdout
