"""Every rule that a graph must keep before it is written or run (``FORMAT.md``, "Rules of the graph").

:func:`check_structure` needs only shapes and dtypes of the tensors, :func:`check_values` their contents.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from pqk_ext.errors import FormatError, refuse
from pqk_ext.runtime import shapes
from pqk_ext.runtime.graph import FLOAT_OPS, MAPS, OPS, Attribute, AttributeKind, Graph, Node, OpSchema, Value

__all__ = ["check_name", "check_structure", "check_values", "inside", "is_float32"]

MAX_NODES = 65_536
MAX_DIMENSION = 2**31 - 1
MAX_ELEMENTS = 2**40
MAX_ATTRIBUTE = 2**31 - 1
# Bounds that keep every product and sum of the formulas finite: |acc| < 2^31.
MAX_MULTIPLIER = 2.0**64
MAX_BIAS = 2.0**96

_NAME = re.compile(r"[A-Za-z0-9_.]{1,256}")
_AT_LEAST_ONE = {"stride", "dilation", "groups", "kernel", "step", "output_size"}
_DTYPES = {"u8": np.uint8, "i8": np.int8, "f32": np.float32}
_KEEPS_CODES = {"max_pool2d", "flatten", "pad", "dilate"}
# Those that move values of either dtype.
_MOVES = {"concat", "flatten", "slice", "pad", "dilate"}
_NEEDS_ZERO_POINT = {"conv2d", "linear", "add", "avg_pool2d", "adaptive_avg_pool2d", "pad", "dilate", "dequantize"}


def check_name(name: object, field: str) -> None:
    """Names are for people only: nothing is ever looked up by one."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        refuse("E_NAME", field, "1 to 256 characters of A-Z, a-z, 0-9, _ and .", repr(name))


def is_float32(number: float) -> bool:
    """Whether a Python float is a finite float32 number."""
    with np.errstate(over="ignore"):
        return math.isfinite(number) and float(np.float32(number)) == number


def check_shape(shape: tuple[object, ...], field: str, ranks: tuple[int, ...]) -> None:
    if len(shape) not in ranks:
        refuse("E_SHAPE", field, f"{' or '.join(map(str, ranks))} dimensions", len(shape))
    elements = 1
    for axis, size in enumerate(shape):
        if type(size) is not int or not 1 <= size <= MAX_DIMENSION:
            refuse("E_SHAPE", f"{field}[{axis}]", "an integer in 1..2^31 - 1", repr(size))
        elements *= size
    if elements > MAX_ELEMENTS:
        refuse("E_SHAPE_OVERFLOW", field, "at most 2^40 elements", f"{shape}")


def check_structure(graph: Graph, max_decoded_bytes: int) -> None:
    """Everything but the contents of tensors: names, references, attributes, dtypes, shapes, memory.

    Raises:
        FormatError: naming the rule, the field, what was expected and what came.
    """
    if not 1 <= len(graph.nodes) <= MAX_NODES:
        refuse("E_LIMIT", "nodes", f"1 to {MAX_NODES} nodes", len(graph.nodes))
    check_shape(graph.input.shape, "input", (1, 2, 3))
    if graph.input != Value(graph.input.shape, "f32"):
        refuse("E_QPARAM", "input", "a float32 value without scale and zero_point", graph.input)
    for index, node in enumerate(graph.nodes):
        with inside(f"nodes[{index}]"):
            _check_node(graph, index, node)
    if graph.nodes[-1].value.dtype != "f32":
        refuse("E_GRAPH_ATTR", f"nodes[{len(graph.nodes) - 1}].dtype", "f32, it is the output", "u8")
    output = graph.nodes[-1].value.shape
    if graph.sequence and len(output) == 3 and output[1] != 1:
        refuse("E_GRAPH_SHAPE", f"nodes[{len(graph.nodes) - 1}].shape", "height 1, as the input is (C, L)", output)
    _check_activation_bytes(graph, max_decoded_bytes)


def check_values(graph: Graph) -> None:
    """The contents of tensors: finite numbers, and sums that int32 holds.

    Raises:
        FormatError: ``E_QPARAM``, naming the tensor and the channel.
    """
    for index, node in enumerate(graph.nodes):
        with inside(f"nodes[{index}]"):
            _check_tensor_values(node)


@contextmanager
def inside(owner: str) -> Iterator[None]:
    """Puts the owner's path before the field of a FormatError."""
    try:
        yield
    except FormatError as error:
        raise FormatError(error.code, f"{owner}.{error.field}", error.offset, error.expected, error.got) from None


def _check_node(graph: Graph, index: int, node: Node) -> None:
    schema = OPS.get(node.op)
    if schema is None:
        refuse("E_ENUM", "op", f"one of {', '.join(OPS)}", repr(node.op))
    check_name(node.name, "name")
    _check_references(node, index, schema)
    inputs = [graph.value(i) for i in node.inputs]
    _check_attributes(node, schema)
    _check_tensors(node, schema)
    _check_dtypes(node, inputs)
    _check_quantization(node, inputs)
    check_shape(node.value.shape, "shape", (1, 3))
    inferred = shapes.infer(node.op, node.attributes, [value.shape for value in inputs], node.tensors)
    if inferred != node.value.shape:
        refuse("E_GRAPH_SHAPE", "shape", f"{inferred}, as inferred", node.value.shape)


def _check_references(node: Node, index: int, schema: OpSchema) -> None:
    fewest, most = schema.inputs
    if not fewest <= len(node.inputs) <= most:
        refuse("E_GRAPH_REF", "inputs", f"{fewest} to {most} inputs", len(node.inputs))
    for slot, reference in enumerate(node.inputs):
        if type(reference) is not int or not 0 <= reference <= index:
            refuse("E_GRAPH_REF", f"inputs[{slot}]", f"an earlier value, 0..{index}", repr(reference))


def _required(node: Node, schema: OpSchema) -> set[str]:
    """Attributes that this node must have; it may have no others."""
    names = set(schema.attributes)
    if node.op in ("conv2d", "linear"):
        if node.value.dtype == "f32":
            names -= {"quant_min", "quant_max"}
        if len(node.inputs) == 1:
            names -= {"residual_multiplier"}
    elif node.op in FLOAT_OPS:
        names -= schema.optional - set(node.attributes)
    return names


def _check_attributes(node: Node, schema: OpSchema) -> None:
    required = _required(node, schema)
    for name in sorted(required ^ set(node.attributes)):
        expected, got = ("present", "missing") if name in required else ("absent", "present")
        refuse("E_GRAPH_ATTR", name, f"{expected} for this {node.op}", got)
    for name, value in node.attributes.items():
        _check_attribute(name, value, schema.attributes[name])
    if "quant_min" in node.attributes:
        _check_quant_range(node)
    low, high = (node.attributes.get(name) for name in ("clamp_min", "clamp_max"))
    if low is not None and high is not None and low > high:
        refuse("E_QPARAM", "clamp_min", f"at most clamp_max, {high}", low)


def _check_attribute(name: str, value: Attribute, kind: AttributeKind) -> None:
    if kind is str:
        if value not in MAPS:
            refuse("E_ENUM", name, f"one of {', '.join(MAPS)}", repr(value))
        return
    if kind is float:
        limit = MAX_BIAS if name == "bias" else MAX_MULTIPLIER
        if type(value) is not float or not is_float32(value) or abs(value) > limit:
            refuse("E_QPARAM", name, f"a finite float32 number of at most {limit:.3g}", repr(value))
        return
    if kind is int:
        items: list[object] = [value]
    elif isinstance(value, list) and len(value) == kind:
        items = list(value)
    else:
        refuse("E_GRAPH_ATTR", name, f"a list of {kind} integers", repr(value))
    lowest = int(name in _AT_LEAST_ONE)
    highest = 1 if name == "count_include_pad" else MAX_ATTRIBUTE
    for item in items:
        if type(item) is not int or not lowest <= item <= highest:
            refuse("E_GRAPH_ATTR", name, f"integers in {lowest}..{highest}", repr(value))


def _check_quant_range(node: Node) -> None:
    low, high = node.attributes["quant_min"], node.attributes["quant_max"]
    if not 0 <= low <= high <= 255:
        refuse("E_QPARAM", "quant_min", "0 <= quant_min <= quant_max <= 255", f"{low} and {high}")


def _check_tensors(node: Node, schema: OpSchema) -> None:
    for name in sorted(set(schema.tensors) ^ set(node.tensors)):
        expected, got = ("present", "missing") if name in schema.tensors else ("absent", "present")
        refuse("E_GRAPH_ATTR", name, f"a tensor {expected} for {node.op}", got)
    for name, tensor in node.tensors.items():
        if tensor.dtype != _DTYPES[schema.tensors[name]]:
            refuse("E_GRAPH_ATTR", name, f"dtype {schema.tensors[name]}", tensor.dtype)
        check_shape(tensor.shape, f"{name}.shape", (1, 2, 4))


def _check_dtypes(node: Node, inputs: list[Value]) -> None:
    if node.op in FLOAT_OPS or node.op in ("quantize", "softmax"):
        accepted: tuple[str, ...] = ("f32",)
    else:
        accepted = ("u8", "f32") if node.op in _MOVES else ("u8",)
    for slot, value in enumerate(inputs):
        if value.dtype not in accepted:
            refuse("E_GRAPH_REF", f"inputs[{slot}]", f"a {' or '.join(accepted)} value", value.dtype)
        if value.dtype != inputs[0].dtype:
            refuse("E_GRAPH_REF", f"inputs[{slot}]", f"a {inputs[0].dtype} value, as inputs[0]", value.dtype)
    if node.op in ("conv2d", "linear"):
        given: tuple[str, ...] = ("u8", "f32") if len(inputs) == 1 else ("u8",)
    elif node.op in _MOVES:
        given = (inputs[0].dtype,)
    else:
        given = ("f32",) if node.op in FLOAT_OPS or node.op in ("dequantize", "softmax") else ("u8",)
    if node.value.dtype not in given:
        code = "E_GRAPH_ATTR" if node.value.dtype in ("u8", "f32") else "E_ENUM"
        refuse(code, "dtype", " or ".join(given), repr(node.value.dtype))


def _check_quantization(node: Node, inputs: list[Value]) -> None:
    scale, zero_point = node.value.scale, node.value.zero_point
    if (scale is None) != (zero_point is None):
        refuse("E_QPARAM", "scale", "scale and zero_point, or neither", f"{scale} and {zero_point}")
    if scale is not None:
        _check_scale(scale, zero_point)
    if node.value.dtype == "f32" and scale is not None:
        refuse("E_QPARAM", "scale", "none for a float32 value", scale)
    if node.op == "quantize":
        low, high = node.attributes["quant_min"], node.attributes["quant_max"]
        if scale is None or zero_point is None:
            refuse("E_QPARAM", "scale", "a scale", "none")
        if not low <= zero_point <= high:
            refuse("E_QPARAM", "zero_point", f"quant_min..quant_max, {low}..{high}", zero_point)
    if node.op in _NEEDS_ZERO_POINT:
        for slot, value in enumerate(inputs):
            if value.dtype == "u8" and value.zero_point is None:
                refuse("E_QPARAM", f"inputs[{slot}]", "a value with one scale and zero_point", "one per channel")
    kept = [(value.scale, value.zero_point) for value in inputs]
    # A part of a concatenation may have one scale where the whole has none.
    keeps = node.op in _KEEPS_CODES or (node.op == "slice" and inputs[0].scale is not None)
    if (keeps or (node.op == "concat" and scale is not None)) and set(kept) != {(scale, zero_point)}:
        refuse("E_QPARAM", "scale", f"scale and zero_point of the input, {kept[0]}", (scale, zero_point))


def _check_scale(scale: object, zero_point: object) -> None:
    positive = type(scale) is float and is_float32(scale) and 2.0**-126 <= scale <= MAX_MULTIPLIER
    if not positive:
        refuse("E_QPARAM", "scale", "a positive normal float32 number of at most 2^64", repr(scale))
    if type(zero_point) is not int or not 0 <= zero_point <= 255:
        refuse("E_QPARAM", "zero_point", "an integer in 0..255", repr(zero_point))


def _check_activation_bytes(graph: Graph, limit: int) -> None:
    """The most bytes of values that are alive at once, on the way from node to node."""
    values = [graph.input, *(node.value for node in graph.nodes)]
    sizes = [math.prod(value.shape) * (4 if value.dtype == "f32" else 1) for value in values]
    last_use = {index: index for index in range(len(values))}
    for index, node in enumerate(graph.nodes):
        last_use.update((reference, index + 1) for reference in node.inputs)
    ending: dict[int, list[int]] = {}
    for value, last in last_use.items():
        ending.setdefault(last, []).append(value)
    alive = sizes[0]
    for index in range(1, len(values)):
        alive += sizes[index]
        if alive > limit:
            expected = f"at most {limit} bytes of activations at once (max_decoded_bytes raises it)"
            refuse("E_BOMB", f"nodes[{index - 1}].shape", expected, alive)
        alive -= sum(sizes[value] for value in ending.get(index, []))


def _check_tensor_values(node: Node) -> None:
    for name, limit in (("multiplier", MAX_MULTIPLIER), ("bias", MAX_BIAS)):
        if name in node.tensors:
            _check_bounded(node.tensors[name], name, limit)
    if "codebook" in node.tensors:
        _check_codebook(node.tensors["codebook"], node.tensors["weight"], node.attributes["zero"])
    elif "weight" in node.tensors:
        _check_accumulator(node.tensors["weight"])


def _check_bounded(tensor: NDArray[np.generic], name: str, limit: float) -> None:
    with np.errstate(invalid="ignore"):  # a signalling NaN
        fits = np.abs(tensor.astype(np.float64)) <= limit
    if not fits.all():
        channel = int(np.argmin(fits))
        refuse("E_QPARAM", f"{name}[{channel}]", f"a finite number of at most {limit:.3g}", tensor[channel])


def _check_accumulator(weight: NDArray[np.generic]) -> None:
    """|x - zero_point| <= 255, so that every partial sum of a channel lies within int32."""
    if weight.min() == -128:
        refuse("E_VALUE_RANGE", f"weight[{int(weight.argmin())}]", "codes from -127 to 127", -128)
    channels = weight.reshape(weight.shape[0], -1)
    if channels.shape[1] * 127 * 255 < 2**31:
        return
    for channel, row in enumerate(channels):
        bound = int(np.abs(row, dtype=np.int16).sum(dtype=np.int64)) * 255
        if bound >= 2**31:
            refuse("E_QPARAM", f"weight[{channel}]", "sum |weight| * 255 < 2^31 in a channel", bound)


def _check_codebook(codebook: NDArray[np.generic], weight: NDArray[np.generic], zero: int) -> None:
    _check_bounded(codebook, "codebook", MAX_MULTIPLIER)
    falls = np.flatnonzero(codebook[1:] < codebook[:-1])  # type: ignore[operator]  # float32, as checked before
    if falls.size:
        at = int(falls[0]) + 1
        refuse("E_QPARAM", f"codebook[{at}]", f"at least {codebook[at - 1]}, the entry before", codebook[at])
    last = len(codebook) - 1 - zero
    if int(weight.min()) < -zero or int(weight.max()) > last:
        codes = weight.reshape(-1).astype(np.int16)
        at = int(np.argmax((codes < -zero) | (codes > last)))
        refuse("E_VALUE_RANGE", f"weight[{at}]", f"codes of the codebook, {-zero}..{last}", codes[at])
