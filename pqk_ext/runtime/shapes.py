"""The shape that every operator of a graph gives (``FORMAT.md``, "Operators"): one function, :func:`infer`.

The exporter, the writer and the reader all use it, so a stored shape is never taken on trust.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pqk_ext.errors import refuse
from pqk_ext.runtime.graph import Attribute

__all__ = ["MAX_CODEBOOK", "Shape", "infer"]

Shape = tuple[int, ...]

# An exact int32 sum of codes, each at most 255 from its zero point.
MAX_WINDOW = (2**31 - 1) // 255
# A weight is an int8 code.
MAX_CODEBOOK = 256


class HasShape(Protocol):
    @property
    def shape(self) -> Shape: ...


class _Node:
    """One node's fields with their types told apart; attributes have passed ``checks.check_attributes``."""

    def __init__(
        self,
        attributes: Mapping[str, Attribute],
        inputs: Sequence[Shape],
        tensors: Mapping[str, HasShape],
    ) -> None:
        self.attributes = attributes
        self.inputs = inputs
        self.tensors = tensors

    def number(self, name: str) -> int:
        value: int = self.attributes[name]
        return value

    def numbers(self, name: str) -> list[int]:
        value: list[int] = self.attributes[name]
        return value

    def input(self, slot: int, rank: int | None = None) -> Shape:
        shape = self.inputs[slot]
        if rank is not None and len(shape) != rank:
            form = "(C, H, W)" if rank == 3 else "(C,)"
            refuse("E_GRAPH_SHAPE", f"inputs[{slot}]", f"a value of shape {form}", shape)
        return shape

    def check_tensor(self, name: str, shape: Shape) -> None:
        got = tuple(self.tensors[name].shape)
        if got != shape:
            refuse("E_GRAPH_SHAPE", name, f"shape {shape}", got)

    def check_per_channel(self, channels: int, *names: str) -> None:
        for name in names:
            got = tuple(self.tensors[name].shape)
            if got != (channels,):
                refuse("E_QPARAM", name, f"one entry for each of {channels} channels", f"shape {got}")


def _window(node: _Node, kernel: Sequence[int], dilation: Sequence[int]) -> Shape:
    """Rows and columns of positions that a sliding kernel takes."""
    _, *sizes = node.input(0, 3)
    top, left, bottom, right = node.numbers("padding")
    stride = node.numbers("stride")
    result = []
    for axis, (before, after) in enumerate([(top, bottom), (left, right)]):
        extent = dilation[axis] * (kernel[axis] - 1) + 1
        padded = sizes[axis] + before + after
        if extent > padded:
            name = "height" if axis == 0 else "width"
            refuse("E_GRAPH_SHAPE", "kernel", f"at most the padded {name}, {padded}", f"{extent} with dilation")
        result.append((padded - extent) // stride[axis] + 1)
    return tuple(result)


def _conv2d(node: _Node) -> Shape:
    channels = node.input(0, 3)[0]
    weight = tuple(node.tensors["weight"].shape)
    if len(weight) != 4:
        refuse("E_GRAPH_SHAPE", "weight", "4 dimensions (O, C / groups, KH, KW)", weight)
    groups = node.number("groups")
    if channels % groups or weight[0] % groups:
        refuse("E_GRAPH_ATTR", "groups", f"a divisor of {channels} and {weight[0]} channels", groups)
    node.check_tensor("weight", (weight[0], channels // groups, *weight[2:]))
    node.check_per_channel(weight[0], "multiplier", "bias")
    shape = (weight[0], *_window(node, weight[2:], node.numbers("dilation")))
    return _with_residual(node, shape)


def _linear(node: _Node) -> Shape:
    (features,) = node.input(0, 1)
    weight = tuple(node.tensors["weight"].shape)
    if len(weight) != 2:
        refuse("E_GRAPH_SHAPE", "weight", "2 dimensions (O, I)", weight)
    node.check_tensor("weight", (weight[0], features))
    node.check_per_channel(weight[0], "multiplier", "bias")
    return _with_residual(node, (weight[0],))


def _float_conv2d(node: _Node) -> Shape:
    _check_codebook(node)
    return _conv2d(node)


def _float_linear(node: _Node) -> Shape:
    _check_codebook(node)
    return _linear(node)


def _check_codebook(node: _Node) -> None:
    shape = tuple(node.tensors["codebook"].shape)
    if len(shape) != 1 or not 1 <= shape[0] <= MAX_CODEBOOK:
        refuse("E_GRAPH_SHAPE", "codebook", f"1 to {MAX_CODEBOOK} entries", f"shape {shape}")
    if node.number("zero") >= shape[0]:
        refuse("E_GRAPH_ATTR", "zero", f"an index of the codebook, 0..{shape[0] - 1}", node.number("zero"))


def _with_residual(node: _Node, shape: Shape) -> Shape:
    if len(node.inputs) == 2 and node.inputs[1] != shape:
        refuse("E_GRAPH_SHAPE", "inputs[1]", f"the output's shape {shape}", node.inputs[1])
    return shape


def _same(node: _Node) -> Shape:
    return node.input(0)


def _add(node: _Node) -> Shape:
    if node.inputs[1] != node.inputs[0]:
        refuse("E_GRAPH_SHAPE", "inputs[1]", f"the shape of inputs[0], {node.inputs[0]}", node.inputs[1])
    return node.inputs[0]


def _concat(node: _Node) -> Shape:
    first = node.inputs[0]
    for slot, shape in enumerate(node.inputs):
        if len(shape) != len(first) or shape[1:] != first[1:]:
            refuse("E_GRAPH_SHAPE", f"inputs[{slot}]", f"{first} but for its channels", shape)
    return (sum(shape[0] for shape in node.inputs), *first[1:])


def _affine(node: _Node) -> Shape:
    shape = node.input(0)
    node.check_per_channel(shape[0], "zero_point", "multiplier", "bias")
    return shape


def _float_affine(node: _Node) -> Shape:
    shape = node.input(0)
    node.check_per_channel(shape[0], "multiplier", "bias")
    return shape


def _lookup(node: _Node) -> Shape:
    node.check_tensor("table", (256,))
    return node.input(0)


def _check_windows_meet_input(node: _Node, output: Shape, kernel: Sequence[int], dilation: Sequence[int]) -> None:
    """Every window must hold at least one position of the input, or its maximum or mean would not exist."""
    sizes = node.input(0, 3)[1:]
    for axis, side in enumerate(("top", "left")):
        before = node.numbers("padding")[axis]
        last = (output[axis] - 1) * node.numbers("stride")[axis] - before
        reach = dilation[axis] * (kernel[axis] - 1)
        stepped_over = dilation[axis] > sizes[axis] and before > 0
        if before > reach or last >= sizes[axis] or stepped_over:
            refuse("E_GRAPH_ATTR", "padding", f"windows that meet the input on the {side} axis", before)


def _check_window_area(field: str, area: int) -> None:
    if area > MAX_WINDOW:
        refuse("E_GRAPH_ATTR", field, f"a window of at most {MAX_WINDOW} positions", area)


def _max_pool2d(node: _Node) -> Shape:
    kernel, dilation = node.numbers("kernel"), node.numbers("dilation")
    window = _window(node, kernel, dilation)
    _check_windows_meet_input(node, window, kernel, dilation)
    return (node.input(0)[0], *window)


def _avg_pool2d(node: _Node) -> Shape:
    kernel = node.numbers("kernel")
    window = _window(node, kernel, (1, 1))
    _check_windows_meet_input(node, window, kernel, (1, 1))
    _check_window_area("kernel", math.prod(kernel))
    return (node.input(0)[0], *window)


def _adaptive_avg_pool2d(node: _Node) -> Shape:
    channels, *sizes = node.input(0, 3)
    _check_window_area("inputs[0]", math.prod(sizes))
    return (channels, *node.numbers("output_size"))


def _flatten(node: _Node) -> Shape:
    return (math.prod(node.input(0, 3)),)


def _slice(node: _Node) -> Shape:
    shape = node.input(0, 3)
    result = []
    for axis, size in enumerate(shape):
        start, stop, step = (node.numbers(name)[axis] for name in ("start", "stop", "step"))
        if not start < stop <= size:
            refuse("E_GRAPH_SHAPE", "stop", f"start {start} < stop <= {size} in dimension {axis}", stop)
        result.append(-(-(stop - start) // step))
    return tuple(result)


def _pad(node: _Node) -> Shape:
    rows = zip(node.input(0, 3), node.numbers("before"), node.numbers("after"), strict=True)
    return tuple(size + before + after for size, before, after in rows)


def _dilate(node: _Node) -> Shape:
    channels, *sizes = node.input(0, 3)
    rows, columns = ((size - 1) * step + 1 for size, step in zip(sizes, node.numbers("dilation"), strict=True))
    return (channels, rows, columns)


def _softmax(node: _Node) -> Shape:
    return node.input(0, 1)


_INFER: dict[str, Callable[[_Node], Shape]] = {
    "quantize": _same,
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
    "dequantize": _same,
    "softmax": _softmax,
    "float_conv2d": _float_conv2d,
    "float_linear": _float_linear,
    "float_add": _add,
    "float_affine": _float_affine,
    "float_max_pool2d": _max_pool2d,
    "float_avg_pool2d": _avg_pool2d,
    "float_adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "float_map": _same,
}


def infer(
    op: str,
    attributes: Mapping[str, Attribute],
    input_shapes: Sequence[Shape],
    tensors: Mapping[str, HasShape],
) -> Shape:
    """The output shape of one node, without batch.

    Args:
        op: a key of :data:`pqk_ext.runtime.graph.OPS`.
        attributes: the node's attributes, of the types and ranges that the operator asks for.
        input_shapes: shapes of its inputs, ``(C, H, W)`` or ``(C,)``.
        tensors: its constant tensors; only their shapes are looked at.

    Raises:
        FormatError: ``E_GRAPH_SHAPE``, ``E_GRAPH_ATTR`` or ``E_QPARAM``: inputs, attributes and tensors do not fit
            together; ``field`` is relative to the node, for example ``"inputs[1]"``.
    """
    return _INFER[op](_Node(attributes, input_shapes, tensors))
