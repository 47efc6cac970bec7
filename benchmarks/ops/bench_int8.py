"""Integer convolutions, layer by layer, against torch's quantized (x86: FBGEMM and oneDNN) and float operators.

`pytest benchmarks/ops/bench_int8.py` lists absolute times. `python benchmarks/ops/bench_int8.py` compares the packed
kernel with torch's prepacked operator in interleaved rounds, gives the fraction of the processor's measured
`vpdpbusd` peak, and writes `benchmarks/results/int8.json`. One thread. The kernel alone needs a C++ compiler.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import paired

import pqk_ext
from pqk_ext import build_info
from pqk_ext.ops import int8_conv2d, int8_linear

REPOSITORY = Path(__file__).parents[2]
Call = Callable[[], object]


@dataclass(frozen=True)
class Layer:
    """One convolution; ``padding`` is top, left, bottom, right. A linear layer of ``height`` rows is one of width 1."""

    net: str
    name: str
    channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    count: int = 1
    residual: bool = False

    @property
    def out_size(self) -> tuple[int, int]:
        top, left, bottom, right = self.padding
        return (
            (self.height + top + bottom - self.kernel[0]) // self.stride + 1,
            (self.width + left + right - self.kernel[1]) // self.stride + 1,
        )

    @property
    def products(self) -> int:
        height, width = self.out_size
        window = self.kernel[0] * self.kernel[1] * self.channels // self.groups
        return height * width * self.out_channels * window


ONE = (1, 1, 1, 1)
LAYERS = [
    Layer("ResNet-8", "3->16 3x3 @32", 3, 32, 32, 16, (3, 3), padding=ONE),
    Layer("ResNet-8", "16->16 3x3 @32", 16, 32, 32, 16, (3, 3), padding=ONE),
    Layer("ResNet-8", "16->16 3x3 @32 + residual", 16, 32, 32, 16, (3, 3), padding=ONE, residual=True),
    Layer("ResNet-8", "16->32 3x3 s2 @32", 16, 32, 32, 32, (3, 3), 2, (1, 1, 1, 1)),
    Layer("ResNet-8", "16->32 1x1 s2 @32", 16, 32, 32, 32, (1, 1), 2),
    Layer("ResNet-8", "32->32 3x3 @16 + residual", 32, 16, 16, 32, (3, 3), padding=ONE, residual=True),
    Layer("ResNet-8", "32->64 3x3 s2 @16", 32, 16, 16, 64, (3, 3), 2, (1, 1, 1, 1)),
    Layer("ResNet-8", "32->64 1x1 s2 @16", 32, 16, 16, 64, (1, 1), 2),
    Layer("ResNet-8", "64->64 3x3 @8 + residual", 64, 8, 8, 64, (3, 3), padding=ONE, residual=True),
    Layer("DS-CNN", "1->64 10x4 s2 @49x10", 1, 49, 10, 64, (10, 4), 2, (4, 1, 5, 1)),
    Layer("DS-CNN", "depthwise 64 3x3 @25x5", 64, 25, 5, 64, (3, 3), padding=ONE, groups=64, count=4),
    Layer("DS-CNN", "64->64 1x1 @25x5", 64, 25, 5, 64, (1, 1), count=4),
    Layer("wide", "64->64 3x3 @32", 64, 32, 32, 64, (3, 3), padding=ONE),
    Layer("wide", "128->128 3x3 @16", 128, 16, 16, 128, (3, 3), padding=ONE),
    Layer("wide", "256->256 3x3 @8", 256, 8, 8, 256, (3, 3), padding=ONE),
    Layer("wide", "512->512 3x3 @4", 512, 4, 4, 512, (3, 3), padding=ONE),
    Layer("MobileNet", "depthwise 128 3x3 @16", 128, 16, 16, 128, (3, 3), padding=ONE, groups=128),
    Layer("MobileNet", "128->256 1x1 @8", 128, 8, 8, 256, (1, 1)),
    Layer("linear", "1 row 512->100", 512, 1, 1, 100, (1, 1)),
    Layer("linear", "64 rows 576->64", 576, 64, 1, 64, (1, 1)),
    Layer("linear", "256 rows 2304->256", 2304, 256, 1, 256, (1, 1)),
]


@cache
def kernels() -> ctypes.CDLL:
    """Compiles int8_kernels.cpp against the built library."""
    package = Path(pqk_ext.__file__).parent
    target = Path(tempfile.mkdtemp()) / "int8_kernels.so"
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O2", "-fPIC", "-shared", "-DPQK_X86_64"]
    command += [f"-I{REPOSITORY / 'csrc'}", str(Path(__file__).with_name("int8_kernels.cpp")), "-o", str(target)]
    subprocess.run([*command, f"-L{package}", "-lpqk_core", f"-Wl,-rpath,{package}"], check=True)
    library = ctypes.CDLL(str(target))
    library.bench_create.restype = ctypes.c_void_p
    library.bench_create.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.bench_run.argtypes = [ctypes.c_void_p]
    library.bench_run.restype = None
    library.bench_seconds.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    library.bench_seconds.restype = ctypes.c_double
    library.bench_peak.restype = ctypes.c_double
    return library


def create(layer: Layer) -> int:
    """A packed layer with its images; lives as long as the process."""
    height, width = layer.out_size
    numbers = [layer.channels, layer.height, layer.width, layer.out_channels, height, width, *layer.kernel]
    numbers += [layer.stride, layer.stride, 1, 1, layer.groups, *layer.padding]
    handle: int = kernels().bench_create((ctypes.c_int64 * len(numbers))(*numbers), int(layer.residual))
    return handle


def tensors(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    input = torch.rand(1, layer.channels, layer.height, layer.width, generator=generator)
    weight = torch.randn(layer.out_channels, layer.channels // layer.groups, *layer.kernel, generator=generator)
    return input.contiguous(memory_format=torch.channels_last), weight


def as_rows(image: torch.Tensor) -> torch.Tensor:
    """(1, C, rows, 1) as (rows, C)."""
    return image[0, :, :, 0].T.contiguous()


def kernel_call(layer: Layer) -> Call:
    handle, run = create(layer), kernels().bench_run
    return lambda: run(handle)


def op_call(layer: Layer) -> Call:
    input, weight = tensors(layer)
    codes, weight_codes = (input * 255).to(torch.uint8), (weight * 40).clamp(-127, 127).to(torch.int8)
    multiplier, bias = torch.full((layer.out_channels,), 1e-3), torch.full((layer.out_channels,), 100.0)
    geometry: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    residual = None
    if layer.residual:
        residual = torch.zeros(1, layer.out_channels, *layer.out_size, dtype=torch.uint8)
    if layer.net == "linear":
        rows, columns = as_rows(codes), weight_codes[:, :, 0, 0].contiguous()
        return lambda: int8_linear(rows, columns, multiplier, bias, input_zero_point=0)
    return lambda: int8_conv2d(codes, weight_codes, multiplier, bias, input_zero_point=0, residual=residual, **geometry)


def torch_quantized_call(layer: Layer, engine: str) -> Call:
    """torch's prepacked operator + ReLU. It pads symmetrically: other padding is put on the input before."""
    torch.backends.quantized.engine = engine
    input, weight = tensors(layer)
    top, left, bottom, right = layer.padding
    symmetric = top == bottom and left == right
    if not symmetric:
        input = torch.nn.functional.pad(input, (left, right, top, bottom)).contiguous(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes = torch.quantize_per_tensor(input, 1 / 255, 0, torch.quint8)
        scales, zeros = torch.full((layer.out_channels,), 0.025), torch.zeros(layer.out_channels, dtype=torch.int64)
        weight_codes = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    if layer.net == "linear":
        rows, columns = as_rows(codes), torch.ops.quantized.linear_prepack(weight_codes[:, :, 0, 0].contiguous(), None)
        return lambda: torch.ops.quantized.linear_relu(rows, columns, 0.05, 0)
    padding = [top, left] if symmetric else [0, 0]
    packed = torch.ops.quantized.conv2d_prepack(
        weight_codes, torch.zeros(layer.out_channels), [layer.stride] * 2, padding, [1, 1], layer.groups
    )
    run = torch.ops.quantized.conv2d_relu
    return lambda: run(codes, packed, 0.05, 0)


def torch_float_call(layer: Layer) -> Call:
    input, weight = tensors(layer)
    top, left, bottom, right = layer.padding
    input = torch.nn.functional.pad(input, (left, right, top, bottom)).contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous(memory_format=torch.channels_last)
    rows, columns = as_rows(input), weight[:, :, 0, 0].contiguous()

    def run() -> object:
        with torch.inference_mode():
            if layer.net == "linear":
                return torch.nn.functional.linear(rows, columns).relu_()
            return torch.nn.functional.conv2d(input, weight, None, layer.stride, 0, 1, layer.groups).relu_()

    return run


WHO: dict[str, Callable[[Layer], Call]] = {
    "pqk_kernel": kernel_call,
    "pqk_op": op_call,
    "torch_fbgemm": lambda layer: torch_quantized_call(layer, "fbgemm"),
    "torch_onednn": lambda layer: torch_quantized_call(layer, "onednn"),
    "torch_float": torch_float_call,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer.net} {layer.name}")
@pytest.mark.parametrize("who", WHO)
def test_int8_conv2d(benchmark: Any, who: str, layer: Layer) -> None:
    torch.set_num_threads(1)
    benchmark.extra_info["products"] = layer.products
    benchmark(WHO[who](layer))


def main() -> None:
    torch.set_num_threads(1)
    library = kernels()
    peak = library.bench_peak()
    print(f"vpdpbusd peak {peak / 1e9:.0f} GMAC/s")
    results, alone = [], []
    for layer in LAYERS:
        seconds = min(library.bench_seconds(create(layer), 50, max(1, int(2e8 / layer.products / 100))), 1.0)
        fraction = layer.products / seconds / peak if peak else None
        shown = "" if fraction is None else f", {fraction:.0%} of peak"
        print(f"{layer.net} {layer.name}: {seconds * 1e6:.2f} us{shown}, x{layer.count}")
        alone.append(
            {
                "net": layer.net,
                "layer": layer.name,
                "us": seconds * 1e6,
                "count": layer.count,
                "products": layer.products,
                "fraction_of_peak": fraction,
            }
        )
        for peer in ("torch_fbgemm", "torch_onednn", "torch_float"):
            name = f"{layer.net} {layer.name}: kernel against {peer}"
            result = paired.compare(name, kernel_call(layer), WHO[peer](layer), rounds=20, seconds_a_round=0.002)
            print(f"  {result}")
            results.append(result)
    for net in dict.fromkeys(layer.net for layer in LAYERS):
        total = sum(entry["us"] * entry["count"] for entry in alone if entry["net"] == net)
        print(f"{net}: {total:.1f} us in the layers listed")
    path = paired.write_results(
        "int8", results, threads=1, torch=torch.__version__, build=build_info(), peak=peak, layers=alone
    )
    print(path)


if __name__ == "__main__":
    main()
