"""One network, as this package and its peers run it: each engine is a function that makes a callable of a case.

All run the same float model on one thread. int8 means 8-bit weights and activations chosen after training from the
same calibration batch, by each project's own tool; the weights' values do not change the time of any of them.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import pqk_ext
from pqk_ext import models, runtime
from pqk_ext.data import keyword_spotting_arrays

Run = Callable[[], NDArray[np.float32]]
CALIBRATION_SAMPLES = 128
OPSET = 20


@dataclass(frozen=True)
class Case:
    """A network of the zoo at one batch size."""

    network: str
    batch: int

    @cached_property
    def model(self) -> torch.nn.Module:
        torch.manual_seed(0)
        options = {"pretrained": True} if self.network == "ds_cnn" else {}
        model = models.create(self.network, **options).eval()
        for module in model.modules():  # an untrained network's running statistics are all alike
            if self.network != "ds_cnn" and isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        return model

    @cached_property
    def calibration(self) -> NDArray[np.float32]:
        if self.network == "ds_cnn":
            return keyword_spotting_arrays("train")[0][:CALIBRATION_SAMPLES]
        shape = (CALIBRATION_SAMPLES, *models.input_shape(self.network))
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    @property
    def input(self) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.calibration[: self.batch])

    @cached_property
    def folder(self) -> Path:
        return Path(_temporary().name) / f"{self.network}-{self.batch}"

    def path(self, name: str) -> Path:
        """A file of this case that one of the functions below has written, or is to write."""
        self.folder.mkdir(exist_ok=True)
        return self.folder / name


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="pqk-bench-")


def export_pqk(case: Case) -> Path:
    """The network after post-training quantization as a ``.pqk`` file."""
    path = case.path("net.pqk")
    if not path.exists():
        calibration = torch.from_numpy(case.calibration)
        pqk_ext.export(case.model, path, example_inputs=calibration, calibration=calibration)
    return path


def export_onnx(case: Case) -> Path:
    """The float network, batch size fixed."""
    path = case.path("float.onnx")
    if not path.exists():
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            case.model, (torch.from_numpy(case.input),), path, dynamo=True, opset_version=OPSET, verbose=False
        )
    return path


def export_qdq(case: Case) -> Path:
    """The int8 network as ONNX Runtime's own tool makes it: QDQ nodes, uint8 activations, int8 weights per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = case.path("qdq.onnx")
    if path.exists():
        return path
    full = len(case.calibration) // case.batch * case.batch
    batches = case.calibration[:full].reshape(-1, *case.input.shape)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.left, None)
            return None if batch is None else {_onnx_input(case): batch}

    prepared = case.path("prepared.onnx")
    quant_pre_process(str(export_onnx(case)), str(prepared))
    quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return path


def _onnx_input(case: Case) -> str:
    import onnx

    return str(onnx.load(export_onnx(case), load_external_data=False).graph.input[0].name)


def pqk(case: Case) -> Run:
    network, x = runtime.load(export_pqk(case), num_threads=1), case.input
    return lambda: network(x)


def torch_eager(case: Case) -> Run:
    model, x = case.model, torch.from_numpy(case.input)

    def run() -> NDArray[np.float32]:
        with torch.inference_mode():
            output: NDArray[np.float32] = model(x).numpy()
        return output

    return run


def _onnxruntime(case: Case, path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: case.input}
    return lambda: session.run(None, feed)[0]


def onnxruntime_float(case: Case) -> Run:
    return _onnxruntime(case, export_onnx(case))


def onnxruntime_int8(case: Case) -> Run:
    return _onnxruntime(case, export_qdq(case))


PRECISIONS: dict[str, str] = {}  # OpenVINO engine -> precision that the compiled model reports


def _openvino(case: Case, path: Path, name: str, precision: str) -> Run:
    import openvino

    # Without the hint OpenVINO computes "f32" models in bfloat16 where the CPU has it.
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    PRECISIONS[name] = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    request, x = compiled.create_infer_request(), case.input
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def run() -> NDArray[np.float32]:
        request.infer()
        output: NDArray[np.float32] = request.get_output_tensor().data
        return output

    return run


def openvino_f32(case: Case) -> Run:
    return _openvino(case, export_onnx(case), "openvino_f32", "f32")


def openvino_bf16(case: Case) -> Run:
    return _openvino(case, export_onnx(case), "openvino_bf16", "bf16")


def openvino_int8(case: Case) -> Run:
    return _openvino(case, export_qdq(case), "openvino_int8", "f32")


# Name -> (maker, modules it needs).
ENGINES: dict[str, tuple[Callable[[Case], Run], tuple[str, ...]]] = {
    "pqk": (pqk, ()),
    "torch_eager": (torch_eager, ()),
    "onnxruntime_float": (onnxruntime_float, ("onnxruntime", "onnx", "onnxscript")),
    "onnxruntime_int8": (onnxruntime_int8, ("onnxruntime", "onnx", "onnxscript")),
    "openvino_f32": (openvino_f32, ("openvino", "onnx", "onnxscript")),
    "openvino_bf16": (openvino_bf16, ("openvino", "onnx", "onnxscript")),
    "openvino_int8": (openvino_int8, ("openvino", "onnxruntime", "onnx", "onnxscript")),
}


def missing(engine: str) -> list[str]:
    """Modules that the engine needs and that are not installed."""
    return [name for name in ENGINES[engine][1] if importlib.util.find_spec(name) is None]


def make(engine: str, case: Case) -> Run:
    """The callable; silent, whatever the exporters have to say."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ENGINES[engine][0](case)


def difference(output: NDArray[Any], reference: NDArray[Any]) -> float:
    """Root mean square difference, as a share of the root mean square of ``reference``."""
    reference = reference.astype(np.float64)
    return float(np.sqrt(np.mean((output - reference) ** 2) / np.mean(reference**2)))
