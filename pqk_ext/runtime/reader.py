"""Reading of ``.pqk`` files: runs no code from the file, opens nothing else, and gives a whole checked graph or an
error.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pqk_ext import _core
from pqk_ext.errors import refuse
from pqk_ext.runtime import checks, compact_form, container, metadata
from pqk_ext.runtime.graph import Graph, Node
from pqk_ext.runtime.metadata import WeightRecord

__all__ = ["MAX_DECODED_BYTES", "loads", "read"]

#: Default limit of what a file may decode to.
MAX_DECODED_BYTES = 4 * 2**30

Buffer: TypeAlias = bytes | bytearray | memoryview
_Entries: TypeAlias = dict[str, container.Entry]
_Map: TypeAlias = Callable[[Callable[[int], Node], Iterable[int]], Iterable[Node]]


def read_file(path: str | os.PathLike[str], max_bytes: int) -> tuple[container.Header, memoryview]:
    """The header, checked before the rest is read, and all bytes. Opens without blocking, so a FIFO cannot hang."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        size = status.st_size
        begin = container.header_size(os.pread(descriptor, container.MIN_FILE_SIZE, 0), size)
        start = bytearray(begin)
        _read_into(descriptor, memoryview(start), 0)
        header = container.parse_header(bytes(start), size)
        if size - begin > max_bytes:
            refuse(
                "E_BOMB", "file", f"at most {max_bytes} bytes of tensors (max_decoded_bytes raises it)", size - begin
            )
        data = np.empty(size, np.uint8).data  # unlike a bytearray not filled with zeros first
        data[:begin] = start
        _read_into(descriptor, data[begin:], begin)
    finally:
        os.close(descriptor)
    return header, data


def _read_into(descriptor: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            refuse("E_TRUNCATED", "file", f"{offset + len(view)} bytes", offset + done)
        done += count


def read(
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    max_decoded_bytes: int = MAX_DECODED_BYTES,
    num_threads: int = 1,
) -> Graph:
    """Reads a file and checks all of it.

    Args:
        path: a regular file.
        sha256: SHA-256 of the whole file in hexadecimal, as ``sha256sum`` prints it, that it must have.
        max_decoded_bytes: limit of the decoded tensors together, and of the activations of one sample.
        num_threads: threads that check the digest and decode; the result does not depend on it.

    Raises:
        FormatError: the file is not a whole, undamaged file of a known version that keeps every rule.
        OSError: it cannot be read, or is no regular file.
    """
    header, data = read_file(path, max_decoded_bytes)
    return load(header, data, sha256, max_decoded_bytes, num_threads)


def read_coded(
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    max_decoded_bytes: int = MAX_DECODED_BYTES,
    num_threads: int = 1,
) -> tuple[Graph, dict[int, tuple[str, NDArray[np.uint8]]]]:
    """:func:`read`, and the codec and payload of every weight by its node's index."""
    header, data = read_file(path, max_decoded_bytes)
    graph = load(header, data, sha256, max_decoded_bytes, num_threads)
    parsed, tensors = parse(header, data)
    return graph, {
        index: (record.codec, tensors[f"{index}.weight"].array(data).reshape(-1).view(np.uint8))
        for index, record in parsed.weights.items()
    }


def loads(data: Buffer, *, sha256: str | None = None, max_decoded_bytes: int = MAX_DECODED_BYTES) -> Graph:
    """The same from bytes.

    Raises:
        FormatError: as :func:`read`.
    """
    return load(parse_shell(data), data, sha256, max_decoded_bytes)


def parse_shell(data: Buffer) -> container.Header:
    """The checked container of a whole file in memory."""
    begin = container.header_size(bytes(data[: container.MIN_FILE_SIZE]), len(data))
    return container.parse_header(bytes(data[:begin]), len(data))


def load(
    header: container.Header, data: Buffer, sha256: str | None, max_decoded_bytes: int, num_threads: int = 1
) -> Graph:
    if sha256 is not None:
        computed = hashlib.sha256(data).hexdigest()
        if computed != sha256.lower():
            refuse("E_DIGEST", "sha256", sha256, computed)
    if num_threads == 1:
        container.check_digest(data)
        return _parse_and_decode(header, data, max_decoded_bytes, map)
    from concurrent.futures import ThreadPoolExecutor  # takes as long as loading a small file

    with ThreadPoolExecutor(num_threads) as pool:
        digest = pool.submit(container.check_digest, data)
        try:
            return _parse_and_decode(header, data, max_decoded_bytes, pool.map)
        finally:
            digest.result()  # a damaged file is refused as one, whatever else was found


def _parse_and_decode(header: container.Header, data: Buffer, max_decoded_bytes: int, run: _Map) -> Graph:
    parsed, tensors = parse(header, data)
    check_metadata(parsed, tensors, max_decoded_bytes)
    graph = decode(parsed, tensors, data, run)
    checks.check_values(graph)
    return graph


def parse(header: container.Header, data: Buffer) -> tuple[metadata.Metadata, _Entries]:
    """The graph without the contents of its tensors, and where these lie; neither is checked by the other's rules."""
    deflated = header.tensors.get(compact_form.GRAPH)
    parsed = metadata.load(header.metadata, bytes(data[deflated.begin : deflated.end]) if deflated else None)
    return parsed, _compact_entries(parsed, header.tensors) if parsed.compact else header.tensors


def check_metadata(parsed: metadata.Metadata, tensors: _Entries, max_decoded_bytes: int) -> None:
    """All that can be checked before anything is decoded."""
    checks.check_structure(parsed.graph, max_decoded_bytes)
    _check_entries(parsed, tensors)
    _check_decoded_bytes(parsed.graph, max_decoded_bytes)


def decode(parsed: metadata.Metadata, tensors: _Entries, data: Buffer, run: _Map = map) -> Graph:
    """The graph with the contents of its tensors; ``run`` calls a function for each node as ``map`` does."""

    def filled(index: int) -> Node:
        node = parsed.graph.nodes[index]
        expected = expected_entries(node, parsed.weights.get(index), parsed.half_affine)
        return replace(node, tensors=_decode_node(index, node, parsed.weights.get(index), expected, tensors, data))

    return Graph(parsed.graph.input, tuple(run(filled, range(len(parsed.graph.nodes)))))


def expected_entries(
    node: Node, record: WeightRecord | None, half_affine: bool
) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    """dtype and shape of a node's tensors in the file, in the order of the compact form.

    A coded weight's size, None where the graph does not say it, is its codec's matter.
    """
    entries: dict[str, tuple[str, tuple[int, ...] | None]] = {}
    if record is not None:
        size = None if record.payload_bytes is None else (record.payload_bytes,)
        entries["weight"] = ("I8", record.shape) if record.codec == "raw" else ("U8", size)
    if "multiplier" in node.tensors:
        entries["affine"] = ("F16" if half_affine else "F32", (2, *node.tensors["multiplier"].shape))
    if "codebook" in node.tensors:
        entries["codebook"] = ("F32", node.tensors["codebook"].shape)
    for name in ("zero_point", "table"):
        if name in node.tensors:
            entries[name] = ("U8", node.tensors[name].shape)
    return entries


def _compact_entries(parsed: metadata.Metadata, tensors: _Entries) -> _Entries:
    """Where the graph's tensors lie within the one that holds them all."""
    for key in tensors:
        if key not in (compact_form.DATA, compact_form.GRAPH):
            refuse("E_UNREFERENCED", f"tensors[{key!r}]", f"{compact_form.DATA} and {compact_form.GRAPH} alone", key)
    data = tensors.get(compact_form.DATA)
    if data is None:
        refuse("E_GRAPH_REF", f"tensors[{compact_form.DATA!r}]", "a tensor in the container", "none")
    for key, entry in tensors.items():
        if entry.dtype != "U8" or len(entry.shape) != 1:
            refuse("E_ENUM", f"tensors[{key!r}]", "U8 (n,)", f"{entry.dtype} {entry.shape}")
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    for index, node in enumerate(parsed.graph.nodes):
        for name, (dtype, shape) in expected_entries(node, parsed.weights.get(index), parsed.half_affine).items():
            assert shape is not None  # every payload's size is in the graph
            expected[f"{index}.{name}"] = (dtype, shape)
    return compact_form.split(data, expected)


def _check_entries(parsed: metadata.Metadata, tensors: _Entries) -> None:
    """The container holds exactly the tensors that the nodes need, in their dtypes and shapes."""
    unreferenced = set(tensors)
    for index, node in enumerate(parsed.graph.nodes):
        expected = expected_entries(node, parsed.weights.get(index), parsed.half_affine)
        for name, (dtype, shape) in expected.items():
            key = f"{index}.{name}"
            entry = tensors.get(key)
            if entry is None:
                refuse("E_GRAPH_REF", f"tensors[{key!r}]", "a tensor in the container", "none")
            if entry.dtype != dtype:
                refuse("E_ENUM", f"tensors[{key!r}].dtype", dtype, entry.dtype)
            if entry.shape != shape and (shape is not None or len(entry.shape) != 1):
                refuse("E_SIZE_MISMATCH", f"tensors[{key!r}].shape", str(shape or "(n,)"), entry.shape)
            unreferenced.remove(key)
    for key in sorted(unreferenced):
        refuse("E_UNREFERENCED", f"tensors[{key!r}]", "a node that uses it", "none")


def _check_decoded_bytes(graph: Graph, limit: int) -> None:
    total = sum(
        math.prod(tensor.shape) * tensor.dtype.itemsize for node in graph.nodes for tensor in node.tensors.values()
    )
    if total > limit:
        refuse("E_BOMB", "tensors", f"at most {limit} decoded bytes (max_decoded_bytes raises it)", total)


def _decode_node(
    index: int,
    node: Node,
    record: WeightRecord | None,
    names: Iterable[str],
    tensors: _Entries,
    data: Buffer,
) -> dict[str, NDArray[np.generic]]:
    decoded: dict[str, NDArray[np.generic]] = {}
    for name in names:
        key = f"{index}.{name}"
        array = tensors[key].array(data)
        if name == "weight":
            assert record is not None
            decoded["weight"] = _decode_weight(array, record, f"tensors[{key!r}]")
        elif name == "affine":
            decoded["multiplier"], decoded["bias"] = array.astype(np.float32)
        else:
            decoded[name] = array.astype(node.tensors[name].dtype)
    return decoded


def _decode_weight(payload: NDArray[np.generic], record: WeightRecord, field: str) -> NDArray[np.int8]:
    bytes_ = payload.view(np.uint8).reshape(-1)
    try:
        flat = _core.decode_weight(record.codec, bytes_, record.count, record.shape[0], field)
    except MemoryError:
        raise MemoryError(f"{field}: no memory for its {record.count} weights") from None
    least, largest = record.value_range
    if int(flat.max()) > largest or int(flat.min()) < least:
        index = int(np.argmax((flat > largest) | (flat < least)))
        expected = f"weights of {record.bits} bits, {least}..{largest}"
        refuse("E_VALUE_RANGE", f"{field}[{index}]", expected, int(flat[index]))
    return flat.reshape(record.shape)
