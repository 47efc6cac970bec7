"""A second implementation of the float operators, with what FORMAT.md allows them to be wrong by.

Values are float64, computed with windows and einsum; beside each stands a bound of the error of a float32 result,
which grows from operator to operator: what the inputs may be wrong by, and what the operator itself may add. Operators
on codes are those of :mod:`tests.runtime.reference`, and exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pqk_ext.runtime.graph import FLOAT_OPS, Graph, Node
from tests.runtime import reference

Array = NDArray[np.float64]
U = 2.0**-24


@dataclass(frozen=True)
class Interval:
    """Numbers and how far from them a result may lie."""

    value: Array
    error: Array

    @property
    def magnitude(self) -> Array:
        return np.abs(self.value) + self.error


def run(graph: Graph, x: NDArray[np.float32]) -> Interval:
    """float32 (N, *input shape) -> the exact results (N, *output shape) and their bounds."""
    results = [_run_sample(graph, sample) for sample in x]
    return Interval(np.stack([r.value for r in results]), np.stack([r.error for r in results]))


def _run_sample(graph: Graph, x: NDArray[np.float32]) -> Interval:
    x = x.reshape(graph.value(0).shape)
    values: list[NDArray[np.generic]] = [x]
    floats: dict[int, Interval] = {0: exact(x)}
    for index, node in enumerate(graph.nodes):
        if node.op in FLOAT_OPS or (node.op in _MOVES and node.value.dtype == "f32"):
            result = (_FUNCTIONS | _MOVES)[node.op](node, [floats[i] for i in node.inputs])
            floats[index + 1] = result
            values.append(result.value)
        else:
            described = [graph.value(i) for i in node.inputs]
            values.append(reference._FUNCTIONS[node.op](node, [values[i] for i in node.inputs], described))
            if node.value.dtype == "f32":
                floats[index + 1] = exact(values[-1])
        assert values[-1].shape == node.value.shape, node.name
    result = floats[len(graph.nodes)]
    return Interval(result.value.reshape(graph.output_shape), result.error.reshape(graph.output_shape))


def exact(x: NDArray[np.generic]) -> Interval:
    return Interval(x.astype(np.float64), np.zeros(x.shape))


def weights(node: Node) -> Array:
    codes = node.tensors["weight"].astype(np.int64)
    return node.tensors["codebook"].astype(np.float64)[codes + node.attributes["zero"]]


def _clamp(node: Node, x: Array) -> Array:
    low, high = node.attributes.get("clamp_min", -np.inf), node.attributes.get("clamp_max", np.inf)
    return np.minimum(np.maximum(x, low), high)


def _convolve(node: Node, x: Array, weight: Array) -> Array:
    out_channels, group_channels, kernel_height, kernel_width = weight.shape
    top, left, bottom, right = node.attributes["padding"]
    dilation, groups = node.attributes["dilation"], node.attributes["groups"]
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    sums = np.zeros(node.value.shape)
    for y, column_out, row, column in reference._windows(node, (kernel_height, kernel_width), dilation):
        rows = slice(row, row + (kernel_height - 1) * dilation[0] + 1, dilation[0])
        columns = slice(column, column + (kernel_width - 1) * dilation[1] + 1, dilation[1])
        patch = padded[:, rows, columns].reshape(groups, group_channels, kernel_height, kernel_width)
        grouped = weight.reshape(groups, out_channels // groups, group_channels, kernel_height, kernel_width)
        sums[:, y, column_out] = np.einsum("gcyx,gocyx->go", patch, grouped).reshape(-1)
    return sums


def _weighted(node: Node, inputs: list[Interval], multiply: Callable[[Array, Array], Array]) -> Interval:
    x, weight = inputs[0], weights(node)
    shape = (-1,) + (1,) * (len(node.value.shape) - 1)
    multiplier, bias = (node.tensors[k].astype(np.float64).reshape(shape) for k in ("multiplier", "bias"))
    value = multiply(x.value, weight) * multiplier
    propagated = multiply(x.error, np.abs(weight)) * np.abs(multiplier)
    terms = multiply(x.magnitude, np.abs(weight)) * np.abs(multiplier) + np.abs(bias)
    if len(inputs) == 2:
        value, propagated = value + inputs[1].value, propagated + inputs[1].error
        terms = terms + inputs[1].magnitude
    count = weight[0].size
    return Interval(_clamp(node, value + bias), propagated + (count + 4) * U * terms)


def _conv2d(node: Node, inputs: list[Interval]) -> Interval:
    return _weighted(node, inputs, lambda x, weight: _convolve(node, x, weight))


def _linear(node: Node, inputs: list[Interval]) -> Interval:
    return _weighted(node, inputs, lambda x, weight: weight @ x)


def _add(node: Node, inputs: list[Interval]) -> Interval:
    a, b = inputs
    return Interval(_clamp(node, a.value + b.value), a.error + b.error + 4 * U * (a.magnitude + b.magnitude))


def _affine(node: Node, inputs: list[Interval]) -> Interval:
    (x,) = inputs
    shape = (-1,) + (1,) * (x.value.ndim - 1)
    multiplier, bias = (node.tensors[k].astype(np.float64).reshape(shape) for k in ("multiplier", "bias"))
    scale = np.abs(multiplier)
    error = x.error * scale + 4 * U * (x.magnitude * scale + np.abs(bias))
    return Interval(_clamp(node, x.value * multiplier + bias), error)


def _max_pool2d(node: Node, inputs: list[Interval]) -> Interval:
    (x,) = inputs
    value, error = np.zeros(node.value.shape), np.zeros(node.value.shape)
    for where, window, _ in _pools(node, x.value.shape, node.attributes["dilation"]):
        value[where] = x.value[window].max(axis=(1, 2))
        error[where] = x.error[window].max(axis=(1, 2))
    return Interval(value, error)


def _pools(node: Node, shape: tuple[int, ...], dilation: list[int]) -> Iterator[tuple[object, object, int]]:
    """Output position, the positions of its window in the image, their number."""
    kernel, padding = node.attributes["kernel"], node.attributes["padding"]
    for y, x, row, column in reference._windows(node, kernel, dilation):
        rows = [r for k in range(kernel[0]) if 0 <= (r := row - padding[0] + k * dilation[0]) < shape[1]]
        columns = [c for k in range(kernel[1]) if 0 <= (c := column - padding[1] + k * dilation[1]) < shape[2]]
        window = np.ix_(range(shape[0]), rows, columns)
        yield (slice(None), y, x), window, len(rows) * len(columns)


def _mean(x: Interval, window: object, count: int) -> tuple[Array, Array]:
    value, error, magnitude = (part[window].sum(axis=(1, 2)) / count for part in (x.value, x.error, x.magnitude))
    return value, error + (count + 4) * U * magnitude


def _avg_pool2d(node: Node, inputs: list[Interval]) -> Interval:
    value, error = np.zeros(node.value.shape), np.zeros(node.value.shape)
    area = int(np.prod(node.attributes["kernel"]))
    for where, window, inside in _pools(node, inputs[0].value.shape, [1, 1]):
        count = area if node.attributes["count_include_pad"] else inside
        value[where], error[where] = _mean(inputs[0], window, count)
    return Interval(value, error)


def _adaptive_avg_pool2d(node: Node, inputs: list[Interval]) -> Interval:
    (x,) = inputs
    _, height, width = x.value.shape
    rows, columns = node.attributes["output_size"]
    value, error = np.zeros(node.value.shape), np.zeros(node.value.shape)
    for i in range(rows):
        for j in range(columns):
            ys = range(i * height // rows, -(-(i + 1) * height // rows))
            xs = range(j * width // columns, -(-(j + 1) * width // columns))
            window = np.ix_(range(len(x.value)), ys, xs)
            value[:, i, j], error[:, i, j] = _mean(x, window, len(ys) * len(xs))
    return Interval(value, error)


def _relu6(x: Array) -> Array:
    return np.clip(x, 0, 6)


MAPS: dict[str, tuple[Callable[[Array], Array], float]] = {
    # With the largest slope.
    "relu": (lambda x: np.maximum(x, 0), 1),
    "relu6": (_relu6, 1),
    "sigmoid": (lambda x: 0.5 + 0.5 * np.tanh(0.5 * x), 0.25),
    "silu": (lambda x: x * (0.5 + 0.5 * np.tanh(0.5 * x)), 1.1),
    "hard_swish": (lambda x: x * _relu6(x + 3) / 6, 1.5),
    "hard_sigmoid": (lambda x: _relu6(x + 3) / 6, 1 / 6),
    "tanh": (np.tanh, 1),
}


def _map(node: Node, inputs: list[Interval]) -> Interval:
    (x,) = inputs
    function, slope = MAPS[node.attributes["function"]]
    return Interval(function(x.value), slope * x.error + 2.0**-21 * np.maximum(1, x.magnitude))


def _both(function: Callable[[Node, list[Array]], Array]) -> Callable[[Node, list[Interval]], Interval]:
    """What only moves numbers moves their bounds alike."""
    return lambda node, inputs: Interval(
        function(node, [x.value for x in inputs]), function(node, [x.error for x in inputs])
    )


def _slice(node: Node, inputs: list[Array]) -> Array:
    spans = zip(node.attributes["start"], node.attributes["stop"], node.attributes["step"], strict=True)
    return inputs[0][tuple(slice(*span) for span in spans)]


def _pad(node: Node, inputs: list[Array]) -> Array:
    return np.pad(inputs[0], list(zip(node.attributes["before"], node.attributes["after"], strict=True)))


def _dilate(node: Node, inputs: list[Array]) -> Array:
    result = np.zeros(node.value.shape)
    rows, columns = node.attributes["dilation"]
    result[:, ::rows, ::columns] = inputs[0]
    return result


_FUNCTIONS = {
    "float_conv2d": _conv2d,
    "float_linear": _linear,
    "float_add": _add,
    "float_affine": _affine,
    "float_max_pool2d": _max_pool2d,
    "float_avg_pool2d": _avg_pool2d,
    "float_adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "float_map": _map,
}
_MOVES = {
    "concat": _both(lambda node, inputs: np.concatenate(inputs)),
    "slice": _both(_slice),
    "pad": _both(_pad),
    "dilate": _both(_dilate),
    "flatten": _both(lambda node, inputs: inputs[0].reshape(-1)),
}
