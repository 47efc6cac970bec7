"""The part of ``pqk bench`` that times other runtimes on the network of a file, each in the modes that it has."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pqk_ext.cli.failures import ExitCode, Failure
from pqk_ext.cli.output import table
from pqk_ext.timing import interleaved, median_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pqk_ext.runtime import Model
    from pqk_ext.runtime.graph import Graph

    Floats = NDArray[np.float32]
    Call = Callable[[], Floats]

__all__ = ["check_installed", "compare_peers", "peers_table"]

_ENGINES = ("onnxruntime", "openvino")
# Largest difference from our output, as a share of its largest magnitude, with which a peer runs the same network:
# an int8 peer rounds in other places, a float peer does not round at all.
_TOLERANCE = {"int8": 0.1, "float": 0.3}


@dataclass(frozen=True)
class _Peer:
    engine: str
    mode: str  # "int8" or "float"
    precision: str  # as the engine itself reports it; empty where it has one only
    call: Call


def check_installed() -> None:
    """Refuses ``--peers`` where nothing can be compared."""
    if importlib.util.find_spec("onnx") is None or not _installed():
        raise Failure(
            ExitCode.ENVIRONMENT,
            f"--peers: needs onnx and one of {', '.join(_ENGINES)}: pip install 'pqk_ext[bench]'",
        )


def compare_peers(network: Model, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Times our engine and every installed peer in turns, on inputs that the network's codes can hold.

    Returns:
        For JSON, ours first: engine, mode, precision, version, median and least time in microseconds, the ratio of the
        peer's time to ours (median over the rounds) with its 95 % interval, the largest difference between the outputs
        as a share of our largest output, the tolerance for it, and whether it is within.
    """
    import numpy as np

    x = _inputs(network.graph, batch)
    out = network(x)
    ours = out.copy()
    peers = _peers(network.graph, x, network.num_threads)
    differences = [float(np.abs(peer.call() - ours).max() / max(np.abs(ours).max(), 1e-30)) for peer in peers]
    seconds = interleaved([lambda: network.run(x, out), *(peer.call for peer in peers)], rounds)
    results = [_result("pqk_ext", "int8" if _has_codes(network.graph) else "float", "", seconds[0])]
    for peer, difference, its in zip(peers, differences, seconds[1:], strict=True):
        ratios = [b / a for a, b in zip(seconds[0], its, strict=True)]
        low, high = median_interval(ratios)
        results.append(
            _result(peer.engine, peer.mode, peer.precision, its)
            | {"ratio": statistics.median(ratios), "ratio_low": low, "ratio_high": high}
            | {"output_difference": difference, "tolerance": _TOLERANCE[peer.mode]}
            | {"same_network": difference <= _TOLERANCE[peer.mode]}
        )
    return results


def peers_table(results: list[dict[str, Any]], title: str) -> Any:
    """For people."""
    columns = ("engine", "version", "mode", ">median us", ">least us", ">ratio to ours", ">output difference", "")
    return table(f"Peers on the same network: {title}", columns, [_row(result) for result in results])


def _row(result: dict[str, Any]) -> tuple[object, ...]:
    mode = f"{result['mode']} (precision hint {result['precision']})" if result["precision"] else result["mode"]
    cells = (result["engine"], result["version"], mode, f"{result['median_us']:.1f}", f"{result['min_us']:.1f}")
    if "ratio" not in result:
        return (*cells, "", "", "")
    ratio = f"{result['ratio']:.2f} [{result['ratio_low']:.2f}, {result['ratio_high']:.2f}]"
    verdict = f"{'' if result['same_network'] else 'NOT '}within {result['tolerance']:.0%}"
    return (*cells, ratio, f"{result['output_difference']:.2%}", verdict)


def _result(engine: str, mode: str, precision: str, seconds: list[float]) -> dict[str, Any]:
    return {
        "engine": engine,
        "mode": mode,
        "precision": precision,
        "version": _version(engine),
        "median_us": 1e6 * statistics.median(seconds),
        "min_us": 1e6 * min(seconds),
    }


def _version(engine: str) -> str:
    if engine == "pqk_ext":
        from pqk_ext import __version__

        return __version__
    return importlib.metadata.version(engine)


def _inputs(graph: Graph, batch: int) -> Floats:
    """Random inputs well within the range of the input's codes, so that little is cut off behind it either."""
    import numpy as np

    x = np.random.default_rng(0).standard_normal((batch, *graph.input.shape))
    first = graph.nodes[0]
    if first.op == "quantize" and first.value.scale is not None and first.value.zero_point is not None:
        low, high = (
            (first.attributes[name] - first.value.zero_point) * first.value.scale for name in ("quant_min", "quant_max")
        )
        x = (x * (high - low) / 16).clip(low, high)
    return x.astype(np.float32)


def _installed() -> list[str]:
    return [engine for engine in _ENGINES if importlib.util.find_spec(engine) is not None]


def _has_codes(graph: Graph) -> bool:
    """A network of float codebooks has none: there is nothing for int8 modes to compute."""
    return any(node.value.dtype == "u8" for node in graph.nodes)


def _peers(graph: Graph, x: Floats, threads: int) -> list[_Peer]:
    from pqk_ext.onnx_graph import to_onnx

    batch = len(x)
    floats = to_onnx(graph, batch=batch, quantized=False).SerializeToString()
    codes = to_onnx(graph, batch=batch).SerializeToString() if _has_codes(graph) else None
    peers = []
    if "onnxruntime" in _installed():
        if codes is not None:
            # It computes a convolution in integers only if codes come out of it.
            all_codes = to_onnx(graph, batch=batch, requantize_sums=True).SerializeToString()
            peers.append(_onnxruntime("int8", all_codes, x, threads))
        peers.append(_onnxruntime("float", floats, x, threads))
    if "openvino" in _installed():
        if codes is not None:
            peers.append(_openvino("int8", codes, x, threads, "f32"))
        peers += [_openvino("float", floats, x, threads, precision) for precision in ("f32", "bf16")]
    return peers


def _onnxruntime(mode: str, model: bytes, x: Floats, threads: int) -> _Peer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Its threads must not spin while another engine has its turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def call() -> Floats:
        output: Floats = session.run(None, {"x": x})[0]
        return output

    return _Peer("onnxruntime", mode, "", call)


def _openvino(mode: str, model: bytes, x: Floats, threads: int, precision: str) -> _Peer:
    import openvino

    core = openvino.Core()
    settings = {
        # Without the hint it computes float networks in bfloat16 where the CPU has it.
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def call() -> Floats:
        request.infer()
        output: Floats = request.get_output_tensor().data
        return output

    return _Peer("openvino", mode, str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string()), call)
