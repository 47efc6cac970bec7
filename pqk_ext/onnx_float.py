"""The operators of float codebooks in ONNX, as plain ones: codes are looked up, multipliers folded into weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pqk_ext.onnx_conv import convolve, turned, write_dilate
from pqk_ext.runtime.graph import Node

if TYPE_CHECKING:
    from pqk_ext.onnx_graph import _Builder

__all__ = ["MOVES", "WRITE_FLOAT"]


def _clamp(b: _Builder, node: Node, x: str) -> str:
    low, high = (node.attributes.get(name) for name in ("clamp_min", "clamp_max"))
    if low is None and high is None:
        return x
    if low == 0 and high is None:
        return b.call("Relu", [x])
    bounds = ["" if bound is None else b.real(bound) for bound in (low, high)]
    return b.call("Clip", [x, *bounds] if bounds[1] else [x, bounds[0]])


def _weighted(b: _Builder, node: Node, x: str, residual: str | None = None) -> str:
    codes = node.tensors["weight"].astype(np.int16) + node.attributes["zero"]
    multiplier = node.tensors["multiplier"].astype(np.float64)
    per_channel = [-1, *[1] * (codes.ndim - 1)]
    weight = node.tensors["codebook"].astype(np.float64)[codes] * multiplier.reshape(per_channel)
    bias = b.real(node.tensors["bias"])
    if node.op == "float_linear":
        y = b.call("Gemm", [x, b.real(weight), bias], transB=1)
    else:
        y = convolve(b, node, x, b.real(turned(b, node, weight)), bias)
    return _clamp(b, node, y if residual is None else b.call("Add", [y, residual]))


def _add(b: _Builder, node: Node, x: str, y: str) -> str:
    return _clamp(b, node, b.call("Add", [x, y]))


def _affine(b: _Builder, node: Node, x: str) -> str:
    shape = [-1, *[1] * (len(node.value.shape) - 1)]
    multiplier, bias = (b.real(node.tensors[name].reshape(shape)) for name in ("multiplier", "bias"))
    return _clamp(b, node, b.call("Add", [b.call("Mul", [x, multiplier]), bias]))


def _max_pool(b: _Builder, node: Node, x: str) -> str:
    a = node.attributes
    window = {"strides": a["stride"], "pads": a["padding"], "dilations": a["dilation"]}
    return b.call("MaxPool", [x], kernel_shape=a["kernel"], **window)


def _avg_pool(b: _Builder, node: Node, x: str) -> str:
    a = node.attributes
    window = {"strides": a["stride"], "pads": a["padding"], "count_include_pad": a["count_include_pad"]}
    return b.call("AveragePool", [x], kernel_shape=a["kernel"], **window)


def _adaptive_avg_pool(b: _Builder, node: Node, x: str) -> str:
    goal, sizes = node.attributes["output_size"], b.source(node).shape[1:]
    if any(size % n for size, n in zip(sizes, goal, strict=True)):
        raise b.refuse(node, f"its windows over {sizes} for {tuple(goal)} differ in size")
    kernel = [size // n for size, n in zip(sizes, goal, strict=True)]
    return b.call("AveragePool", [x], kernel_shape=kernel, strides=kernel)


def _map(b: _Builder, node: Node, x: str) -> str:
    match node.attributes["function"]:
        case "relu":
            return b.call("Relu", [x])
        case "relu6":
            return b.call("Clip", [x, b.real(0.0), b.real(6.0)])
        case "sigmoid":
            return b.call("Sigmoid", [x])
        case "silu":
            return b.call("Mul", [x, b.call("Sigmoid", [x])])
        case "hard_swish":
            return b.call("HardSwish", [x])
        case "hard_sigmoid":
            return b.call("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
        case _:
            return b.call("Tanh", [x])


def _concat(b: _Builder, node: Node, *inputs: str) -> str:
    return b.call("Concat", list(inputs), axis=1)


def _slice(b: _Builder, node: Node, x: str) -> str:
    start, stop, step = (_integers(b, node.attributes[name]) for name in ("start", "stop", "step"))
    return b.call("Slice", [x, start, stop, _integers(b, [1, 2, 3]), step])


def _pad(b: _Builder, node: Node, x: str) -> str:
    return b.call("Pad", [x, _integers(b, [0, *node.attributes["before"], 0, *node.attributes["after"]])])


def _integers(b: _Builder, numbers: list[int]) -> str:
    array: NDArray[Any] = np.asarray(numbers, np.int64)
    return b.constant(array)


WRITE_FLOAT: dict[str, Callable[..., str]] = {
    "float_conv2d": _weighted,
    "float_linear": _weighted,
    "float_add": _add,
    "float_affine": _affine,
    "float_max_pool2d": _max_pool,
    "float_avg_pool2d": _avg_pool,
    "float_adaptive_avg_pool2d": _adaptive_avg_pool,
    "float_map": _map,
}

#: Operators on codes that move float32 values too.
MOVES: dict[str, Callable[..., str]] = {"concat": _concat, "slice": _slice, "pad": _pad, "dilate": write_dilate}
