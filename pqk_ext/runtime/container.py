"""The outer shell of a ``.pqk`` file: a safetensors file that begins with a fixed text and carries its own digest.

Reading uses its own strict header check instead of the library's: keys must be unique, tensors must lie one after
the other without hole or overlap, and nothing is copied. Any file accepted here is one that safetensors accepts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from pqk_ext.errors import refuse
from pqk_ext.runtime import strict_json
from pqk_ext.runtime.checks import check_name
from pqk_ext.runtime.strict_json import Json

__all__ = [
    "DIGEST_OFFSET",
    "ELEMENT_SIZE",
    "MAX_HEADER_SIZE",
    "MIN_FILE_SIZE",
    "Entry",
    "Header",
    "check_digest",
    "pack",
    "parse_header",
]

MAX_HEADER_SIZE = 4 * 2**20
MAX_TENSORS = 65_536
MIN_FILE_SIZE = 64
# More than any operator has.
_MAX_NODE_TENSORS = 4

# What every version of the format begins with, after the header's length: the digest is the metadata's first key.
_START = b'{"__metadata__":{"pqk":"{\\"digest\\":\\"'
DIGEST_OFFSET = 8 + len(_START)
_DIGEST_SIZE = 64
_NO_DIGEST = "0" * _DIGEST_SIZE

#: Bytes of an element by its dtype in the container.
ELEMENT_SIZE = {"U8": 1, "I8": 1, "F16": 2, "F32": 4}
_NUMPY_DTYPE: dict[str, np.dtype[np.generic]] = {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}

# What other files begin with, so that the error can say what the user has in hand.
_LOOKS_LIKE = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"version https://git-lfs", "a Git LFS pointer: run git lfs pull"),
    (b"\x1f\x8b", "a gzip file: decompress it first"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
)


@dataclass(frozen=True)
class Entry:
    """One tensor of the container: where its bytes lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    def array(self, data: bytearray | bytes | memoryview) -> NDArray[np.generic]:
        """A view of the tensor's bytes within the whole file's."""
        count = math.prod(self.shape)
        flat = np.frombuffer(data, _NUMPY_DTYPE[self.dtype], count, self.begin)
        return flat.reshape(self.shape)


@dataclass(frozen=True)
class Header:
    """The checked safetensors header; ``metadata`` is not parsed yet."""

    size: int  # of the header with its 8 bytes of length
    metadata: str
    tensors: dict[str, Entry]


def _looks_like(start: bytes) -> str:
    for magic, what in _LOOKS_LIKE:
        if start.startswith(magic):
            return what
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "an HTML page"
    if start[8:9] == b"{":
        return "a safetensors file without pqk metadata"
    return "something else"


def header_size(start: bytes, file_size: int) -> int:
    """Checks the first bytes of a file (at least 64 where it has as many); returns where its tensors begin.

    Raises:
        FormatError: ``E_TRUNCATED``, ``E_MAGIC`` or ``E_HEADER_LEN``.
    """
    if file_size < MIN_FILE_SIZE or len(start) < MIN_FILE_SIZE:
        refuse("E_TRUNCATED", "prefix", f"at least {MIN_FILE_SIZE} bytes", min(file_size, len(start)))
    if start[8:DIGEST_OFFSET] != _START:
        refuse("E_MAGIC", "prefix", "a .pqk file", _looks_like(start), 8)
    length = int.from_bytes(start[:8], "little")
    largest = min(MAX_HEADER_SIZE, file_size - 8)
    if length % 8 or not DIGEST_OFFSET + _DIGEST_SIZE <= length <= largest:
        refuse("E_HEADER_LEN", "header length", f"a multiple of 8, at most {largest}", length, 0)
    return 8 + length


def parse_header(header: bytes, file_size: int) -> Header:
    """Checks the container's header. ``header`` ends where the tensors begin.

    Raises:
        FormatError: for anything but a header whose tensors fill the rest of the file exactly.
    """
    text = header[8:].rstrip(b" ")
    if len(header) - 8 - len(text) > 7:
        refuse("E_PADDING", "header", "fewer than 8 spaces at its end", len(header) - 8 - len(text))
    _check_counts(text)
    root = strict_json.parse(text, "header")
    assert isinstance(root, dict)  # by its first byte
    outer = root.pop("__metadata__")
    if not isinstance(outer, dict) or set(outer) != {"pqk"} or not isinstance(outer["pqk"], str):
        refuse("E_HEADER", "header.__metadata__", "the one key pqk with a text", strict_json.canonical(outer))
    if len(root) > MAX_TENSORS:
        refuse("E_LIMIT", "header", f"at most {MAX_TENSORS} tensors", len(root))
    tensors: dict[str, Entry] = {}
    end, previous = len(header), "the header"
    for name, fields in root.items():
        check_name(name, "header.tensors")
        entry = _parse_entry(fields, f"header.tensors[{name!r}]", len(header))
        if entry.begin != end:
            refuse(
                "E_OFFSET",
                f"header.tensors[{name!r}].data_offsets",
                f"{end - len(header)}, the end of {previous}",
                entry.begin - len(header),
            )
        tensors[name] = entry
        end, previous = entry.end, repr(name)
    if end != file_size:
        refuse("E_FILE_LEN", "file", f"{end} bytes, as the header says", file_size)
    return Header(len(header), outer["pqk"], tensors)


def _check_counts(text: bytes) -> None:
    """Refuses a header of far too many tensors before millions of objects are made of it.

    A tensor's key ``data_offsets`` can stand nowhere else: names have no quotes, and in the metadata they are
    escaped. A node is an object, and so has a brace that no tensor has.
    """
    tensors = text.count(b'"data_offsets"')
    if tensors > MAX_TENSORS:
        refuse("E_LIMIT", "header", f"at most {MAX_TENSORS} tensors", tensors)
    nodes = text.count(b"{") - tensors
    if tensors > _MAX_NODE_TENSORS * nodes:
        refuse("E_UNREFERENCED", "header", f"at most {_MAX_NODE_TENSORS} tensors for each node", tensors)


def _parse_entry(fields: Json, field: str, base: int) -> Entry:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        refuse("E_HEADER", field, "dtype, shape and data_offsets", strict_json.canonical(fields))
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ELEMENT_SIZE:
        refuse("E_ENUM", f"{field}.dtype", f"one of {', '.join(ELEMENT_SIZE)}", repr(dtype))
    if not isinstance(shape, list) or len(shape) > 8:
        refuse("E_SHAPE", f"{field}.shape", "a list of at most 8 sizes", repr(shape))
    sizes: list[int] = []
    for axis, size in enumerate(shape):
        if type(size) is not int or not 0 <= size <= 2**40:
            refuse("E_SHAPE", f"{field}.shape[{axis}]", "an integer in 0..2^40", repr(size))
        sizes.append(size)
    if not isinstance(offsets, list) or len(offsets) != 2:
        refuse("E_OFFSET", f"{field}.data_offsets", "a begin and an end", repr(offsets))
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        refuse("E_OFFSET", f"{field}.data_offsets", "integers 0 <= begin <= end", repr(offsets))
    nbytes = math.prod(sizes) * ELEMENT_SIZE[dtype]
    if nbytes >= 2**63:
        refuse("E_SHAPE_OVERFLOW", f"{field}.shape", "fewer than 2^63 bytes", sizes)
    if end - begin != nbytes:
        refuse("E_SIZE_MISMATCH", f"{field}.data_offsets", f"{nbytes} bytes for {dtype} {sizes}", end - begin)
    if (base + begin) % ELEMENT_SIZE[dtype]:
        refuse("E_OFFSET", f"{field}.data_offsets", f"a multiple of {ELEMENT_SIZE[dtype]}", begin)
    return Entry(dtype, tuple(sizes), base + begin, base + end)


def _digest(data: bytearray | bytes | memoryview) -> str:
    """SHA-256 of the file with the digest's own 64 digits taken as zeros."""
    view = memoryview(data)
    sha256 = hashlib.sha256(view[:DIGEST_OFFSET])
    sha256.update(_NO_DIGEST.encode())
    sha256.update(view[DIGEST_OFFSET + _DIGEST_SIZE :])
    return sha256.hexdigest()


def check_digest(data: bytearray | bytes | memoryview) -> str:
    """The digest that the file holds, found to be right.

    Raises:
        FormatError: ``E_DIGEST`` with both.
    """
    stored = bytes(data[DIGEST_OFFSET : DIGEST_OFFSET + _DIGEST_SIZE])
    computed = _digest(data)
    if stored != computed.encode():
        refuse("E_DIGEST", "digest", computed, stored.decode("latin-1"), DIGEST_OFFSET)
    return computed


def pack(metadata: dict[str, Json], tensors: Mapping[str, NDArray[np.generic]]) -> bytes:
    """The whole file. ``metadata`` must not contain the key ``digest``, and no key before it."""
    text = strict_json.canonical({**metadata, "digest": _NO_DIGEST})
    data = bytearray(safetensors.numpy.save(dict(tensors), {"pqk": text}))
    data[DIGEST_OFFSET : DIGEST_OFFSET + _DIGEST_SIZE] = _digest(data).encode()
    return bytes(data)
