"""Each engine, and each of its modes, behind one interface: load a case at a batch size, time calls, give the output.

Everything runs on one thread. int8 means 8-bit weights and activations chosen after training by each project's own tool
from the same data. A call takes an input that is already there and gives its output where the engine likes best:
input and output are bound before wherever the engine can.

DeepSparse (1.8, the last) needs older packages than ours, LiteRT's converter wants many of its own: they run in their
own environments, whose interpreters `PQK_DEEPSPARSE_PYTHON` and `PQK_LITERT_PYTHON` name, as processes that are told
over a pipe to time n calls (`worker.py`). To make them:

    python3.11 -m venv DIR && DIR/bin/pip install --only-binary=deepsparse "deepsparse<1.9"
    python3.11 -m venv DIR && DIR/bin/pip install torch==2.13.0 litert-torch==0.10.0

Peers that are not there are named and left out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import exports
import numpy as np
import torch
from networks import Case, difference
from numpy.typing import NDArray
from workers import worker

from pqk_ext import runtime

Array = NDArray[np.float32]


class Engine(ABC):
    """A loaded network. `load_seconds`: from the file to ready; `notes`: what else should be recorded."""

    load_seconds = 0.0

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}

    @abstractmethod
    def seconds(self, calls: int) -> float:
        """Time of that many calls in a row."""

    @abstractmethod
    def output(self) -> Array: ...

    @abstractmethod
    def close(self) -> None:
        """Gives back what it holds."""


class InProcess(Engine):
    """An engine in this process: `call` runs it, `read` gives the output of the last call."""

    def __init__(self, call: Callable[[], Any], read: Callable[[], Array]) -> None:
        super().__init__()
        self.call, self.read = call, read

    def seconds(self, calls: int) -> float:
        call = self.call
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return time.perf_counter() - start

    def output(self) -> Array:
        self.call()
        return np.array(self.read())

    def close(self) -> None:
        del self.call, self.read


class Remote(Engine):
    """An engine in a worker."""

    def __init__(self, name: str, path: Path, input: Path) -> None:
        super().__init__()
        self.worker = worker(name)
        self.worker.keys += 1
        self.key = self.worker.keys
        self.load_seconds = self.worker.ask("load", key=self.key, engine=name, path=str(path), input=str(input))

    def seconds(self, calls: int) -> float:
        return self.worker.ask("time", key=self.key, calls=calls)

    def output(self) -> Array:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "output.npy"
            self.worker.ask("output", key=self.key, path=str(path))
            result: Array = np.load(path)
        return result

    def close(self) -> None:
        self.worker.ask("drop", key=self.key)


def pqk(case: Case, batch: int, num_threads: int = 1) -> Engine:
    path, x = exports.pqk(case), case.input(batch)
    runtime.load(path, num_threads=num_threads)  # the first load on a machine times kernels and remembers
    start = time.perf_counter()
    model = runtime.load(path, num_threads=num_threads)
    load_seconds = time.perf_counter() - start
    out = np.empty((batch, *model.output_shape), np.float32)
    engine = InProcess(lambda: model.run(x, out), lambda: out)
    engine.load_seconds = load_seconds
    engine.notes = {"bytes": path.stat().st_size, "isa": model.isa, "kernels": model.kernels}
    return engine


def torch_eager(case: Case, batch: int) -> Engine:
    model, x = case.model, torch.from_numpy(case.input(batch))
    results: list[torch.Tensor] = [x]

    def run() -> None:
        with torch.inference_mode():
            results[0] = model(x)

    return InProcess(run, lambda: results[0].numpy())


def _onnxruntime(case: Case, batch: int, path: Path) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    load_seconds = time.perf_counter() - start
    x, binding = case.input(batch), session.io_binding()
    binding.bind_cpu_input("input", x)
    binding.bind_output("output", "cpu")
    engine = InProcess(lambda: session.run_with_iobinding(binding), lambda: binding.copy_outputs_to_cpu()[0])
    engine.load_seconds = load_seconds
    return engine


def _openvino(case: Case, batch: int, path: Path, precision: str) -> Engine:
    import openvino

    # Without the hint OpenVINO computes "f32" models in bfloat16 where the CPU has it.
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    start = time.perf_counter()
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    load_seconds = time.perf_counter() - start
    request, x = compiled.create_infer_request(), case.input(batch)
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    engine = InProcess(request.infer, lambda: request.get_output_tensor().data)
    engine.load_seconds = load_seconds
    engine.notes = {"precision_hint": compiled.get_property("INFERENCE_PRECISION_HINT").to_string()}
    return engine


def _deepsparse(case: Case, batch: int, path: Path) -> Engine:
    return Remote("deepsparse", path, exports.input_file(case, batch))


@cache
def _can_resize(case: Case, batch: int) -> bool:
    """Whether LiteRT's file for one sample computes the network at that batch size too."""
    try:
        engine = Remote("litert", exports.litert(case, "float"), exports.input_file(case, batch))
    except RuntimeError:
        return False
    output = engine.output()
    engine.close()
    return difference(output, case.reference(batch)) < 1e-3


def _litert(case: Case, batch: int, precision: str) -> Engine:
    """The file for one sample where it can be resized, which is faster than a file for the batch; otherwise that."""
    path = exports.litert(case, precision, 1 if _can_resize(case, batch) else batch)
    return Remote("litert", path, exports.input_file(case, batch))


ONNX = ("onnx", "onnxruntime")
# Name -> how to make it, the modules it needs here, the environment variable it needs.
PEERS: dict[str, tuple[Callable[[Case, int], Engine], tuple[str, ...], str | None]] = {
    "torch_eager": (torch_eager, (), None),
    "onnxruntime_float": (lambda c, b: _onnxruntime(c, b, exports.onnx_float(c, b)), ONNX, None),
    "onnxruntime_int8": (lambda c, b: _onnxruntime(c, b, exports.onnx_int8(c, b)), ONNX, None),
    "openvino_f32": (lambda c, b: _openvino(c, b, exports.onnx_float(c, b), "f32"), ("openvino", *ONNX), None),
    "openvino_bf16": (lambda c, b: _openvino(c, b, exports.onnx_float(c, b), "bf16"), ("openvino", *ONNX), None),
    "openvino_int8": (lambda c, b: _openvino(c, b, exports.onnx_int8(c, b), "f32"), ("openvino", *ONNX), None),
    "litert_float": (lambda c, b: _litert(c, b, "float"), (), "PQK_LITERT_PYTHON"),
    "litert_int8": (lambda c, b: _litert(c, b, "int8"), (), "PQK_LITERT_PYTHON"),
    "deepsparse_float": (lambda c, b: _deepsparse(c, b, exports.onnx_float(c, b)), ONNX, "PQK_DEEPSPARSE_PYTHON"),
    "deepsparse_int8": (lambda c, b: _deepsparse(c, b, exports.onnx_int8(c, b)), ONNX, "PQK_DEEPSPARSE_PYTHON"),
}


def lacking(peer: str) -> list[str]:
    """What the peer needs and is not there."""
    _, modules, variable = PEERS[peer]
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return absent + ([variable] if variable and not os.environ.get(variable) else [])


def make(peer: str, case: Case, batch: int) -> Engine:
    torch.set_num_threads(1)
    return PEERS[peer][0](case, batch)


def versions() -> dict[str, str]:
    """Of every peer that is installed."""
    found: dict[str, str] = {"torch": str(torch.__version__)}
    for name in ("onnxruntime", "openvino"):
        if importlib.util.find_spec(name) is not None:
            found[name] = importlib.metadata.version(name)
    for name, package in (("litert", "ai-edge-litert"), ("deepsparse", "deepsparse")):
        if python := os.environ.get(f"PQK_{name.upper()}_PYTHON"):
            code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
            found[name] = subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()
    return found
