"""``pqk inspect``: what a file computes, and where its bytes go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pqk_ext.cli.failures import reading
from pqk_ext.cli.options import JsonPath, Network
from pqk_ext.cli.output import check_json, emit, table

if TYPE_CHECKING:
    from pqk_ext.runtime.format import FileInfo, LayerInfo, TensorInfo
    from pqk_ext.runtime.graph import Graph

Rivals = Annotated[
    bool,
    typer.Option(
        "--rivals",
        help="Also compress the same weights otherwise: gzip, xz, zstd (where the package zstandard is installed), "
        "float32 safetensors and the layouts of the literature. May take seconds a million weights.",
    ),
]


def inspect(file: Network, rivals: Rivals = False, json: JsonPath = None) -> None:
    """Show the graph of a file, and where its bytes go: for each layer, tensor and purpose, beside the entropy.

    Needs no torch.
    """
    from pqk_ext.runtime import format

    check_json(json)
    with reading(file):
        graph, info = format.read(file), format.inspect(file)
    values = _values(graph, info)
    shown = [_graph_table(graph), _tensor_table(info), _layer_table(info), _parts_table(info)]
    if rivals:
        values["rivals"] = _rivals(graph, info)
        shown.append(_rivals_table(info, values["rivals"]))
    emit(values, json, *shown, *([_NO_ZSTD] if rivals and not _has_zstd() else []), _summary(info))


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
        "parts": info.parts,
        "input_shape": list(graph.input.shape),
        "nodes": nodes,
        "layers": [
            {"node": layer.node, "name": layer.name, "total_bytes": layer.total_bytes, "parts": layer.parts}
            for layer in info.layers
        ],
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
        f"{tensor.entropy_bits:.2f}" if tensor.dtype[0] != "f" else "",
    )


_SMALL_PARTS = ("tables", "chunks", "header")


def _layer_table(info: FileInfo) -> Any:
    """Bits a weight on each purpose; what belongs to no layer is in the table of parts."""
    columns = (
        "layer",
        ">shape",
        ">density",
        ">bits",
        "codec",
        ">bytes",
        ">bound",
        ">values",
        ">indices",
        ">tables",
        ">codebook",
        ">scales",
        ">total",
    )
    rows = [_layer_row(layer) for layer in info.layers]
    if info.layers:
        rows.append(_all_layers_row(info))
    title = "Layers (bound: entropy of mask and values in bytes; from values on: bits in the file a weight)"
    return table(title, columns, rows)


def _layer_row(layer: LayerInfo) -> tuple[object, ...]:
    weight = layer.weight
    head = (layer.name, _shape(weight.shape), f"{weight.density:.1%}", weight.bits, weight.codec)
    return (*head, layer.total_bytes, f"{weight.bound_bytes:.0f}", *_bits_a_weight(layer.parts, weight.count))


def _all_layers_row(info: FileInfo) -> tuple[object, ...]:
    weights = info.weights
    count = sum(weight.count for weight in weights)
    density = sum(weight.nonzeros for weight in weights) / count
    bound = sum(weight.bound_bytes for weight in weights)
    parts = {name: sum(layer.parts[name] for layer in info.layers) for name in info.layers[0].parts}
    head = ("all layers", count, f"{density:.1%}", "", "")
    return (*head, sum(parts.values()), f"{bound:.0f}", *_bits_a_weight(parts, count))


def _bits_a_weight(parts: Mapping[str, int], count: int) -> list[str]:
    shown = [
        parts["values"],
        parts["indices"],
        sum(parts[name] for name in _SMALL_PARTS),
        parts["codebook"],
        parts["scales"],
        sum(parts.values()),
    ]
    return [f"{8 * size / count:.3f}" for size in shown]


def _parts_table(info: FileInfo) -> Any:
    count = sum(weight.count for weight in info.weights)
    rows = [(name, size, *_shares(size, info.total_bytes, count)) for name, size in info.parts.items() if size]
    rows.append(("file", info.total_bytes, *_shares(info.total_bytes, info.total_bytes, count)))
    return table("The whole file", ("part", ">bytes", ">share", ">bits/weight"), rows)


def _shares(size: int, total: int, count: int) -> tuple[str, str]:
    return f"{size / total:.1%}", f"{8 * size / count:.3f}" if count else ""


_NO_ZSTD = "No zstd -19: the package zstandard is not installed."


def _has_zstd() -> bool:
    from pqk_ext.rivals import has_zstd

    return has_zstd()


def _rivals(graph: Graph, info: FileInfo) -> list[dict[str, Any]]:
    """Bytes of each weight in other forms, in the order of the layers."""
    from pqk_ext.rivals import rival_bytes

    weights: Iterable[Any] = (graph.nodes[layer.node].tensors["weight"] for layer in info.layers)
    return [
        {"node": layer.node, "name": layer.name, "here": layer.weight.payload_bytes, **rival_bytes(weight)}
        for layer, weight in zip(info.layers, weights, strict=True)
    ]


def _rivals_table(info: FileInfo, found: list[dict[str, Any]]) -> Any:
    names = [name for name in found[0] if name not in ("node", "name")] if found else []
    rows = [(each["name"], *(each[name] for name in names)) for each in found]
    if found:
        rows.append(("all layers", *(sum(each[name] for each in found) for name in names)))
    return table("The same weights elsewhere, in bytes", ("layer", *(f">{name}" for name in names)), rows)


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
