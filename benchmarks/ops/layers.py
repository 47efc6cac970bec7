"""The layers of `shapes.txt`: weights at a density, the graph that the runtime computes, torch's operators."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pqk_ext.runtime import Model
from pqk_ext.runtime.graph import Graph, Node, Value

SHAPES = Path(__file__).with_name("shapes.txt")
BLOCK = 4
NODE = "layer"  # the name of the node that is timed
Call = Callable[[], object]
Codes = NDArray[np.int8]


@dataclass(frozen=True)
class Layer:
    """One line of `shapes.txt`; batch 1, padding so that stride 1 keeps the size."""

    net: str
    channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: int
    groups: int
    count: int

    @property
    def name(self) -> str:
        kind = f"depthwise {self.channels}" if self.groups > 1 else f"{self.channels}->{self.out_channels}"
        kernel = "x".join(map(str, self.kernel))
        stride = f" s{self.stride}" if self.stride > 1 else ""
        return f"{self.net} {kind} {kernel}{stride} @{self.height}x{self.width}"

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right; an even kernel's odd row is below."""
        (top, left), (bottom, right) = ([(k - 1) // 2 for k in self.kernel], [k // 2 for k in self.kernel])
        return top, left, bottom, right

    @property
    def out_size(self) -> tuple[int, int]:
        top, left, bottom, right = self.padding
        return (
            (self.height + top + bottom - self.kernel[0]) // self.stride + 1,
            (self.width + left + right - self.kernel[1]) // self.stride + 1,
        )

    @property
    def macs(self) -> int:
        height, width = self.out_size
        return height * width * self.out_channels * self.kernel[0] * self.kernel[1] * self.channels // self.groups

    @property
    def is_matrix_product(self) -> bool:
        return self.kernel == (1, 1) and self.stride == 1 and self.groups == 1

    @property
    def can_be_sparse(self) -> bool:
        return self.groups == 1 and self.channels % BLOCK == 0


def read_layers() -> list[Layer]:
    layers = []
    for line in SHAPES.read_text().splitlines():
        if line and not line.startswith("#"):
            net, channels, height, width, out_channels, kernel, stride, groups, count = line.split()
            taps = tuple(int(k) for k in kernel.split("x"))
            numbers = (int(channels), int(height), int(width), int(out_channels))
            layers.append(Layer(net, *numbers, (taps[0], taps[1]), int(stride), int(groups), int(count)))
    return layers


def weights(layer: Layer, pattern: str = "unstructured", density: float = 1.0) -> Codes:
    """Random codes, none of them zero but those masked: single ones, or blocks of 4 input channels ("1x4")."""
    random = np.random.default_rng(0)
    shape = (layer.out_channels, layer.channels // layer.groups, *layer.kernel)
    codes = random.integers(1, 128, shape) * random.choice([-1, 1], shape)
    if density < 1:
        units = (shape[0], shape[1] // BLOCK, 1, *shape[2:]) if pattern == "1x4" else shape
        kept = random.permutation(np.arange(int(np.prod(units))) < round(density * np.prod(units))).reshape(units)
        codes *= np.repeat(kept, BLOCK, 2).reshape(shape) if pattern == "1x4" else kept
    return codes.astype(np.int8)


def block_density(codes: Codes) -> float:
    """Share of the blocks of 4 input channels that are not all zero."""
    blocks = codes.reshape(codes.shape[0], codes.shape[1] // BLOCK, BLOCK, -1)
    return float(np.any(blocks != 0, 2).mean())


def model(layer: Layer, codes: Codes, kernel: str | None = None) -> Model:
    """The layer between quantize and dequantize; `kernel` computes it if given.

    Raises:
        ValueError: the kernel is not for this layer.
    """
    scale = float(np.float32(0.02))
    window = codes[0].size
    tensors = {
        "weight": codes,
        "multiplier": np.full(layer.out_channels, 0.3 / (40.0 * np.sqrt(window)), np.float32),
        "bias": np.full(layer.out_channels, 100, np.float32),
    }
    limits = {"quant_min": 0, "quant_max": 255}
    if (layer.height, layer.width) == (1, 1):
        shapes: list[tuple[int, ...]] = [(layer.channels,), (layer.out_channels,)]
        tensors["weight"] = codes.reshape(codes.shape[:2])
        op, attributes = "linear", dict[str, Any](limits)
    else:
        shapes = [(layer.channels, layer.height, layer.width), (layer.out_channels, *layer.out_size)]
        geometry = {"stride": [layer.stride] * 2, "padding": list(layer.padding), "dilation": [1, 1]}
        op, attributes = "conv2d", {**geometry, "groups": layer.groups, **limits}
    nodes = (
        Node("quantize", "quantize", (0,), Value(shapes[0], "u8", scale, 128), dict(limits)),
        Node(op, NODE, (1,), Value(shapes[1], "u8", scale, 128), attributes, tensors),
        Node("dequantize", "dequantize", (2,), Value(shapes[1], "f32")),
    )
    return Model.from_graph(Graph(Value(shapes[0], "f32"), nodes), kernels={NODE: kernel} if kernel else None)


def model_input(layer: Layer) -> NDArray[np.float32]:
    shape = (layer.channels,) if (layer.height, layer.width) == (1, 1) else (layer.channels, layer.height, layer.width)
    return np.random.default_rng(1).standard_normal((1, *shape), dtype=np.float32)


def fbgemm(layer: Layer, codes: Codes) -> Call:
    """torch's prepacked operator, weights per channel; padding that it cannot do is on the input already."""
    torch.backends.quantized.engine = "fbgemm"
    top, left, bottom, right = layer.padding
    symmetric = top == bottom and left == right
    extra = (0, 0, 0, 0) if symmetric else (left, right, top, bottom)
    input = torch.rand(1, layer.channels, layer.height, layer.width, generator=torch.Generator().manual_seed(0))
    input = torch.nn.functional.pad(input, extra).contiguous(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(input, 1 / 255, 0, torch.quint8)
        scales, zeros = torch.full((layer.out_channels,), 0.025), torch.zeros(layer.out_channels, dtype=torch.int64)
        weight = torch._make_per_channel_quantized_tensor(torch.from_numpy(codes), scales, zeros, 0)
    if layer.is_matrix_product:
        rows = quantized[0].permute(1, 2, 0).reshape(-1, layer.channels).contiguous()
        packed = torch.ops.quantized.linear_prepack(weight[:, :, 0, 0].contiguous(), None)
        return lambda: torch.ops.quantized.linear_relu(rows, packed, 0.05, 0)
    padding = [top, left] if symmetric else [0, 0]
    bias = torch.zeros(layer.out_channels)
    packed = torch.ops.quantized.conv2d_prepack(weight, bias, [layer.stride] * 2, padding, [1, 1], layer.groups)
    return lambda: torch.ops.quantized.conv2d_relu(quantized, packed, 0.05, 0)


def fbgemm_sparse(layer: Layer, codes: Codes) -> Call:
    """torch's product with 1x4 blocks of zeros left out; for layers that are a matrix product."""
    torch.backends.quantized.engine = "fbgemm"
    pixels = layer.height * layer.width
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = torch.rand(pixels, layer.channels, generator=torch.Generator().manual_seed(0))
        quantized = torch.quantize_per_tensor(rows, 1 / 255, 0, torch.quint8)
        scales, zeros = torch.full((layer.out_channels,), 0.025), torch.zeros(layer.out_channels, dtype=torch.int64)
        matrix = torch.from_numpy(codes[:, :, 0, 0].copy())
        weight = torch._make_per_channel_quantized_tensor(matrix, scales, zeros, 0)
    packed = torch.ops.sparse.qlinear_prepack(weight, torch.zeros(layer.out_channels), 1, BLOCK)
    return lambda: torch.ops.sparse.qlinear_relu(quantized, packed, 0.05, 0)
