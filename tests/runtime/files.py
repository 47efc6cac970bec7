"""Files for tests of the format: golden ones taken apart, changed, and signed again."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from pqk_ext.errors import FormatError
from pqk_ext.runtime import container
from pqk_ext.runtime import format as pqk_format

GOLDEN = Path(__file__).parent.parent / "golden"
SMALL = (GOLDEN / "v1.0" / "huffman.pqk").read_bytes()
ALL_OPS = (GOLDEN / "v1.0" / "all_ops.pqk").read_bytes()
REMOVED = object()


def sign(data: bytes) -> bytes:
    """The file with the digest made right."""
    begin, end = container.DIGEST_OFFSET, container.DIGEST_OFFSET + 64
    if len(data) < end:
        return data
    return data[:begin] + container._digest(data).encode() + data[end:]


def split(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Container header, metadata, tensor bytes."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["pqk"]), data[8 + size :]


def join(header: dict[str, Any], metadata: dict[str, Any] | str, tensors: bytes) -> bytes:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata, separators=(",", ":"))
    header = {**header, "__metadata__": {**header["__metadata__"], "pqk": text}}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return sign(struct.pack("<Q", len(raw)) + raw + tensors)


def refused(data: bytes, **options: Any) -> FormatError:
    with pytest.raises(FormatError) as caught:
        pqk_format.loads(data, **options)
    assert caught.value.expected
    assert caught.value.got
    return caught.value


def set_metadata(path: list[str | int], new: object, base: bytes = SMALL) -> bytes:
    header, metadata, tensors = split(base)
    target: Any = metadata
    for key in path[:-1]:
        target = target[key]
    if new is REMOVED:
        del target[path[-1]]
    else:
        target[path[-1]] = new
    return join(header, metadata, tensors)
