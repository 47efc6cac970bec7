"""The graph as JSON (``FORMAT.md``, "Metadata"): everything but the contents of tensors.

A weight's codec, shape and bits stand in its node; all other tensors follow from the operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pqk_ext import _core
from pqk_ext.errors import refuse
from pqk_ext.runtime import compact_form, strict_json
from pqk_ext.runtime.checks import check_shape, inside
from pqk_ext.runtime.graph import FLOAT_OPS, OPS, Attribute, Graph, Node, OpSchema, Value
from pqk_ext.runtime.shapes import MAX_CODEBOOK
from pqk_ext.runtime.strict_json import Json

__all__ = [
    "CODECS",
    "FEATURES",
    "VERSION",
    "Metadata",
    "WeightRecord",
    "dump_graph",
    "dump_version",
    "load",
    "value_bits",
]

#: Of files that need no feature, and of those that need some.
VERSION, FEATURE_VERSION = (1, 0), (1, 1)
#: Names of the weight codecs.
CODECS: tuple[str, ...] = tuple(_core.codec_names())
_CODEC_FEATURES = _core.codec_features()
#: What files may require: operators or codecs that version 1.0 had not.
FEATURES: tuple[str, ...] = tuple(
    sorted({"compact", "dilate", "float-codebook", "half-affine", "sequence-input", *_CODEC_FEATURES.values()})
)

# What is left out of a node; a float has no default.
_DEFAULTS: dict[str, int | list[int]] = {
    "stride": [1, 1],
    "padding": [0, 0, 0, 0],
    "dilation": [1, 1],
    "groups": 1,
    "count_include_pad": 1,
    "quant_min": 0,
    "quant_max": 255,
    "start": [0, 0, 0],
    "step": [1, 1, 1],
    "before": [0, 0, 0],
    "after": [0, 0, 0],
}
# Operators of version 1.0 that it had for codes only, and those like them.
_MOVES = ("concat", "slice", "pad", "dilate")
_NODE_KEYS = {"op", "name", "inputs", "shape", "dtype", "scale", "zero_point", "weight"}
_GRAPH_KEYS = {"input", "nodes"}
_DTYPES = {"u8": np.uint8, "i8": np.int8, "f32": np.float32}


def value_bits(weight: NDArray[np.int8], *, codes: bool = False) -> int:
    """The smallest width b, 2..8, whose range -(2^(b-1) - 1)..2^(b-1) - 1 holds all values.

    ``codes`` of a codebook need not be symmetric: theirs begins at -2^(b-1).
    """
    largest = max(int(weight.max(initial=0)), -int(weight.min(initial=0)) - codes)
    return min(8, max(2, largest.bit_length() + 1))


@dataclass(frozen=True)
class WeightRecord:
    """How one weight tensor is coded.

    Attributes:
        codec: one of :data:`CODECS`.
        shape: of the weight.
        bits: see :func:`value_bits`.
        codebook: number of entries, where values are codes of a codebook.
        payload_bytes: size of the payload, where the graph says it: in the compact form, but for codec ``raw``.
    """

    codec: str
    shape: tuple[int, ...]
    bits: int
    codebook: int | None = None
    payload_bytes: int | None = None

    @property
    def value_range(self) -> tuple[int, int]:
        """The least and the largest value that ``bits`` allow."""
        largest = 2 ** (self.bits - 1) - 1
        return -largest - (self.codebook is not None), largest

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Metadata:
    """A graph whose tensors have shapes and dtypes but no contents yet, and how they are coded."""

    graph: Graph
    weights: dict[int, WeightRecord]  # by node
    half_affine: bool  # multipliers and biases are float16 in the file
    compact: bool  # the container has one tensor for all
    version: tuple[int, int]


def dump_graph(graph: Graph, weights: Mapping[int, WeightRecord]) -> dict[str, Json]:
    """The part of the metadata that describes the graph; equal graphs give equal results."""
    nodes: list[Json] = [_dump_node(node, index, weights.get(index)) for index, node in enumerate(graph.nodes)]
    return {"input": list(graph.input.shape), "nodes": nodes}


def dump_version(
    graph: Graph, weights: Mapping[int, WeightRecord], *, half_affine: bool, compact: bool
) -> dict[str, Json]:
    """The other part: the version, and the features that the file needs."""
    features = _required_features(graph, weights, half_affine, compact)
    if not features:
        return {"version": list(VERSION)}
    return {"required_features": list(features), "version": list(FEATURE_VERSION)}


def _required_features(
    graph: Graph, weights: Mapping[int, WeightRecord], half_affine: bool, compact: bool
) -> list[str]:
    """The features that a file of this graph needs, sorted."""
    features = {"compact"} if compact else set()
    features |= {_CODEC_FEATURES[weight.codec] for weight in weights.values() if weight.codec in _CODEC_FEATURES}
    for node in graph.nodes:
        if node.op in FLOAT_OPS or (node.op in _MOVES and node.value.dtype == "f32"):
            features.add("float-codebook")
        if node.op == "dilate":
            features.add("dilate")
    if graph.sequence:
        features.add("sequence-input")
    if half_affine and any("multiplier" in node.tensors for node in graph.nodes):
        features.add("half-affine")
    return sorted(features)


def _dump_node(node: Node, index: int, weight: WeightRecord | None) -> dict[str, Json]:
    fields: dict[str, Json] = {"op": node.op, "name": node.name, "shape": list(node.value.shape)}
    if node.inputs != (index,):
        fields["inputs"] = list(node.inputs)
    if node.value.dtype != _default_dtype(node.op):
        fields["dtype"] = node.value.dtype
    if node.value.scale is not None:
        fields["scale"] = node.value.scale
        if node.value.zero_point != 0:
            fields["zero_point"] = node.value.zero_point
    for name, value in node.attributes.items():
        if _DEFAULTS.get(name) != value:
            fields[name] = list(value) if isinstance(value, list) else value
    if weight is not None:
        record: dict[str, Json] = {"codec": weight.codec, "shape": list(weight.shape)}
        if weight.bits != 8:
            record["bits"] = weight.bits
        if weight.codebook is not None:
            record["codebook"] = weight.codebook
        if weight.payload_bytes is not None:
            record["bytes"] = weight.payload_bytes
        fields["weight"] = record
    return fields


def load(text: str, deflated_graph: bytes | None = None) -> Metadata:
    """Checks the metadata's form; the graph's own rules are for :mod:`pqk_ext.runtime.checks`.

    Args:
        text: the metadata.
        deflated_graph: the container's tensor ``graph``, if there is one.

    Raises:
        FormatError: naming the rule, the field, what was expected and what came.
    """
    root = _parse_object(text.encode("utf-8"), "metadata")
    version = _load_version(root.pop("version", None))
    features = _load_features(root.pop("required_features", []))
    for key in [key for key in root if key.startswith("ext.")]:
        del root[key]
    is_compact, half_affine = "compact" in features, "half-affine" in features
    _check_keys(root, {"digest"} | (set() if is_compact else _GRAPH_KEYS), set(), "metadata")
    if not isinstance(root["digest"], str) or len(root["digest"]) != 64:
        refuse("E_HEADER", "digest", "64 hexadecimal digits", repr(root["digest"]))
    if is_compact:
        root = _inflate_graph(deflated_graph)
    graph, weights = _load_graph(root, is_compact)
    used = _required_features(graph, weights, half_affine, is_compact)
    if features != used:
        refuse("E_FEATURE", "required_features", f"what the file uses, {used}", features)
    return Metadata(graph, weights, half_affine, is_compact, version)


def _parse_object(text: bytes, field: str) -> dict[str, Json]:
    root = strict_json.parse(text, field)
    if not isinstance(root, dict):
        refuse("E_HEADER", field, "an object", type(root).__name__)
    return root


def _inflate_graph(deflated: bytes | None) -> dict[str, Json]:
    if deflated is None:
        refuse("E_GRAPH_REF", f"tensors[{compact_form.GRAPH!r}]", "a tensor in the container", "none")
    root = _parse_object(compact_form.inflate(deflated), "graph")
    _check_keys(root, _GRAPH_KEYS, set(), "graph")
    return root


def _load_graph(root: dict[str, Json], is_compact: bool) -> tuple[Graph, dict[int, WeightRecord]]:
    nodes = root["nodes"]
    if not isinstance(nodes, list):
        refuse("E_HEADER", "nodes", "a list", type(nodes).__name__)
    loaded: list[Node] = []
    weights: dict[int, WeightRecord] = {}
    for index, fields in enumerate(nodes):
        with inside(f"nodes[{index}]"):
            node, weight = _load_node(fields, index, is_compact)
        loaded.append(node)
        if weight is not None:
            weights[index] = weight
    return Graph(Value(_shape(root["input"], "input"), "f32"), tuple(loaded)), weights


def _load_version(version: Json) -> tuple[int, int]:
    match version:
        case [int(major), int(minor)] if type(major) is int and type(minor) is int and minor >= 0:
            known = major == VERSION[0]
        case _:
            known = False
    if not known:
        refuse("E_VERSION", "version", f"[{VERSION[0]}, any], as this release reads", strict_json.canonical(version))
    return major, minor


def _load_features(features: Json) -> list[str]:
    if not isinstance(features, list) or not all(isinstance(feature, str) for feature in features):
        refuse("E_HEADER", "required_features", "a list of names", strict_json.canonical(features))
    names = [str(feature) for feature in features]
    for name in names:
        if name not in FEATURES:
            expected = f"only features that this release knows ({', '.join(FEATURES)})"
            refuse("E_FEATURE", "required_features", expected, repr(name))
    return names


def _check_keys(fields: dict[str, Json], required: set[str], optional: set[str], owner: str) -> None:
    for key in fields:
        if key not in required and key not in optional:
            refuse("E_HEADER", owner, "known keys only", repr(key))
    for key in sorted(required - set(fields)):
        refuse("E_HEADER", owner, f"the key {key}", "none")


def _shape(value: Json, field: str) -> tuple[int, ...]:
    """Form only: a list; its entries are judged by checks.check_shape."""
    if not isinstance(value, list):
        refuse("E_SHAPE", field, "a list of sizes", repr(value))
    return tuple(value)  # type: ignore[arg-type]


def _load_node(fields: Json, index: int, is_compact: bool) -> tuple[Node, WeightRecord | None]:
    if not isinstance(fields, dict):
        refuse("E_HEADER", "node", "an object", type(fields).__name__)
    op = fields.get("op")
    if not isinstance(op, str) or op not in OPS:
        refuse("E_ENUM", "op", f"one of {', '.join(OPS)}", repr(op))
    schema = OPS[op]
    coded = {"weight"} if "weight" in schema.tensors else set()
    _check_keys(fields, {"op", "name", "shape"} | coded, _NODE_KEYS - {"weight"} | set(schema.attributes), "node")
    inputs = fields.get("inputs", [index])
    if not isinstance(inputs, list):
        refuse("E_GRAPH_REF", "inputs", "a list of values", repr(inputs))
    value = _load_value(fields, op)
    weight = _load_weight(fields["weight"], "codebook" in schema.tensors, is_compact) if coded else None
    node = Node(
        op,
        fields["name"],  # type: ignore[arg-type]  # judged by checks.check_name
        tuple(inputs),  # type: ignore[arg-type]  # judged by checks
        value,
        _load_attributes(fields, schema, op, value.dtype),
        _placeholders(schema, value.shape, weight),
    )
    return node, weight


def _default_dtype(op: str) -> str:
    return "f32" if op in FLOAT_OPS else "u8"


def _load_value(fields: dict[str, Json], op: str) -> Value:
    """dtype, scale and zero_point are judged by checks."""
    scale = fields.get("scale")
    if "scale" in fields and scale is None:
        refuse("E_QPARAM", "scale", "a number", "null")
    if scale is None and "zero_point" in fields:
        refuse("E_QPARAM", "zero_point", "none without a scale", repr(fields["zero_point"]))
    zero_point = None if scale is None else fields.get("zero_point", 0)
    dtype = fields.get("dtype", _default_dtype(op))
    return Value(_shape(fields["shape"], "shape"), dtype, scale, zero_point)  # type: ignore[arg-type]


def _load_attributes(fields: dict[str, Json], schema: OpSchema, op: str, dtype: str) -> dict[str, Attribute]:
    """Values are judged by checks; here, defaults are filled in."""
    attributes: dict[str, Attribute] = {}
    for name in schema.attributes:
        if name in fields:
            attributes[name] = fields[name]
        elif name in _DEFAULTS and not (name in schema.optional and dtype == "f32"):
            default = _DEFAULTS[name]
            attributes[name] = list(default) if isinstance(default, list) else default
    return attributes


def _load_weight(record: Json, with_codebook: bool, is_compact: bool) -> WeightRecord:
    if not isinstance(record, dict):
        refuse("E_HEADER", "weight", "an object", type(record).__name__)
    sized = is_compact and record.get("codec") != "raw"
    required = {"codec", "shape"} | ({"codebook"} if with_codebook else set()) | ({"bytes"} if sized else set())
    _check_keys(record, required, {"bits"}, "weight")
    codec, bits = record["codec"], record.get("bits", 8)
    if not isinstance(codec, str) or codec not in CODECS:
        refuse("E_ENUM", "weight.codec", f"one of {', '.join(CODECS)}", repr(codec))
    if type(bits) is not int or not 2 <= bits <= 8:
        refuse("E_QPARAM", "weight.bits", "an integer in 2..8", repr(bits))
    shape = _shape(record["shape"], "weight.shape")
    check_shape(shape, "weight.shape", (2, 4))
    codebook = record.get("codebook")
    if with_codebook and (type(codebook) is not int or not 1 <= codebook <= MAX_CODEBOOK):
        refuse("E_GRAPH_SHAPE", "weight.codebook", f"1 to {MAX_CODEBOOK} entries", repr(codebook))
    payload_bytes = record.get("bytes")
    if sized and (type(payload_bytes) is not int or not 0 <= payload_bytes <= 2**40):
        refuse("E_SIZE_MISMATCH", "weight.bytes", "an integer in 0..2^40", repr(payload_bytes))
    return WeightRecord(codec, shape, bits, codebook, payload_bytes)  # type: ignore[arg-type]  # integers or absent


def _placeholders(
    schema: OpSchema, shape: tuple[int, ...], weight: WeightRecord | None
) -> dict[str, NDArray[np.generic]]:
    """Tensors of the right dtype and shape that take no memory: every element is the same one."""
    check_shape(shape, "shape", (1, 3))
    tensors = {}
    for name, dtype in schema.tensors.items():
        size: tuple[int, ...] = (256,) if name == "table" else (shape[0],)
        if name == "weight":
            assert weight is not None
            size = weight.shape
        elif name == "codebook":
            assert weight is not None
            assert weight.codebook is not None
            size = (weight.codebook,)
        tensors[name] = np.broadcast_to(np.zeros((), _DTYPES[dtype]), size)
    return tensors
