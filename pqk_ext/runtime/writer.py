"""Writing of ``.pqk`` files: a codec for each weight, and a file that is whole or not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pqk_ext import _core
from pqk_ext.runtime import checks, compact_form, container, metadata, reader, strict_json
from pqk_ext.runtime.graph import Graph, Node
from pqk_ext.runtime.metadata import CODECS, WeightRecord, value_bits
from pqk_ext.runtime.replace import replace_file

__all__ = ["SPEED_TOLERANCE", "dumps", "write"]

#: How much longer than the shortest a weight's payload may be, as a share of it, to be decoded faster.
SPEED_TOLERANCE = 0.02

_Tensors: TypeAlias = dict[str, NDArray[np.generic]]


def _encode_weight(
    weight: NDArray[np.int8], codebook: int | None, codec: str | None, speed_tolerance: float
) -> tuple[WeightRecord, NDArray[np.generic]]:
    flat = np.ascontiguousarray(weight)
    rows = weight.shape[0]
    name = codec or _core.choose_codec(flat, rows, speed_tolerance)
    record = WeightRecord(name, weight.shape, value_bits(weight, codes=codebook is not None), codebook)
    if name == "raw":  # stored as what it is
        return record, flat
    payload = np.frombuffer(_core.encode_weight(name, flat, rows), np.uint8)
    return replace(record, payload_bytes=payload.size), payload


def _fits_half(graph: Graph) -> bool:
    """Whether float16 holds every multiplier and bias exactly."""
    parts = [node.tensors[name] for node in graph.nodes for name in ("multiplier", "bias") if name in node.tensors]
    with np.errstate(over="ignore"):
        return bool(parts) and all(np.array_equal(part.astype(np.float16), part) for part in parts)


def _encode_node(
    node: Node, codec: str | None, speed_tolerance: float, half_affine: bool
) -> tuple[WeightRecord | None, _Tensors]:
    """The tensors of a node as the container holds them, by the part of their name after the node's index."""
    tensors: _Tensors = {}
    record = None
    if "weight" in node.tensors:
        weight: NDArray[np.int8] = node.tensors["weight"]  # type: ignore[assignment]  # checked
        codebook = len(node.tensors["codebook"]) if "codebook" in node.tensors else None
        record, tensors["weight"] = _encode_weight(weight, codebook, codec, speed_tolerance)
    if "multiplier" in node.tensors:
        affine = np.stack([node.tensors["multiplier"], node.tensors["bias"]])
        tensors["affine"] = affine.astype(np.float16) if half_affine else affine
    for name in ("codebook", "zero_point", "table"):
        if name in node.tensors:
            tensors[name] = np.ascontiguousarray(node.tensors[name])
    return record, tensors


def dumps(
    graph: Graph, *, codec: str | None = None, speed_tolerance: float = SPEED_TOLERANCE, compact: bool = True
) -> bytes:
    """The bytes of the file that :func:`write` writes; equal graphs give equal bytes.

    Args:
        graph: what to store.
        codec: one of :data:`CODECS` for every weight, or None for the best for each.
        speed_tolerance: where ``codec`` is None, how much longer than the shortest a weight's payload may be, as a
            share of it, to be decoded faster. 0 gives the smallest file. (Lengths are computed from the values
            before anything is encoded, those of interleaved streams to within 0.2 %.)
        compact: the graph deflated and all tensors in one, which saves 7 kB in a network of 20 layers; else the graph
            is plain JSON, and every tensor can be had by its name with any tool for safetensors.

    Raises:
        FormatError: the graph breaks a rule of the format.
        ValueError: unknown ``codec``, or a negative ``speed_tolerance``.
    """
    if codec is not None and codec not in CODECS:
        raise ValueError(f"codec must be None or one of {', '.join(CODECS)}, got {codec!r}")
    checks.check_structure(graph, reader.MAX_DECODED_BYTES)
    checks.check_values(graph)
    weights: dict[int, WeightRecord] = {}
    tensors: _Tensors = {}
    half_affine = _fits_half(graph)
    for index, node in enumerate(graph.nodes):
        record, parts = _encode_node(node, codec, speed_tolerance, half_affine)
        if record is not None:
            weights[index] = record
        tensors.update((f"{index}.{name}", part) for name, part in parts.items())
    data = _pack(graph, weights, tensors, half_affine=half_affine, is_compact=compact)
    reader.loads(data)
    return data


def _pack(
    graph: Graph, weights: Mapping[int, WeightRecord], tensors: _Tensors, *, half_affine: bool, is_compact: bool
) -> bytes:
    text = strict_json.canonical(metadata.dump_graph(graph, weights))
    stream = compact_form.deflate(text) if is_compact else None
    version = metadata.dump_version(graph, weights, half_affine=half_affine, compact=stream is not None)
    if stream is not None:
        return container.pack(version, {compact_form.DATA: compact_form.join(tensors), compact_form.GRAPH: stream})
    plain = {index: replace(record, payload_bytes=None) for index, record in weights.items()}
    return container.pack({**metadata.dump_graph(graph, plain), **version}, tensors)


def write(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    codec: str | None = None,
    speed_tolerance: float = SPEED_TOLERANCE,
    compact: bool = True,
) -> None:
    """Writes a graph. The file appears whole or not at all; one already there is replaced only by a whole one.

    Args:
        graph: what to store.
        path: the file.
        codec: one of :data:`CODECS` for every weight, or None for the best for each.
        speed_tolerance: where ``codec`` is None, how much longer than the shortest a weight's payload may be, as a
            share of it, to be decoded faster. 0 gives the smallest file. (Lengths are computed from the values
            before anything is encoded, those of interleaved streams to within 0.2 %.)
        compact: the graph deflated and all tensors in one, which saves 7 kB in a network of 20 layers; else the graph
            is plain JSON, and every tensor can be had by its name with any tool for safetensors.

    Raises:
        FormatError: the graph breaks a rule of the format.
        OSError: the file cannot be written; nothing is left behind.
        ValueError: unknown ``codec``, or a negative ``speed_tolerance``.
    """
    data = dumps(graph, codec=codec, speed_tolerance=speed_tolerance, compact=compact)
    target = os.fspath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        raise OSError(errno.EINVAL, "cannot replace what is not a regular file", target)
    try:
        replace_file(target, data)
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", target) from error
