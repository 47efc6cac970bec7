"""An integer graph as an ONNX model, so that other runtimes can run the network of a ``.pqk`` file. Needs no torch.

Every value becomes a float tensor that holds the real numbers its codes stand for. With ``quantized`` a pair of
QuantizeLinear and DequantizeLinear follows each (the QDQ form), weights are int8 with a scale for each channel and
biases int32: the same integer network, but for how results are rounded. Without it the model is the float network that
the codes approximate; there a value beyond what 8 bits hold is not cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pqk_ext.onnx_conv import convolve, turned, write_dilate
from pqk_ext.onnx_float import MOVES, WRITE_FLOAT
from pqk_ext.runtime.graph import Graph, Node, Value

if TYPE_CHECKING:
    import onnx

__all__ = ["OPSET", "to_onnx"]

OPSET = 20
_IR_VERSION = 9
_LARGEST_BIAS = 2.0**30
# Factors this near to 1 are 1: they are quotients of float32 scales.
_NEAR = 1e-5

_Array = NDArray[Any]


def to_onnx(graph: Graph, *, batch: int, quantized: bool = True, requantize_sums: bool = False) -> onnx.ModelProto:
    """The graph as an ONNX model with one input ``x`` and one output ``y``, both float32.

    Args:
        graph: as read from a file.
        batch: samples of a call; the model takes no other number.
        quantized: QDQ form with 8-bit codes, or plain floats.
        requantize_sums: with ``quantized``: round the result of a convolution to codes also where an addition follows
            it. Some runtimes compute such a convolution in integers only then.

    Raises:
        ImportError: the package onnx is not installed.
        ValueError: a node that ONNX has no operator for; it is named.
    """
    import onnx

    builder = _Builder(graph, quantized, requantize_sums)
    for index, node in enumerate(graph.nodes):
        builder.add_node(index, node)
    real = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_tensor_value_info("x", real, [batch, *graph.input.shape])]
    outputs = [onnx.helper.make_tensor_value_info("y", real, [batch, *graph.output_shape])]
    builder.finish()
    made = onnx.helper.make_graph(builder.nodes, "pqk", inputs, outputs, builder.constants)
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


class _Builder:
    """Writes one integer node after the other; ``values`` are the names of the real tensors."""

    def __init__(self, graph: Graph, quantized: bool, requantize_sums: bool) -> None:
        self.graph = graph
        self.quantized = quantized
        self.requantize_sums = requantize_sums
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.values = ["x"]
        self.channel_qparams: dict[int, tuple[_Array, _Array]] = {}
        self.index = 0
        self.label = "input"
        if graph.sequence:
            self.values = [self.call("Unsqueeze", ["x", self.constant(np.asarray([2], np.int64))])]

    # --- pieces of ONNX --------------------------------------------------------------------------------------

    def call(self, op: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Appends a node; gives the name of its output."""
        import onnx

        output = output or f"{self.label}.{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name=f"node.{output}", **attributes))
        return output

    def constant(self, array: _Array) -> str:
        import onnx

        name = f"{self.label}.c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def real(self, number: float | _Array) -> str:
        return self.constant(np.asarray(number, np.float32))

    def codes(self, x: str, scale: float, zero_point: int) -> str:
        """``x`` rounded to 8-bit codes and back."""
        qparams = [self.real(scale), self.constant(np.asarray(zero_point, np.uint8))]
        return self.call("DequantizeLinear", [self.call("QuantizeLinear", [x, *qparams]), *qparams])

    def times(self, x: str, factor: float) -> str:
        return x if abs(factor - 1) < _NEAR else self.call("Mul", [x, self.real(factor)])

    def plus(self, x: str, term: float, scale: float) -> str:
        return x if abs(term) < _NEAR * scale else self.call("Add", [x, self.real(term)])

    # --- the graph's numbers ---------------------------------------------------------------------------------

    def add_node(self, index: int, node: Node) -> None:
        self.index, self.label = index + 1, f"{index}.{node.name}"
        moves_floats = node.op in MOVES and node.value.dtype == "f32"
        write = MOVES[node.op] if moves_floats else (_WRITE | WRITE_FLOAT)[node.op]
        x = write(self, node, *(self.values[i] for i in node.inputs))
        value = node.value
        if self.quantized and value.scale is not None and value.zero_point is not None:
            x = self.codes(x, value.scale, value.zero_point)
        self.values.append(x)

    def finish(self) -> None:
        """The last value becomes the output ``y``; what nobody reads goes."""
        self.label = "output"
        if len(self.graph.output_shape) < len(self.graph.nodes[-1].value.shape):
            self.call("Squeeze", [self.values[-1], self.constant(np.asarray([2], np.int64))], "y")
        else:
            self.call("Identity", [self.values[-1]], "y")
        read, kept = {"y"}, []
        for node in reversed(self.nodes):  # a value may have gone into an operator that stands for two nodes
            if read.intersection(node.output):
                read.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = [constant for constant in self.constants if constant.name in read]

    def refuse(self, node: Node, why: str) -> ValueError:
        return ValueError(f"nodes[{self.index - 1}] ({node.name}): no ONNX operator for this {node.op}: {why}")

    def source(self, node: Node, slot: int = 0) -> Value:
        return self.graph.value(node.inputs[slot])

    def qparams_of_channels(self, index: int) -> tuple[_Array, _Array]:
        """Scale and zero point of each channel of a u8 value."""
        if index in self.channel_qparams:
            return self.channel_qparams[index]
        value = self.graph.value(index)
        channels = value.shape[0]
        return np.full(channels, value.scale), np.full(channels, value.zero_point)

    def clamp(self, x: str, node: Node) -> str:
        """The range of codes as an activation function: ReLU, ReLU6, or none where it is all that 8 bits hold."""
        scale, zero_point = _qparams(node.value)
        low, high = node.attributes["quant_min"], node.attributes["quant_max"]
        if low == zero_point and high == 255 and node.op != "quantize":
            return self.call("Relu", [x])
        if low > 0 or high < 255:
            limits = [self.real((code - zero_point) * scale) for code in (low, high)]
            return self.call("Clip", [x, *limits])
        return x


def _qparams(value: Value) -> tuple[float, int]:
    assert value.scale is not None, "the format's rules give this value one scale"
    assert value.zero_point is not None
    return value.scale, value.zero_point


def _quantize(b: _Builder, node: Node, x: str) -> str:
    return b.clamp(x, node)


def _weighted(b: _Builder, node: Node, x: str, residual: str | None = None) -> str:
    """conv2d and linear: real weights are codes * multiplier * (output scale / input scale)."""
    scale_in = _qparams(b.source(node))[0]
    if node.value.dtype == "u8":
        scale_out, zero_point = _qparams(node.value)
    else:
        scale_out, zero_point = 1.0, 0
    gain = node.tensors["multiplier"].astype(np.float64) * scale_out / scale_in
    bias = (node.tensors["bias"].astype(np.float64) - zero_point) * scale_out
    if node.op == "linear":
        y = b.call("Gemm", [x, *_weights(b, node.tensors["weight"], gain, bias, scale_in)], transB=1)
    else:
        codes = turned(b, node, node.tensors["weight"])
        y = convolve(b, node, x, *_weights(b, codes, gain, bias, scale_in))
    if node.value.dtype == "f32":
        return y
    if residual is not None:
        if b.quantized and b.requantize_sums:
            y = b.codes(y, *_addend_qparams(b, node))
        factor = node.attributes["residual_multiplier"] * scale_out / _qparams(b.source(node, 1))[0]
        y = b.call("Add", [y, b.times(residual, factor)])
    return b.clamp(y, node)


def _addend_qparams(b: _Builder, node: Node) -> tuple[float, int]:
    """Codes for what a residual is added to, of which the graph holds none: all that the sum is not cut off for."""
    scale, zero_point = _qparams(node.value)
    zero_residual = _qparams(b.source(node, 1))[1]
    ends = [(code - zero_residual) * node.attributes["residual_multiplier"] for code in (0, 255)]
    low, high = -zero_point - max(ends), 255 - zero_point - min(ends)
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    return step * scale, round(-low / step)


def _weights(b: _Builder, codes: _Array, gain: _Array, bias: _Array, scale_in: float) -> list[str]:
    """Weight and bias: as floats, or as integers with their scales."""
    per_channel = [-1, *[1] * (codes.ndim - 1)]
    if not b.quantized:
        return [b.real(codes * gain.reshape(per_channel)), b.real(bias)]
    # A scale is positive; and not so small that the bias, in units of scale_in * scale, leaves 32 bits.
    scale = np.maximum(np.abs(gain), np.abs(bias) / (scale_in * _LARGEST_BIAS))
    scale = np.maximum(scale, 1e-30).astype(np.float32)
    weight = np.rint(codes * (gain / scale).reshape(per_channel)).astype(np.int8)
    bias_codes = np.rint(bias / (scale_in * scale.astype(np.float64))).astype(np.int32)
    result = []
    for array, its_scale in ((weight, scale), (bias_codes, (scale_in * scale).astype(np.float32))):
        zero = b.constant(np.zeros(len(scale), array.dtype))
        result.append(b.call("DequantizeLinear", [b.constant(array), b.real(its_scale), zero], axis=0))
    return result


def _add(b: _Builder, node: Node, x: str, y: str) -> str:
    scale, zero_point = _qparams(node.value)
    parts = []
    for slot, (name, part) in enumerate((("multiplier_a", x), ("multiplier_b", y))):
        parts.append(b.times(part, node.attributes[name] * scale / _qparams(b.source(node, slot))[0]))
    total = b.call("Add", parts)
    return b.clamp(b.plus(total, (node.attributes["bias"] - zero_point) * scale, scale), node)


def _concat(b: _Builder, node: Node, *inputs: str) -> str:
    parts = [b.qparams_of_channels(i) for i in node.inputs]
    scales, zero_points = zip(*parts, strict=True)
    b.channel_qparams[b.index] = np.concatenate(scales), np.concatenate(zero_points)
    return b.call("Concat", list(inputs), axis=1)


def _affine(b: _Builder, node: Node, x: str) -> str:
    scale_in, zero_in = b.qparams_of_channels(node.inputs[0])
    scale, zero_point = _qparams(node.value)
    multiplier = node.tensors["multiplier"].astype(np.float64)
    offset = (zero_in - node.tensors["zero_point"].astype(np.float64)) * multiplier
    shift = (offset + node.tensors["bias"].astype(np.float64) - zero_point) * scale
    shape = [-1, *[1] * (len(node.value.shape) - 1)]
    y = b.call("Mul", [x, b.real((multiplier * scale / scale_in).reshape(shape))])
    return b.clamp(b.call("Add", [y, b.real(shift.reshape(shape))]), node)


def _max_pool(b: _Builder, node: Node, x: str) -> str:
    _keep_channel_qparams(b, node)
    a = node.attributes
    return b.call(
        "MaxPool", [x], kernel_shape=a["kernel"], strides=a["stride"], pads=a["padding"], dilations=a["dilation"]
    )


def _avg_pool(b: _Builder, node: Node, x: str) -> str:
    a = node.attributes
    mean = b.call(
        "AveragePool",
        [x],
        kernel_shape=a["kernel"],
        strides=a["stride"],
        pads=a["padding"],
        count_include_pad=a["count_include_pad"],
    )
    return _mean(b, node, mean)


def _adaptive_avg_pool(b: _Builder, node: Node, x: str) -> str:
    goal, sizes = node.attributes["output_size"], b.source(node).shape[1:]
    if list(goal) == [1, 1]:
        return _mean(b, node, b.call("GlobalAveragePool", [x]))
    if any(size % n for size, n in zip(sizes, goal, strict=True)):
        raise b.refuse(node, f"its windows over {sizes} for {tuple(goal)} differ in size")
    kernel = [size // n for size, n in zip(sizes, goal, strict=True)]
    return _mean(b, node, b.call("AveragePool", [x], kernel_shape=kernel, strides=kernel))


def _mean(b: _Builder, node: Node, mean: str) -> str:
    """A pool's mean in real numbers, rescaled where the node does so."""
    scale, zero_point = _qparams(node.value)
    y = b.times(mean, node.attributes["multiplier"] * scale / _qparams(b.source(node))[0])
    return b.clamp(b.plus(y, (node.attributes["bias"] - zero_point) * scale, scale), node)


def _flatten(b: _Builder, node: Node, x: str) -> str:
    _keep_channel_qparams(b, node, math.prod(b.source(node).shape[1:]))
    return b.call("Flatten", [x], axis=1)


def _slice(b: _Builder, node: Node, x: str) -> str:
    a = node.attributes
    if node.inputs[0] in b.channel_qparams:
        channels = slice(a["start"][0], a["stop"][0], a["step"][0])
        scale, zero_point = b.channel_qparams[node.inputs[0]]
        b.channel_qparams[b.index] = scale[channels], zero_point[channels]
    bounds = [b.constant(np.asarray(a[name], np.int64)) for name in ("start", "stop")]
    axes = b.constant(np.arange(1, 4))
    return b.call("Slice", [x, *bounds, axes, b.constant(np.asarray(a["step"], np.int64))])


def _pad(b: _Builder, node: Node, x: str) -> str:
    pads = [0, *node.attributes["before"], 0, *node.attributes["after"]]
    return b.call("Pad", [x, b.constant(np.asarray(pads, np.int64))])


def _keep_channel_qparams(b: _Builder, node: Node, repeats: int = 1) -> None:
    if node.inputs[0] in b.channel_qparams:
        scale, zero_point = b.channel_qparams[node.inputs[0]]
        b.channel_qparams[b.index] = np.repeat(scale, repeats), np.repeat(zero_point, repeats)


def _lookup(b: _Builder, node: Node, x: str) -> str:
    """The function that the table was made from, found again by trying those that ONNX knows."""
    scale_in, zero_in = _qparams(b.source(node))
    scale, zero_point = _qparams(node.value)
    table = node.tensors["table"].astype(np.int64)
    real = (np.arange(256) - zero_in) * scale_in
    for quant_max in (2**bits - 1 for bits in range(8, 1, -1)):
        for function, write in _FUNCTIONS:
            codes = np.clip(np.rint(function(real) / scale) + zero_point, 0, quant_max)
            if np.abs(codes - table).max() <= 1:
                y = write(b, x)
                limits = [b.real((code - zero_point) * scale) for code in (0, quant_max)]
                return y if quant_max == 255 else b.call("Clip", [y, *limits])
    raise b.refuse(node, "its table is of no function known here")


def _sigmoid(x: _Array) -> _Array:
    result: _Array = 0.5 * (1 + np.tanh(0.5 * x))
    return result


def _softplus(x: _Array) -> _Array:
    result: _Array = np.logaddexp(0, x)
    return result


def _gelu(x: _Array) -> _Array:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()])


_Function = Callable[[_Array], _Array]
_Write = Callable[[_Builder, str], str]


def _single(op: str, **attributes: Any) -> _Write:
    return lambda b, x: b.call(op, [x], **attributes)


# Functions of tables, in the order in which they are tried, with the ONNX operators that compute them.
_FUNCTIONS: list[tuple[_Function, _Write]] = [
    (lambda x: np.maximum(x, 0), _single("Relu")),
    (lambda x: x * np.clip(x + 3, 0, 6) / 6, _single("HardSwish")),
    (lambda x: np.clip(x + 3, 0, 6) / 6, _single("HardSigmoid", alpha=1 / 6, beta=0.5)),
    (_sigmoid, _single("Sigmoid")),
    (np.tanh, _single("Tanh")),
    (lambda x: x * _sigmoid(x), lambda b, x: b.call("Mul", [x, b.call("Sigmoid", [x])])),
    (_gelu, _single("Gelu")),
    (lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x), _single("Elu", alpha=1.0)),
    (lambda x: np.where(x < 0, 0.01 * x, x), _single("LeakyRelu", alpha=0.01)),
    (lambda x: x * np.tanh(_softplus(x)), _single("Mish")),
    (_softplus, _single("Softplus")),
]

_WRITE: dict[str, Callable[..., str]] = {
    "quantize": _quantize,
    "conv2d": _weighted,
    "linear": _weighted,
    "add": _add,
    "concat": _concat,
    "affine": _affine,
    "lookup": _lookup,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "flatten": _flatten,
    "slice": _slice,
    "pad": _pad,
    "dilate": write_dilate,
    "dequantize": lambda b, node, x: x,
    "softmax": lambda b, node, x: b.call("Softmax", [x], axis=1),
}
