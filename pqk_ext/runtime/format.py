"""``.pqk`` files (``FORMAT.md``): :func:`write` and :func:`read` a :class:`~pqk_ext.runtime.graph.Graph`,
:func:`inspect` what a file is made of.
"""

from __future__ import annotations

from pqk_ext.runtime.metadata import CODECS
from pqk_ext.runtime.reader import MAX_DECODED_BYTES, loads, read
from pqk_ext.runtime.sizes import PARTS, FileInfo, LayerInfo, TensorInfo, inspect
from pqk_ext.runtime.writer import SPEED_TOLERANCE, dumps, write

__all__ = [
    "CODECS",
    "MAX_DECODED_BYTES",
    "PARTS",
    "SPEED_TOLERANCE",
    "FileInfo",
    "LayerInfo",
    "TensorInfo",
    "dumps",
    "inspect",
    "loads",
    "read",
    "write",
]
