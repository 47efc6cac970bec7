"""Compares callables on a GPU: as `paired.py`, timed by CUDA events, with a copy on the same GPU as the roof."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paired
import torch

_SECONDS_A_ROUND = 0.01


def mean_call_us(function: Callable[[], Any], calls: int) -> float:
    """Of calls one after the other, with their launches: what a loop of them takes."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3 / calls


def recorded(function: Callable[[], Any]) -> Callable[[], Any]:
    """The function as one CUDA graph: without what the host does for each of its kernels.

    Raises:
        RuntimeError: it does what cannot be recorded, such as waiting for the GPU.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def _calls_a_round(function: Callable[[], Any], seconds: float) -> int:
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    return max(1, int(seconds * 1e6 / max(mean_call_us(function, 3), 0.5)))


def copy_us(nbytes: int, rounds: int = 20) -> float:
    """Fastest copy that reads and writes ``nbytes`` in total, in microseconds."""
    source = torch.ones(max(16, nbytes // 2), dtype=torch.uint8, device="cuda")
    target = torch.zeros_like(source)

    def copy() -> object:
        return target.copy_(source)

    calls = _calls_a_round(copy, _SECONDS_A_ROUND / 4)
    return min(mean_call_us(copy, calls) for _ in range(rounds))


def compare(
    name: str,
    subject: Callable[[], Any],
    baseline: Callable[[], Any],
    *,
    rounds: int = 20,
    seconds_a_round: float = _SECONDS_A_ROUND,
    bytes_moved: int | None = None,
) -> paired.Paired:
    """As `paired.compare`, on the current GPU."""
    calls = {f: _calls_a_round(f, seconds_a_round) for f in (subject, baseline)}
    copied = None if bytes_moved is None else copy_us(bytes_moved)
    return paired.interleaved(name, subject, baseline, lambda f: mean_call_us(f, calls[f]), rounds, copied)


def gpu() -> dict[str, Any]:
    """What the timings were taken on."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
