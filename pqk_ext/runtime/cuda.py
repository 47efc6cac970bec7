"""The engine on NVIDIA GPUs: names of devices, and the native module that serves them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pqk_ext.runtime.graph import Graph

__all__ = ["EXECUTORS", "NativeEngine", "index_of", "make_engine"]

#: Who walks the network: one block of threads an image in a single launch, or a launch a step for all images.
EXECUTORS = ("resident", "steps")

# Imported when a device is asked for, not before: it needs no GPU to be imported, but time and memory.
_module_name = "pqk_ext._engine_cuda"


class NativeEngine(Protocol):
    """What the engines of all devices have."""

    def run(self, x: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]: ...
    def profile(self, x: NDArray[np.float32], repeats: int) -> list[tuple[str, str, float]]: ...
    @property
    def kernels(self) -> list[tuple[str, str]]: ...
    @property
    def isa(self) -> str: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def activation_bytes(self) -> int: ...


def index_of(device: str) -> int | None:
    """The number of a CUDA device, None for ``"cpu"``.

    Raises:
        ValueError: it is neither ``"cpu"`` nor ``"cuda"`` nor ``"cuda:N"``.
    """
    if device == "cpu":
        return None
    kind, colon, index = device.partition(":")
    if kind == "cuda" and (not colon or (index.isascii() and index.isdigit())):
        return int(index or 0)
    raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}")


def make_engine(graph: Graph, index: int, max_activation_bytes: int, kernels: Mapping[str, str] | None) -> NativeEngine:
    """The native engine of a graph on CUDA device ``index``.

    Raises:
        RuntimeError: this build has no CUDA engine, or the device cannot be used; the message names the cause.
        ValueError: ``kernels`` holds more than an executor for all nodes.
    """
    executor = _executor(kernels or {})
    try:
        native: Any = importlib.import_module(_module_name)
    except ImportError as error:
        raise RuntimeError(
            "device='cuda': this installation of pqk_ext has no CUDA engine; it is built where nvcc is found "
            f"(see 'CUDA engine' in the output of cmake): {error}"
        ) from error
    engine: NativeEngine = native.Engine(
        graph, device=index, max_activation_bytes=max_activation_bytes, executor=executor
    )
    return engine


def _executor(kernels: Mapping[str, str]) -> str:
    for node, name in kernels.items():
        if node != "*":
            raise ValueError(f"kernels: on CUDA expected '*' alone, which names the executor, got {node!r}")
        if name not in EXECUTORS:
            raise ValueError(f"kernels['*']: on CUDA expected one of {', '.join(EXECUTORS)}, got {name!r}")
    return kernels.get("*", "auto")
