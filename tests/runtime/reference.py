"""A second implementation of the graph, to test the engine against: numpy, one sample at a time.

Sums are int64 over explicit windows, the rest float32 scalars and arrays in the order that graph.py states. Values are
kept as (C, H, W) or (C,) arrays, without layouts, borders or buffers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pqk_ext.runtime.graph import Graph, Node, Value

Array = NDArray[np.generic]
F = np.float32


def run(graph: Graph, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (N, *input shape) -> float32 (N, *output shape)."""
    results = [_run_sample(graph, sample) for sample in x]
    return np.stack(results) if results else np.zeros((0, *graph.output_shape), F)


def _run_sample(graph: Graph, x: NDArray[np.float32]) -> NDArray[np.float32]:
    values: list[Array] = [x.reshape(graph.value(0).shape)]
    for node in graph.nodes:
        inputs = [values[i] for i in node.inputs]
        described = [graph.value(i) for i in node.inputs]
        result = _FUNCTIONS[node.op](node, inputs, described)
        assert result.shape == node.value.shape, node.name
        values.append(result)
    return values[-1].astype(F).reshape(graph.output_shape)


def _code(node: Node, real: Array) -> Array:
    assert real.dtype == np.float32
    low, high = node.attributes["quant_min"], node.attributes["quant_max"]
    return np.clip(np.rint(real), F(low), F(high)).astype(np.uint8)


def _number(node: Node, name: str) -> np.float32:
    return F(node.attributes[name])


def _centred(x: Array, value: Value) -> NDArray[np.int64]:
    return x.astype(np.int64) - value.zero_point


def _quantize(node: Node, inputs: list[Array], _: list[Value]) -> Array:
    inverse = F(1) / F(node.value.scale)
    with np.errstate(over="ignore"):
        rounded = np.rint(inputs[0] * inverse) + F(node.value.zero_point)
    return np.clip(rounded, F(node.attributes["quant_min"]), F(node.attributes["quant_max"])).astype(np.uint8)


def _windows(node: Node, kernel: tuple[int, int], dilation: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Output row and column, and the first position of the window in the padded image."""
    _, rows, columns = node.value.shape
    stride = node.attributes["stride"]
    for y in range(rows):
        for x in range(columns):
            yield y, x, y * stride[0], x * stride[1]


def _conv2d(node: Node, inputs: list[Array], described: list[Value]) -> Array:
    weight = node.tensors["weight"].astype(np.int64)
    out_channels, group_channels, kernel_height, kernel_width = weight.shape
    top, left, bottom, right = node.attributes["padding"]
    dilation, groups = node.attributes["dilation"], node.attributes["groups"]
    padded = np.pad(_centred(inputs[0], described[0]), ((0, 0), (top, bottom), (left, right)))
    sums = np.zeros(node.value.shape, np.int64)
    for y, x, row, column in _windows(node, (kernel_height, kernel_width), dilation):
        rows = slice(row, row + (kernel_height - 1) * dilation[0] + 1, dilation[0])
        columns = slice(column, column + (kernel_width - 1) * dilation[1] + 1, dilation[1])
        patch = padded[:, rows, columns].reshape(groups, group_channels, kernel_height, kernel_width)
        grouped = weight.reshape(groups, out_channels // groups, group_channels, kernel_height, kernel_width)
        sums[:, y, x] = np.einsum("gcyx,gocyx->go", patch, grouped).reshape(-1)
    return _rescaled(node, sums, inputs, described)


def _linear(node: Node, inputs: list[Array], described: list[Value]) -> Array:
    sums = node.tensors["weight"].astype(np.int64) @ _centred(inputs[0], described[0])
    return _rescaled(node, sums, inputs, described)


def _rescaled(node: Node, sums: NDArray[np.int64], inputs: list[Array], described: list[Value]) -> Array:
    assert np.abs(sums).max() < 2**31
    shape = (-1,) + (1,) * (sums.ndim - 1)
    real = sums.astype(np.int32).astype(F) * node.tensors["multiplier"].reshape(shape)
    if len(inputs) == 2:
        residual = _centred(inputs[1], described[1]).astype(F) * _number(node, "residual_multiplier")
        real = real + residual
    real = real + node.tensors["bias"].reshape(shape)
    return real if node.value.dtype == "f32" else _code(node, real)


def _add(node: Node, inputs: list[Array], described: list[Value]) -> Array:
    first = _centred(inputs[0], described[0]).astype(F) * _number(node, "multiplier_a")
    second = _centred(inputs[1], described[1]).astype(F) * _number(node, "multiplier_b")
    return _code(node, (first + second) + _number(node, "bias"))


def _concat(node: Node, inputs: list[Array], _: list[Value]) -> Array:
    return np.concatenate(inputs)


def _affine(node: Node, inputs: list[Array], _: list[Value]) -> Array:
    shape = (-1,) + (1,) * (inputs[0].ndim - 1)
    zero_point, multiplier, bias = (node.tensors[k].reshape(shape) for k in ("zero_point", "multiplier", "bias"))
    centred = (inputs[0].astype(np.int32) - zero_point.astype(np.int32)).astype(F)
    return _code(node, centred * multiplier + bias)


def _lookup(node: Node, inputs: list[Array], _: list[Value]) -> Array:
    return node.tensors["table"][inputs[0]]


def _max_pool2d(node: Node, inputs: list[Array], _: list[Value]) -> Array:
    kernel, dilation = node.attributes["kernel"], node.attributes["dilation"]
    top, left, bottom, right = node.attributes["padding"]
    padded = np.pad(inputs[0].astype(np.int64), ((0, 0), (top, bottom), (left, right)), constant_values=-1)
    result = np.zeros(node.value.shape, np.uint8)
    for y, x, row, column in _windows(node, kernel, dilation):
        rows = slice(row, row + (kernel[0] - 1) * dilation[0] + 1, dilation[0])
        columns = slice(column, column + (kernel[1] - 1) * dilation[1] + 1, dilation[1])
        largest = padded[:, rows, columns].max(axis=(1, 2))
        assert largest.min() >= 0
        result[:, y, x] = largest
    return result


def _mean(node: Node, window: NDArray[np.int64], divisor: int) -> Array:
    multiplier = _number(node, "multiplier") / F(divisor)
    sums = window.sum(axis=(1, 2)).astype(F)
    return _code(node, sums * multiplier + _number(node, "bias"))


def _avg_pool2d(node: Node, inputs: list[Array], described: list[Value]) -> Array:
    kernel = node.attributes["kernel"]
    top, left, bottom, right = node.attributes["padding"]
    padding = ((0, 0), (top, bottom), (left, right))
    padded = np.pad(_centred(inputs[0], described[0]), padding)
    inside = np.pad(np.ones(inputs[0].shape, np.int64), padding)
    result = np.zeros(node.value.shape, np.uint8)
    for y, x, row, column in _windows(node, kernel, (1, 1)):
        window = (slice(None), slice(row, row + kernel[0]), slice(column, column + kernel[1]))
        count = kernel[0] * kernel[1] if node.attributes["count_include_pad"] else int(inside[window][0].sum())
        result[:, y, x] = _mean(node, padded[window], count)
    return result


def _adaptive_avg_pool2d(node: Node, inputs: list[Array], described: list[Value]) -> Array:
    x = _centred(inputs[0], described[0])
    _, height, width = x.shape
    rows, columns = node.attributes["output_size"]
    result = np.zeros(node.value.shape, np.uint8)
    for i in range(rows):
        for j in range(columns):
            window = x[
                :,
                int(np.floor(i * height / rows)) : int(np.ceil((i + 1) * height / rows)),
                int(np.floor(j * width / columns)) : int(np.ceil((j + 1) * width / columns)),
            ]
            result[:, i, j] = _mean(node, window, window[0].size)
    return result


def _flatten(node: Node, inputs: list[Array], _: list[Value]) -> Array:
    return inputs[0].reshape(-1)


def _slice(node: Node, inputs: list[Array], _: list[Value]) -> Array:
    spans = zip(node.attributes["start"], node.attributes["stop"], node.attributes["step"], strict=True)
    return inputs[0][tuple(slice(*span) for span in spans)]


def _pad(node: Node, inputs: list[Array], described: list[Value]) -> Array:
    widths = list(zip(node.attributes["before"], node.attributes["after"], strict=True))
    return np.pad(inputs[0], widths, constant_values=described[0].zero_point)


def _dilate(node: Node, inputs: list[Array], described: list[Value]) -> Array:
    result = np.full(node.value.shape, described[0].zero_point or 0, inputs[0].dtype)
    for row in range(inputs[0].shape[1]):
        for column in range(inputs[0].shape[2]):
            at = row * node.attributes["dilation"][0], column * node.attributes["dilation"][1]
            result[:, at[0], at[1]] = inputs[0][:, row, column]
    return result


def _dequantize(node: Node, inputs: list[Array], described: list[Value]) -> Array:
    return _centred(inputs[0], described[0]).astype(F) * F(described[0].scale)


def _softmax(node: Node, inputs: list[Array], _: list[Value]) -> Array:
    exponentials = [_exp(value) for value in inputs[0] - inputs[0].max()]
    total = F(0)
    for value in exponentials:
        total = F(total + value)
    return np.array([value / total for value in exponentials], F)


def _exp(x: np.float32) -> np.float32:
    """``exp_nonpositive`` of numerics.h, written from its description."""
    if x < F(-87):
        return F(0)
    n = np.rint(x * F(1.44269504))
    r = (x - n * F(0.693359375)) - n * F(-2.12194440e-4)
    coefficients = [
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    ]
    p = F(coefficients[0])
    for coefficient in coefficients[1:]:
        p = p * r + F(coefficient)
    p = (p * (r * r) + r) + F(1)
    return F(p * np.ldexp(F(1), int(n)))


_FUNCTIONS = {
    "quantize": _quantize,
    "conv2d": _conv2d,
    "linear": _linear,
    "add": _add,
    "concat": _concat,
    "affine": _affine,
    "lookup": _lookup,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "flatten": _flatten,
    "slice": _slice,
    "pad": _pad,
    "dilate": _dilate,
    "dequantize": _dequantize,
    "softmax": _softmax,
}
