"""What a ``.pqk`` file is made of, byte by byte."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pqk_ext import _core
from pqk_ext.runtime import container, entropy, reader
from pqk_ext.runtime.graph import Graph
from pqk_ext.runtime.metadata import WeightRecord

__all__ = ["PARTS", "FileInfo", "LayerInfo", "TensorInfo", "inspect"]

#: What bytes of a file are for: non-zero weights (codes for them); their positions; code lengths; where parts of
#: streams begin; counts and widths of a payload; values that codes stand for; multipliers and biases; tables of other
#: operators; the file's own header with the graph.
PARTS = ("values", "indices", "tables", "chunks", "header", "codebook", "scales", "maps", "file header")
_OF_A_TENSOR = {"affine": "scales", "codebook": "codebook"}


def _sum(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = dict.fromkeys(PARTS, 0)
    for each in parts:
        for name, size in each.items():
            total[name] += size
    return total


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        name: ``"<node index>.<tensor>"``.
        node: the node's own name.
        shape: of the decoded tensor.
        dtype: ``"i8"``, ``"u8"``, ``"f16"`` or ``"f32"``.
        codec: of a weight; ``"raw"`` for all other tensors.
        count: number of elements.
        nonzeros: how many of them are not 0.
        bits: width that the values need (2..8 for a weight).
        payload_bytes: size in the file.
        entropy_bits: order-0 entropy of the values in bits per element, the least that a code of single values can
            reach, without its table. Zeros coded by their positions and non-zeros alone have the same bound.
        mask_bits: the part of it that the positions of the non-zeros take, in bits per element.
        parts: name in :data:`PARTS` -> bytes; ``payload_bytes`` together.
    """

    name: str
    node: str
    shape: tuple[int, ...]
    dtype: str
    codec: str
    count: int
    nonzeros: int
    bits: int
    payload_bytes: int
    entropy_bits: float
    mask_bits: float
    parts: dict[str, int]

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1.0 - self.nonzeros / self.count

    @property
    def density(self) -> float:
        """Share of non-zeros."""
        return self.nonzeros / self.count

    @property
    def bits_per_value(self) -> float:
        """Bits in the file per element."""
        return 8.0 * self.payload_bytes / self.count

    @property
    def bound_bytes(self) -> float:
        """``entropy_bits`` of all elements, in bytes."""
        return self.entropy_bits * self.count / 8


@dataclass(frozen=True)
class LayerInfo:
    """A node with weights.

    Attributes:
        node: index of the node.
        name: the node's own name.
        weight: its weight tensor.
        parts: name in :data:`PARTS` -> bytes, of all tensors of the node.
    """

    node: int
    name: str
    weight: TensorInfo
    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """All tensors of the node."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class FileInfo:
    """A whole file; ``total_bytes`` is ``header_bytes`` plus the payloads of ``tensors``, and the sum of ``parts``.

    Attributes:
        version: major and minor version of the format.
        digest: SHA-256 that the file carries.
        sha256: SHA-256 of the file as ``sha256sum`` prints it.
        total_bytes: size of the file.
        header_bytes: container header with the metadata, and the deflated graph of a compact file.
        metadata_bytes: the metadata alone, as text.
        nodes: number of nodes of the graph.
        tensors: every tensor, in the order of the nodes.
    """

    version: tuple[int, int]
    digest: str
    sha256: str
    total_bytes: int
    header_bytes: int
    metadata_bytes: int
    nodes: int
    tensors: tuple[TensorInfo, ...]

    @property
    def weights(self) -> tuple[TensorInfo, ...]:
        """The coded tensors alone."""
        return tuple(tensor for tensor in self.tensors if tensor.name.endswith(".weight"))

    @property
    def parts(self) -> dict[str, int]:
        """Name in :data:`PARTS` -> bytes of the file."""
        return _sum([{"file header": self.header_bytes}, *(tensor.parts for tensor in self.tensors)])

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """Every node with weights, in the order of the nodes."""
        layers = []
        for index, group in itertools.groupby(self.tensors, lambda tensor: int(tensor.name.split(".")[0])):
            tensors = list(group)
            weight = next((tensor for tensor in tensors if tensor.name.endswith(".weight")), None)
            if weight is not None:
                layers.append(LayerInfo(index, weight.node, weight, _sum(tensor.parts for tensor in tensors)))
        return tuple(layers)


def _decoded(graph: Graph, key: str) -> NDArray[np.generic]:
    index, name = key.split(".")
    tensors = graph.nodes[int(index)].tensors
    return np.stack([tensors["multiplier"], tensors["bias"]]) if name == "affine" else tensors[name]


def _tensor(
    key: str,
    node: str,
    values: NDArray[np.generic],
    record: WeightRecord | None,
    stored: NDArray[np.generic],
) -> TensorInfo:
    is_float = stored.dtype.kind == "f"
    width = 8 * stored.dtype.itemsize
    bound = entropy.bound(values)
    if record is None:
        parts = {_OF_A_TENSOR.get(key.split(".")[1], "maps"): stored.nbytes}
    else:
        payload = stored.reshape(-1).view(np.uint8)
        parts = _core.payload_parts(record.codec, payload, values.size, values.shape[0], key)
    return TensorInfo(
        name=key,
        node=node,
        shape=tuple(values.shape),
        dtype=f"f{width}" if is_float else "u8" if record is None else "i8",
        codec="raw" if record is None else record.codec,
        count=math.prod(values.shape),
        nonzeros=int(np.count_nonzero(values)),
        bits=record.bits if record else width,
        payload_bytes=stored.nbytes,
        entropy_bits=float(width) if is_float else bound.bits / values.size,
        mask_bits=0.0 if is_float else bound.mask / values.size,
        parts=parts,
    )


def inspect(path: str | os.PathLike[str], *, max_decoded_bytes: int = reader.MAX_DECODED_BYTES) -> FileInfo:
    """Reads and checks a file and says where its bytes go.

    Args:
        path: a ``.pqk`` file.
        max_decoded_bytes: as in :func:`~pqk_ext.runtime.format.read`.

    Raises:
        FormatError: as ``read``.
        OSError: as ``read``.
    """
    header, data = reader.read_file(path, max_decoded_bytes)
    graph = reader.load(header, data, None, max_decoded_bytes)
    parsed, entries = reader.parse(header, data)
    tensors = []
    for key, entry in entries.items():
        index = int(key.split(".")[0])
        record = parsed.weights.get(index) if key.endswith(".weight") else None
        tensors.append(_tensor(key, graph.nodes[index].name, _decoded(graph, key), record, entry.array(data)))
    tensors.sort(key=lambda tensor: (int(tensor.name.split(".")[0]), tensor.name))
    return FileInfo(
        version=parsed.version,
        digest=container.check_digest(data),
        sha256=hashlib.sha256(data).hexdigest(),
        total_bytes=len(data),
        header_bytes=len(data) - sum(entry.nbytes for entry in entries.values()),
        metadata_bytes=len(header.metadata),
        nodes=len(graph.nodes),
        tensors=tuple(tensors),
    )
