"""Integer layers on a GPU, batch 128: against torch's int8 product, cuDNN, cuBLAS and torch's 2:4 kernels.

`python benchmarks/gpu/bench_int8_cuda.py` takes the layers of `../ops/shapes.txt` and square products, these with 2:4
weights too, and writes `benchmarks/results/gpu/int8.json` as it goes. Operations are counted as of dense weights. A
peer that torch cannot run is recorded with its reason. Each call is one CUDA graph, so that launches, which a network's
graph has not either, are not measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import layers
import paired
import paired_cuda
import torch
import torch.nn.functional as F
from layers import Layer

from pqk_ext import build_info
from pqk_ext.ops import int8_conv2d, int8_linear, int8_semi_structured_linear, semi_structured_compress

STEM = "gpu/int8"
BATCH = 128
SQUARES = (1024, 2048, 4096)  # sizes of linear layers of as many rows, inputs and outputs
FEW_ROWS = 16  # of a layer whose time is that of reading its weight
Call = Callable[[], Any]


def constants(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((channels,), 1e-3, device="cuda"), torch.full((channels,), 128.0, device="cuda")


def codes(*shape: int, dtype: torch.dtype = torch.int8) -> torch.Tensor:
    low, high = (0, 256) if dtype == torch.uint8 else (-127, 128)
    return torch.randint(low, high, shape, dtype=dtype, device="cuda")


def conv_calls(layer: Layer) -> dict[str, Callable[[], Call]]:
    """Who computes it -> what makes a call of it."""
    layout = torch.channels_last
    size = (BATCH, layer.channels, layer.height, layer.width)
    weight_size = (layer.out_channels, layer.channels // layer.groups, *layer.kernel)
    top, left, bottom, right = layer.padding
    even = (top, left) == (bottom, right)

    def ours() -> Call:
        x = codes(*size, dtype=torch.uint8).contiguous(memory_format=layout)
        weight, (multiplier, bias) = codes(*weight_size), constants(layer.out_channels)
        options = {"stride": layer.stride, "padding": list(layer.padding), "groups": layer.groups}
        return lambda: int8_conv2d(x, weight, multiplier, bias, input_zero_point=0, **options)  # type: ignore[arg-type]

    def cudnn() -> Call:
        x = torch.randn(size, device="cuda", dtype=torch.bfloat16).to(memory_format=layout)
        weight = torch.randn(weight_size, device="cuda", dtype=torch.bfloat16).to(memory_format=layout)
        images = x if even else F.pad(x, (left, right, top, bottom)).contiguous(memory_format=layout)
        padding = (top, left) if even else (0, 0)
        return lambda: F.conv2d(images, weight, None, layer.stride, padding, 1, layer.groups).relu_()

    return {"pqk": ours, "cuDNN bf16": cudnn}


def two_four(rows: int, columns: int) -> torch.Tensor:
    weight = codes(rows, columns)
    weight.view(rows, -1, 4)[..., 2:] = 0
    return weight


def linear_calls(rows: int, inputs: int, outputs: int) -> dict[str, Callable[[], Call]]:
    def ours() -> Call:
        x, weight, (multiplier, bias) = (
            codes(rows, inputs, dtype=torch.uint8),
            codes(outputs, inputs),
            constants(outputs),
        )
        return lambda: int8_linear(x, weight, multiplier, bias, input_zero_point=0)

    def int_mm() -> Call:
        x, weight = codes(rows, inputs), codes(outputs, inputs)
        return lambda: torch._int_mm(x, weight.t())

    def bf16() -> Call:
        x, weight = (torch.randn(n, inputs, device="cuda", dtype=torch.bfloat16) for n in (rows, outputs))
        return lambda: F.linear(x, weight)

    def two_of_four() -> Call:
        x, packed = codes(rows, inputs), torch.sparse.to_sparse_semi_structured(two_four(outputs, inputs))
        return lambda: torch.mm(packed, x.t())

    return {"pqk": ours, "torch._int_mm": int_mm, "cuBLAS bf16": bf16, "torch 2:4 int8": two_of_four}


def two_four_calls(rows: int, inputs: int, outputs: int) -> dict[str, Callable[[], Call]]:
    """The sparse layer, against our dense one and against who else can do either."""
    dense = linear_calls(rows, inputs, outputs)

    def ours() -> Call:
        x, (multiplier, bias) = codes(rows, inputs, dtype=torch.uint8), constants(outputs)
        values, indices = semi_structured_compress(two_four(outputs, inputs))
        return lambda: int8_semi_structured_linear(x, values, indices, multiplier, bias, input_zero_point=0)

    peers = {who: dense[who] for who in ("torch._int_mm", "torch 2:4 int8")}
    return {"pqk": ours, "pqk dense": dense["pqk"], **peers}


def measure(name: str, makers: dict[str, Callable[[], Call]], operations: float) -> dict[str, Any]:
    """Ours against each peer; who cannot run has the reason instead."""
    row: dict[str, Any] = {"name": name, "operations": operations, "peers": {}}
    calls: dict[str, Call] = {}
    for who, make in makers.items():
        try:
            calls[who] = paired_cuda.recorded(make())
        except (RuntimeError, NotImplementedError, ValueError) as error:
            reason = str(error).splitlines()[0]
            if who == "pqk":
                return row | {"failed": reason}
            row["peers"][who] = reason
    for who, call in calls.items():
        if who == "pqk":
            continue
        result = paired_cuda.compare(f"{name}, {who}", calls["pqk"], call, rounds=10, seconds_a_round=0.003)
        print(result, flush=True)
        row["peers"][who] = asdict(result)
        row["us"] = min(result.subject_us, row.get("us", result.subject_us))
        row["tops"] = operations / row["us"] / 1e6
    return row


def main() -> None:
    rows = []
    for layer in layers.read_layers():
        macs = 2.0 * layer.macs * BATCH
        rows.append(measure(layer.name, conv_calls(layer), macs))
        paired.merge_results(STEM, "rows", {row["name"]: row for row in rows}, **paired_cuda.gpu(), build=build_info())
    for size in SQUARES:
        rows.append(measure(f"linear {size}", linear_calls(size, size, size), 2.0 * size**3))
        rows.append(measure(f"linear 2:4 {size}", two_four_calls(size, size, size), 2.0 * size**3))
        few = two_four_calls(FEW_ROWS, size, size)
        rows.append(measure(f"linear 2:4 {size}, {FEW_ROWS} rows", few, 2.0 * FEW_ROWS * size**2))
        paired.merge_results(STEM, "rows", {row["name"]: row for row in rows}, **paired_cuda.gpu(), build=build_info())
    for row in rows:
        if "failed" in row:
            print(f"NOT MEASURED: {row['name']}: {row['failed']}")


if __name__ == "__main__":
    main()
