"""A trained network as a file, and what is to be said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pqk_ext import cost, runtime
from pqk_ext.deploy import compare, export
from pqk_ext.deploy.parity import relative_difference
from pqk_ext.methods.data import Data
from pqk_ext.preparation import PreparedModel

__all__ = ["accuracy", "deploy"]

_BATCH = 256
_COMPARED = 2000  # samples whose bits are compared


def deploy(model: nn.Module, path: Path, data: Data) -> dict[str, Any]:
    """Writes the file and measures it.

    Args:
        model: trained, in evaluation mode: a prepared network, or a float one whose weights are shared.
        path: of the file; replaced if it exists.
        data: accuracies are those of its test and validation split, computed from the file.

    Returns:
        ``file``, ``test_accuracy`` and ``validation_accuracy`` in [0, 1], ``sparsity`` (share of zero weights), what
        :meth:`pqk_ext.cost.Cost.to_dict` gives but for the time, and of an integer network ``parity``: samples compared
        between training's evaluation, the torch ops and the file, and how many differ in any bit; of a float one
        ``relative_difference``.

    Raises:
        AssertionError: bits differ.
    """
    data = data.to(torch.device("cpu"))
    x = data.test[0]
    proof: dict[str, Any]
    if isinstance(model, PreparedModel):
        export(model, path)
        parity = compare(model, path, x[:_COMPARED])
        if parity.different:
            raise AssertionError(f"{path}: {parity.different} of {parity.samples} samples differ from the evaluation")
        proof = {"parity": {"samples": parity.samples, "different": parity.different}}
    else:
        export(model, path, example_inputs=x[:1].to(next(model.parameters()).device))
        proof = {"relative_difference": relative_difference(model, path, x[:_BATCH])}
    network = runtime.load(path, tune=False)
    found = cost.measure(path, rounds=0)
    weights = sum(layer.weights for layer in found.layers)
    return {
        "file": path.name,
        "test_accuracy": _file_accuracy(network, data.test),
        "validation_accuracy": _file_accuracy(network, data.validation),
        "sparsity": 1 - found.nonzeros / weights,
        **found.to_dict(),
        **proof,
    }


def _file_accuracy(network: runtime.Model, data: tuple[Tensor, Tensor]) -> float:
    x, y = (part.numpy() for part in data)
    labels: NDArray[np.int64] = np.concatenate([network(part).argmax(1) for part in _batches(x)])
    return float((labels == y).mean())


def _batches(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [x[i : i + _BATCH] for i in range(0, len(x), _BATCH)]


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of the samples that a network classifies correctly, in [0, 1]."""
    pairs = zip(data[0].split(_BATCH), data[1].split(_BATCH), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs) / len(data[0])
