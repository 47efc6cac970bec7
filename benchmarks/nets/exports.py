"""Files of a case for each engine, made once and kept in a cache folder.

`PQK_BENCH_CACHE` names the folder (default `~/.cache/pqk_bench`). What lies there is found again by the text of the
files that make it and by the tools' versions; it may be deleted at any time.

One ONNX file, opset 13, serves ONNX Runtime, OpenVINO and DeepSparse: batch norm folded, batch size fixed. The int8 one
is made by ONNX Runtime's own tool: QDQ nodes, uint8 activations with a zero point, int8 weights per channel, which all
three run faster than symmetric or signed activations, and than or as fast as QOperator files. In networks with
concatenations only convolutions and linear layers are quantized: OpenVINO crashes on the files that quantize
everything, and is faster on those that do not. LiteRT's files are made by litert-torch and LiteRT's own quantizer. All
int8 files are calibrated on the same data.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import Case
from numpy.typing import NDArray
from workers import worker

import pqk_ext

OPSET = 13  # the newest that all readers know, the oldest with QDQ per channel
IR_VERSION = 7
HERE = Path(__file__).parent


# What decides our own files' contents, inside the package.
OURS = (
    "deploy",
    "models",
    "nn",
    "preparation",
    "quant.py",
    "runtime/format.py",
    "runtime/graph.py",
    "runtime/writer.py",
)


def _sources(ours: bool) -> Iterator[Path]:
    yield from (HERE / name for name in ("networks.py", "exports.py", "worker.py"))
    package = Path(pqk_ext.__file__).parent
    for name in OURS if ours else ("models",):
        yield from sorted((package / name).rglob("*.py")) if (package / name).is_dir() else [package / name]


@cache
def _digest(ours: bool) -> str:
    """Of everything that the files depend on."""
    digest = hashlib.sha256()
    for path in _sources(ours):
        digest.update(path.read_bytes())
    for name in ("torch", "numpy", "onnx", "onnxruntime"):
        try:
            digest.update(importlib.metadata.version(name).encode())
        except importlib.metadata.PackageNotFoundError:
            digest.update(b"-")
    return digest.hexdigest()[:12]


def folder(case: Case, ours: bool = False) -> Path:
    root = Path(os.environ.get("PQK_BENCH_CACHE", "~/.cache/pqk_bench")).expanduser()
    path = root / _digest(ours) / f"{case.network}-{case.variant}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _once(path: Path, make: Callable[[Path], None]) -> Path:
    """The file, made if it is not there; whole or not at all."""
    if not path.exists():
        partial = path.with_name(f"{os.getpid()}-{path.name}")
        with _silent():
            make(partial)
        partial.rename(path)
    return path


@contextmanager
def _silent() -> Iterator[None]:
    """Without the exporters' many words."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def pqk(case: Case) -> Path:
    """The network after post-training quantization as a `.pqk` file."""

    def make(path: Path) -> None:
        calibration = torch.from_numpy(case.calibration)
        pqk_ext.export(case.model, path, example_inputs=calibration[:1], calibration=calibration)

    return _once(folder(case, ours=True) / "net.pqk", make)


def _fix_batch(source: Path, path: Path, batch: int) -> None:
    import onnx
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

    model = onnx.load(source)
    make_dim_param_fixed(model.graph, "n", batch)
    del model.opset_import[:]  # only the domain that is used: DeepSparse refuses newer versions of the others
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _onnx_any_batch(case: Case) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    def make(path: Path) -> None:
        exported = path.with_suffix(".raw")
        torch.onnx.export(
            case.model,
            (torch.from_numpy(case.input(2)),),
            exported,
            dynamo=False,  # the other exporter writes opset 18 and newer, which DeepSparse cannot read
            opset_version=OPSET,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "n"}, "output": {0: "n"}},
        )
        quant_pre_process(str(exported), str(path))
        exported.unlink()

    return _once(folder(case) / "float.onnx", make)


def _qdq_any_batch(case: Case) -> Path:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([case.calibration])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            data = next(self.left, None)
            return None if data is None else {"input": data}

    def make(path: Path) -> None:
        floats = _onnx_any_batch(case)
        concatenates = any(node.op_type == "Concat" for node in onnx.load(floats).graph.node)
        quantize_static(
            str(floats),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"] if concatenates else None,
        )

    return _once(folder(case) / "int8.onnx", make)


def onnx_float(case: Case, batch: int) -> Path:
    return _once(folder(case) / f"float-{batch}.onnx", lambda path: _fix_batch(_onnx_any_batch(case), path, batch))


def onnx_int8(case: Case, batch: int) -> Path:
    return _once(folder(case) / f"int8-{batch}.onnx", lambda path: _fix_batch(_qdq_any_batch(case), path, batch))


def litert(case: Case, precision: str, batch: int = 1) -> Path:
    """A LiteRT file for inputs of that batch size; `precision` is "float" or "int8", one conversion makes both."""
    here = folder(case)
    floats = here / f"float-{batch}.tflite"

    def make(path: Path) -> None:
        program = torch.export.export(case.model, (torch.from_numpy(case.input(batch)),))
        request: dict[str, Any] = {"program": path.with_suffix(".pt2"), "calibration": path.with_suffix(".npy")}
        torch.export.save(program, request["program"])
        np.save(request["calibration"], case.calibration.reshape(-1, batch, *case.input_shape))
        request |= {"floats": floats, "int8": path}
        worker("litert").ask("convert", **{key: str(value) for key, value in request.items()})
        request["program"].unlink()
        request["calibration"].unlink()

    int8 = _once(here / f"int8-{batch}.tflite", make)
    return int8 if precision == "int8" else floats


def input_file(case: Case, batch: int) -> Path:
    """What the engines get, for those that run in another process."""
    return _once(folder(case) / f"input-{batch}.npy", lambda path: _save(path, case.input(batch)))


def _save(path: Path, array: NDArray[np.float32]) -> None:
    with path.open("wb") as file:
        np.save(file, array)
