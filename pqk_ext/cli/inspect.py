"""``pqk inspect``: what a file computes, and where its bytes go."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from pqk_ext.cli.failures import reading
from pqk_ext.cli.options import JsonPath, Network
from pqk_ext.cli.output import check_json, emit, table

if TYPE_CHECKING:
    from pqk_ext.runtime.format import FileInfo, TensorInfo
    from pqk_ext.runtime.graph import Graph


def inspect(file: Network, json: JsonPath = None) -> None:
    """Show the graph of a file, and codec, bytes and entropy of each tensor. Needs no torch."""
    from pqk_ext.runtime import format

    check_json(json)
    with reading(file):
        graph, info = format.read(file), format.inspect(file)
    emit(_values(graph, info), json, _graph_table(graph), _tensor_table(info), _summary(info))


def _values(graph: Graph, info: FileInfo) -> dict[str, Any]:
    nodes = [
        {
            "op": node.op,
            "name": node.name,
            "inputs": list(node.inputs),
            "shape": list(node.value.shape),
            "dtype": node.value.dtype,
            "attributes": node.attributes,
        }
        for node in graph.nodes
    ]
    return {
        "version": list(info.version),
        "sha256": info.sha256,
        "digest": info.digest,
        "total_bytes": info.total_bytes,
        "header_bytes": info.header_bytes,
        "metadata_bytes": info.metadata_bytes,
        "input_shape": list(graph.input.shape),
        "nodes": nodes,
        "tensors": [dataclasses.asdict(t) | {"sparsity": t.sparsity} for t in info.tensors],
    }


def _graph_table(graph: Graph) -> Any:
    columns = (">", "op", "name", ">inputs", ">output", "type", "attributes")
    rows: list[tuple[object, ...]] = [(0, "input", "", "", _shape(graph.input.shape), graph.input.dtype, "")]
    for number, node in enumerate(graph.nodes, 1):
        attributes = ", ".join(f"{name}={_short(value)}" for name, value in node.attributes.items())
        inputs = ", ".join(map(str, node.inputs))
        rows.append((number, node.op, node.name, inputs, _shape(node.value.shape), node.value.dtype, attributes))
    return table("Graph (shapes without the batch)", columns, rows)


def _tensor_table(info: FileInfo) -> Any:
    columns = ("tensor", "node", ">shape", "type", "codec", ">zeros", ">bytes", ">bits/value", ">entropy")
    return table("Tensors (entropy of single values, in bits)", columns, [_tensor_row(t) for t in info.tensors])


def _tensor_row(tensor: TensorInfo) -> tuple[object, ...]:
    return (
        tensor.name,
        tensor.node,
        _shape(tensor.shape),
        tensor.dtype,
        tensor.codec,
        f"{tensor.sparsity:.1%}",
        tensor.payload_bytes,
        f"{tensor.bits_per_value:.2f}",
        f"{tensor.entropy_bits:.2f}" if tensor.dtype != "f32" else "",
    )


def _summary(info: FileInfo) -> str:
    weights = info.weights
    count = sum(t.count for t in weights)
    zeros = count - sum(t.nonzeros for t in weights)
    share = zeros / count if count else 0.0
    coded = sum(t.payload_bytes for t in weights)
    return (
        f"{info.total_bytes} bytes: header {info.header_bytes}, weights {coded} "
        f"({count} values, {share:.1%} zeros), other tensors {info.total_bytes - info.header_bytes - coded}\n"
        f"SHA-256 {info.sha256}"
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "")
