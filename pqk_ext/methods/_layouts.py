"""What each layer of a network with shared weights takes in the layouts of the literature, and in our files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pqk_ext.deploy import export
from pqk_ext.runtime import format
from pqk_ext.storage_bounds import (
    csc_bits,
    ham_bits,
    ham_upper_bound,
    huffman_code,
    index_map_bits,
    sham_bits,
    sham_upper_bound,
)

__all__ = ["file_layouts", "published_layouts", "shares"]

_LAYOUTS = ("ham", "sham", "csc", "index_map")


def published_layouts(weight: Tensor) -> dict[str, Any]:
    """Bytes of one weight ``(out, ...)`` in each layout of :mod:`pqk_ext.storage_bounds`.

    Returns:
        ``weights``, ``sparsity``, ``distinct`` values (0 is one), ``entropy`` in bits a weight, bytes as ``ham``,
        ``sham``, ``csc``, ``index_map``; ``bound``: what the smaller of HAM and sHAM cannot exceed, and ``layout``,
        which that is.
    """
    matrix: NDArray[np.float32] = weight.detach().cpu().float().reshape(len(weight), -1).T.numpy() + np.float32(0)
    counts = np.unique(matrix, return_counts=True)[1]
    nonzeros = matrix[matrix != 0]
    of_nonzeros = np.unique(nonzeros, return_counts=True)[1]
    ham, sham = ham_bits(matrix).bits, sham_bits(matrix).bits
    n, m = matrix.shape
    bounds = {
        "ham": ham_upper_bound(n, m, len(counts), huffman_code(counts).longest),
        "sham": sham_upper_bound(n, m, nonzeros.size, len(of_nonzeros), huffman_code(of_nonzeros).longest),
    }
    layout = "ham" if ham <= sham else "sham"
    shares_of_values = counts / matrix.size
    return {
        "weights": matrix.size,
        "sparsity": 1 - nonzeros.size / matrix.size,
        "distinct": len(counts),
        "entropy": abs(float(np.sum(shares_of_values * np.log2(shares_of_values)))),
        "ham": ham / 8,
        "sham": sham / 8,
        "csc": csc_bits(matrix).bits / 8,
        "index_map": index_map_bits(matrix).bits / 8,
        "layout": layout,
        "bound": bounds[layout] / 8,
    }


def file_layouts(model: nn.Module, example_inputs: Tensor) -> dict[str, dict[str, Any]]:
    """Codec and bytes of every weight in the file of a network, by the name of its node.

    Bytes are those of the codes and of the values that they stand for.
    """
    with tempfile.TemporaryDirectory(prefix="pqk-") as folder:
        path = Path(folder) / "net.pqk"
        with torch.no_grad():
            export(model, path, example_inputs=example_inputs)
        layers = format.inspect(path).layers
    return {
        layer.name: {"codec": layer.weight.codec, "bytes": layer.weight.payload_bytes + layer.parts["codebook"]}
        for layer in layers
    }


def shares(layers: Sequence[dict[str, Any]]) -> dict[str, float]:
    """All layers together as shares of float32 (psi in the papers): each layout for all, and the best for each."""
    dense = 4 * sum(layer["weights"] for layer in layers)
    result = {name: sum(layer[name] for layer in layers) / dense for name in (*_LAYOUTS, "bound")}
    return result | {"best": sum(min(layer["ham"], layer["sham"]) for layer in layers) / dense}
