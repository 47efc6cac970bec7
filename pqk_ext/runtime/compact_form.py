"""The compact form of a file (``FORMAT.md``, "Compact form"): the graph deflated, all tensors in one.

A container's entry takes 65 bytes and the text of a node 200: in a network of a few kilobytes a fifth of the file.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pqk_ext.errors import refuse
from pqk_ext.runtime.container import ELEMENT_SIZE, MAX_HEADER_SIZE, Entry

__all__ = ["DATA", "GRAPH", "deflate", "inflate", "join", "max_text_size", "split"]

#: The container's two tensors.
DATA, GRAPH = "data", "graph"
# Raw: no header, and no checksum beside the file's digest.
_WINDOW_BITS = -15
# A graph's text is 4 to 10 times its stream. A small file that would become a large text is refused.
_SMALL_TEXT, _MAX_RATIO = 65_536, 64
_FIELD = f"tensors[{GRAPH!r}].stream"


def max_text_size(stream_size: int) -> int:
    """Bytes that the graph's text may have, of a stream of so many."""
    return min(MAX_HEADER_SIZE, _SMALL_TEXT + _MAX_RATIO * stream_size)


def deflate(text: str) -> NDArray[np.uint8] | None:
    """The text as a raw DEFLATE stream (RFC 1951); None if a reader would refuse it for what it becomes."""
    stream = zlib.compressobj(9, zlib.DEFLATED, _WINDOW_BITS, 9)
    data = stream.compress(text.encode("ascii")) + stream.flush()
    return np.frombuffer(data, np.uint8) if len(text) <= max_text_size(len(data)) else None


def inflate(data: bytes) -> bytes:
    """The text of a stream that ends where ``data`` ends; never makes more of it than is allowed.

    Raises:
        FormatError: ``E_DEFLATE``, ``E_TRUNCATED``, ``E_SIZE_MISMATCH`` or ``E_BOMB``.
    """
    stream, limit = zlib.decompressobj(_WINDOW_BITS), max_text_size(len(data))
    try:
        text = stream.decompress(data, limit + 1)
    except zlib.error as error:
        refuse("E_DEFLATE", _FIELD, "a raw DEFLATE stream", error)
    if len(text) > limit:
        refuse("E_BOMB", _FIELD, f"a text of at most {limit} bytes from {len(data)}", "more")
    if not stream.eof:
        refuse("E_TRUNCATED", _FIELD, "the end of the DEFLATE stream", f"none in {len(data)} bytes")
    if stream.unused_data:
        used = len(data) - len(stream.unused_data)
        refuse("E_SIZE_MISMATCH", _FIELD, f"{used} bytes, the length of the stream", len(data))
    return text


def join(tensors: Mapping[str, NDArray[np.generic]]) -> NDArray[np.uint8]:
    """The bytes of all tensors: those of the largest elements first, so that each is aligned, else in their order."""
    ordered = sorted(tensors.values(), key=lambda tensor: -tensor.dtype.itemsize)
    return np.frombuffer(b"".join(tensor.tobytes() for tensor in ordered), np.uint8)


def split(data: Entry, expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Where each tensor lies that :func:`join` put together. ``expected``: dtype and shape of each, in their order.

    Raises:
        FormatError: ``E_SIZE_MISMATCH`` unless they fill ``data``; ``E_OFFSET`` if that is not aligned for them.
    """
    field = f"tensors[{DATA!r}]"
    entries: dict[str, Entry] = {}
    end = data.begin
    for name in sorted(expected, key=lambda name: -ELEMENT_SIZE[expected[name][0]]):
        dtype, shape = expected[name]
        begin, end = end, end + math.prod(shape) * ELEMENT_SIZE[dtype]
        if begin % ELEMENT_SIZE[dtype]:
            refuse("E_OFFSET", field, f"a multiple of {ELEMENT_SIZE[dtype]} in the file", data.begin)
        entries[name] = Entry(dtype, shape, begin, end)
    if end != data.end:
        refuse("E_SIZE_MISMATCH", field, f"{end - data.begin} bytes for the graph's tensors", data.nbytes)
    return entries
