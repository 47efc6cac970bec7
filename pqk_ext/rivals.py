"""What the same weights take elsewhere: general compressors, plain files, the layouts of the literature. No torch."""

from __future__ import annotations

import gzip
import importlib.util
import lzma

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from pqk_ext import storage_bounds

__all__ = ["COMPRESSORS", "compressed_bytes", "has_zstd", "rival_bytes"]

#: General compressors, at their strongest usual setting, on the dense int8 array.
COMPRESSORS = ("gzip -9", "zstd -19", "xz -9e")


def has_zstd() -> bool:
    """Whether the optional package ``zstandard`` is there; without it no ``zstd -19`` is computed."""
    return importlib.util.find_spec("zstandard") is not None


def _zstd(data: bytes) -> bytes:
    import zstandard

    compressed: bytes = zstandard.ZstdCompressor(level=19).compress(data)
    return compressed


def compressed_bytes(data: bytes) -> dict[str, int]:
    """Sizes that general compressors reach.

    Args:
        data: what they compress.

    Returns:
        Name in :data:`COMPRESSORS` -> bytes; ``zstd -19`` only where :func:`has_zstd`.
    """
    sizes = {"gzip -9": len(gzip.compress(data, 9, mtime=0))}
    if has_zstd():
        sizes["zstd -19"] = len(_zstd(data))
    sizes["xz -9e"] = len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    return sizes


def _bytes(layout: storage_bounds.Layout) -> int:
    return -(-layout.bits // 8)


def rival_bytes(weight: NDArray[np.int8]) -> dict[str, int]:
    """Sizes of one weight tensor in other forms.

    Args:
        weight: int8 codes of any shape, output channels first.

    Returns:
        Name -> bytes: ``safetensors f32`` (a whole file), ``int8`` (the array alone), the :data:`COMPRESSORS` on the
        dense int8 array, and ``CSC``, ``index map``, ``HAM``, ``sHAM`` as published
        (:mod:`~pqk_ext.storage_bounds`).
    """
    rows = weight.shape[0] if weight.ndim else 1
    matrix = weight.reshape(rows, -1).T if weight.size else np.zeros((1, 0), np.int8)
    return {
        "safetensors f32": len(safetensors.numpy.save({"weight": weight.astype(np.float32)})),
        "int8": weight.size,
        **compressed_bytes(weight.tobytes()),
        "CSC": _bytes(storage_bounds.csc_bits(matrix)),
        "index map": _bytes(storage_bounds.index_map_bits(matrix)),
        "HAM": _bytes(storage_bounds.ham_bits(matrix)),
        "sHAM": _bytes(storage_bounds.sham_bits(matrix)),
    }
