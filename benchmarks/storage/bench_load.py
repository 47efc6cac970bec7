"""Loading of networks of about ten million weights, on one thread: from a file in the page cache to ready to run.

Each file is loaded many times, its stages one by one and as a whole, with the kernel table warm and with `tune=False`;
and as on a machine that has never met it. Peers load the same network in turn with us, each in the ways that it offers:
ONNX Runtime and OpenVINO its int8 model, also one that they have prepared before, which is their fastest way; torch and
safetensors only its float32 weights. Peak memory is that of a fresh process.

    python benchmarks/storage/bench_load.py                      all of it, into benchmarks/results/load.json
    python benchmarks/storage/bench_load.py --only dense         networks whose name contains that
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "nets"))
import exports
import networks
import numpy as np
import paired
import peers
import torch
from numpy.typing import NDArray
from torch import nn

from pqk_ext import _core, build_info, runtime
from pqk_ext.runtime import checks, container, format, kernel_table, reader
from pqk_ext.runtime.graph import Graph

STEM = "load"
ROUNDS = 15
FIRST_LOADS = 3  # that time kernels
# Codecs that are also loaded alone, whether or not they are the smallest.
DENSE_CODECS = ("raw", "huffman", "interleaved-huffman")
SPARSE_CODECS = ("bitmask", "csr", "sparse-huffman", "interleaved-sparse-huffman")
STAGES = ("read", "digest", "parse", "checks", "decode", "values", "pack")
Call = Callable[[], Any]


@dataclass(frozen=True)
class Layers:
    """Linear layers alone, as a case that exporters and peers take."""

    sizes: tuple[int, ...]
    variant: str
    network: str = "linear"
    is_trained: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.sizes[:1]

    @cached_property
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in zip(self.sizes, self.sizes[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        model = nn.Sequential(*layers[:-1]).eval()
        for layer in model:
            if self.variant != "dense" and isinstance(layer, nn.Linear):
                with torch.no_grad():
                    layer.weight *= networks.mask(layer.weight, self.variant)
        return model

    @cached_property
    def calibration(self) -> NDArray[np.float32]:
        shape = (networks.CALIBRATION_SAMPLES, *self.input_shape)
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    def input(self, batch: int) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.calibration[:batch])

    def reference(self, batch: int) -> NDArray[np.float32]:
        with torch.inference_mode():
            output: NDArray[np.float32] = self.model(torch.from_numpy(self.input(batch))).numpy()
        return output


@dataclass(frozen=True)
class Network:
    """A network with weights of so many bits; `codec` for all weights, None for the smallest of all."""

    case: Any
    bits: int = 8
    codec: str | None = None

    @property
    def name(self) -> str:
        codec = f"/{self.codec}" if self.codec else ""
        return f"{self.case.network}/{self.case.variant}/{self.bits}{codec}"

    @cached_property
    def path(self) -> Path:
        path = exports.pqk(self.case)
        if self.bits == 8 and self.codec is None:
            return path
        own = exports.folder(self.case, ours=True) / f"{self.bits}-{self.codec}.pqk"
        format.write(with_bits(format.read(path), self.bits), own, codec=self.codec)
        return own


def with_bits(graph: Graph, bits: int) -> Graph:
    """Codes of fewer bits; those that are not 0 stay so."""
    largest = 2 ** (bits - 1) - 1
    nodes = []
    for node in graph.nodes:
        tensors = dict(node.tensors)
        if "weight" in tensors:
            codes = tensors["weight"].astype(np.int32)
            fewer = np.sign(codes) * np.maximum(np.rint(np.abs(codes) * (largest / 127)), codes != 0)
            tensors["weight"] = fewer.astype(np.int8)
        nodes.append(replace(node, tensors=tensors))
    return replace(graph, nodes=tuple(nodes))


def all_networks() -> list[Network]:
    vgg = {variant: networks.Case("vgg11", variant) for variant in networks.VARIANTS}
    linear = {variant: Layers((4096, 2048, 1024), variant) for variant in ("dense", "unstructured")}
    return [
        Network(vgg["dense"]),
        Network(vgg["dense"], 4),
        Network(vgg["unstructured"]),
        Network(vgg["unstructured"], 4),
        Network(vgg["1x4"]),
        Network(linear["dense"]),
        Network(linear["unstructured"], 4),
        *(Network(vgg["dense"], codec=codec) for codec in DENSE_CODECS),
        *(Network(vgg["unstructured"], codec=codec) for codec in SPARSE_CODECS),
    ]


# --- ours ----------------------------------------------------------------------------------------------------


def stages(path: Path, table: kernel_table.KernelTable) -> dict[str, float]:
    """Seconds of each stage: what `runtime.load` does, one step after the other."""
    clock, limit = time.perf_counter, reader.MAX_DECODED_BYTES
    times = [clock()]
    header, data = reader.read_file(path, limit)
    times.append(clock())
    container.check_digest(data)
    times.append(clock())
    parsed, tensors = reader.parse(header, data)
    times.append(clock())
    reader.check_metadata(parsed, tensors, limit)
    times.append(clock())
    graph = reader.decode(parsed, tensors, data)
    times.append(clock())
    checks.check_values(graph)
    times.append(clock())
    _core.Engine(graph, num_threads=1, max_activation_bytes=1 << 30, kernel_table=table)
    times.append(clock())
    return {name: end - begin for name, begin, end in zip(STAGES, times, times[1:], strict=False)}


def first_load(path: Path) -> float:
    """Seconds of a load that times kernels, whatever the table holds."""
    graph = format.read(path)
    best = float("inf")
    for _ in range(FIRST_LOADS):
        start = time.perf_counter()
        _core.Engine(graph, num_threads=1, max_activation_bytes=1 << 30, measure=True)
        best = min(best, time.perf_counter() - start)
    return best


def peak_bytes(path: Path) -> int:
    """By which a fresh process grows at most while it loads the file, above what it then keeps of imports."""
    script = f"""
import re
from pqk_ext import runtime
def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
model = runtime.load({str(path)!r})
print(status("VmHWM") - before)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return int(subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True).stdout)


# --- peers ---------------------------------------------------------------------------------------------------


def _once(path: Path, make: Callable[[Path], None]) -> Path:
    if not path.exists():
        make(path)
    return path


def onnxruntime_calls(case: Any) -> dict[str, Call]:
    """The model as exported, and as ONNX Runtime has optimised and saved it."""
    import onnxruntime

    def session(path: Path, level: Any, saved: Path | None = None) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = level
        options.log_severity_level = 3
        if saved is not None:
            options.optimized_model_filepath = str(saved)
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    levels = onnxruntime.GraphOptimizationLevel
    path = exports.onnx_int8(case, 1)
    optimised = _once(path.with_name("optimised.onnx"), lambda saved: session(path, levels.ORT_ENABLE_ALL, saved))
    return {
        "onnxruntime_int8": lambda: session(path, levels.ORT_ENABLE_ALL),
        "onnxruntime_int8_optimised": lambda: session(optimised, levels.ORT_DISABLE_ALL),
    }


def openvino_calls(case: Any) -> dict[str, Call]:
    """Compiled anew, and from OpenVINO's cache of compiled models."""
    import openvino

    path = exports.onnx_int8(case, 1)
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    cached = settings | {"CACHE_DIR": str(path.parent / "openvino"), "CACHE_MODE": "OPTIMIZE_SPEED"}
    core = openvino.Core()
    return {
        "openvino_int8": lambda: core.compile_model(str(path), "CPU", settings),
        "openvino_int8_cached": lambda: core.compile_model(str(path), "CPU", cached),
    }


def torch_calls(case: Any) -> dict[str, Call]:
    """The float32 weights alone: what every torch user waits for before anything can run."""
    import safetensors.torch

    model, folder = case.model, exports.folder(case)
    pickled = _once(folder / "weights.pt", lambda path: torch.save(model.state_dict(), path))
    plain = _once(
        folder / "weights.safetensors", lambda path: safetensors.torch.save_file(model.state_dict(), str(path))
    )
    return {
        "torch_load": lambda: model.load_state_dict(torch.load(pickled, weights_only=True)),
        "safetensors": lambda: model.load_state_dict(safetensors.torch.load_file(plain)),
    }


PEERS: dict[str, tuple[Callable[[Any], dict[str, Call]], tuple[str, ...]]] = {
    "onnxruntime": (onnxruntime_calls, peers.ONNX),
    "openvino": (openvino_calls, ("openvino", *peers.ONNX)),
    "torch": (torch_calls, ()),
}


def peer_calls(case: Any) -> dict[str, Call]:
    """Those that are there; others are named."""
    calls: dict[str, Call] = {}
    for name, (make, modules) in PEERS.items():
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        if absent:
            print(f"  without {name}: {', '.join(absent)} not installed", flush=True)
        else:
            calls |= make(case)
    return calls


# --- the contest ---------------------------------------------------------------------------------------------


def seconds_of(call: Call) -> float:
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    del result
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    return {"best_us": min(seconds) * 1e6, "median_us": statistics.median(seconds) * 1e6}


def measure(network: Network, rounds: int = ROUNDS, with_peers: bool = True) -> dict[str, Any]:
    path = network.path
    graph = format.read(path)
    model = runtime.load(path)  # the first load on a machine times kernels and remembers
    table = kernel_table.read()
    calls: dict[str, Call] = {
        "pqk": lambda: runtime.load(path),
        "pqk_untuned": lambda: runtime.load(path, tune=False),
        "pqk_two_threads": lambda: runtime.load(path, num_threads=2),
    }
    if with_peers:
        calls |= peer_calls(network.case)
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    parts: dict[str, list[float]] = {name: [] for name in STAGES}
    for index in range(rounds):
        for name in list(calls) if index % 2 == 0 else list(calls)[::-1]:
            times[name].append(seconds_of(calls[name]))
        for stage, seconds in stages(path, table).items():
            parts[stage].append(seconds)
    weights = [node.tensors["weight"] for node in graph.nodes if "weight" in node.tensors]
    codecs = [tensor.codec for tensor in format.inspect(path).weights]
    return {
        "bytes": path.stat().st_size,
        "weights": sum(weight.size for weight in weights),
        "codecs": {codec: codecs.count(codec) for codec in codecs},
        "kernels": sorted({kernel for _, kernel in model.kernels if kernel in _core.conv2d_kernels()}),
        "stages": {name: summary(seconds) for name, seconds in parts.items()},
        "times": {name: summary(seconds) for name, seconds in times.items()},
        "first_load_us": first_load(path) * 1e6,
        "peak_bytes": peak_bytes(path),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--no-peers", action="store_true", help="leave out the other engines")
    parser.add_argument("--output", default=STEM, help="stem of the file in benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = {"torch": torch.__version__, "versions": peers.versions(), "build": build_info(), "threads": 1}
    start = time.perf_counter()
    for network in all_networks():
        if not re.search(re.escape(arguments.only), network.name):
            continue
        row = measure(network, with_peers=network.codec is None and network.bits == 8 and not arguments.no_peers)
        shares = ", ".join(f"{name} {row['stages'][name]['best_us'] / 1e3:.1f}" for name in STAGES)
        others = ", ".join(f"{name} {found['best_us'] / 1e3:.1f}" for name, found in row["times"].items())
        print(f"{network.name}: {row['bytes'] / 1e6:.2f} MB\n  ms: {others}\n  stages: {shares}", flush=True)
        print(
            f"  first {row['first_load_us'] / 1e3:.0f} ms, peak {row['peak_bytes'] / row['weights']:.1f} bytes a weight"
        )
        paired.merge_results(arguments.output, "rows", {network.name: row}, **about)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
