"""What a ``.pqk`` file is made of, byte by byte."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pqk_ext.runtime import container, metadata, reader
from pqk_ext.runtime.graph import Graph

__all__ = ["FileInfo", "TensorInfo", "inspect"]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        name: ``"<node index>.<tensor>"``.
        node: the node's own name.
        shape: of the decoded tensor.
        dtype: ``"i8"``, ``"u8"`` or ``"f32"``.
        codec: of a weight; ``"raw"`` for all other tensors.
        count: number of elements.
        nonzeros: how many of them are not 0.
        bits: width that the values need (2..8 for a weight).
        payload_bytes: size in the file.
        entropy_bits: order-0 entropy of the values in bits per element, the least that a code of single values can
            reach, without its table.
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

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1.0 - self.nonzeros / self.count

    @property
    def bits_per_value(self) -> float:
        """Bits in the file per element."""
        return 8.0 * self.payload_bytes / self.count


@dataclass(frozen=True)
class FileInfo:
    """A whole file; ``header_bytes`` plus the payloads of ``tensors`` is ``total_bytes``.

    Attributes:
        version: major and minor version of the format.
        digest: SHA-256 that the file carries.
        sha256: SHA-256 of the file as ``sha256sum`` prints it.
        total_bytes: size of the file.
        header_bytes: container header with the metadata.
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


def _entropy(values: NDArray[np.generic]) -> float:
    counts = np.bincount(values.reshape(-1).view(np.uint8), minlength=256)
    shares = counts[counts > 0] / values.size
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def _decoded(graph: Graph, key: str) -> NDArray[np.generic]:
    index, name = key.split(".")
    tensors = graph.nodes[int(index)].tensors
    return np.stack([tensors["multiplier"], tensors["bias"]]) if name == "affine" else tensors[name]


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
    parsed = metadata.load(header.metadata)
    tensors = []
    for key, entry in header.tensors.items():
        values = _decoded(graph, key)
        index = int(key.split(".")[0])
        record = parsed.weights.get(index) if key.endswith(".weight") else None
        is_float = entry.dtype == "F32"
        tensors.append(
            TensorInfo(
                name=key,
                node=graph.nodes[index].name,
                shape=tuple(values.shape),
                dtype="f32" if is_float else "u8" if record is None else "i8",
                codec="raw" if record is None else record.codec,
                count=math.prod(values.shape),
                nonzeros=int(np.count_nonzero(values)),
                bits=record.bits if record else 32 if is_float else 8,
                payload_bytes=entry.nbytes,
                entropy_bits=32.0 if is_float else _entropy(values),
            )
        )
    tensors.sort(key=lambda tensor: (int(tensor.name.split(".")[0]), tensor.name))
    return FileInfo(
        version=parsed.version,
        digest=container.check_digest(data),
        sha256=hashlib.sha256(data).hexdigest(),
        total_bytes=len(data),
        header_bytes=header.size,
        metadata_bytes=len(header.metadata),
        nodes=len(graph.nodes),
        tensors=tuple(tensors),
    )
