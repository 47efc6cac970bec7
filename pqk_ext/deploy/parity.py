"""The proof that training's evaluation, the int8 torch ops and the runtime give the same bits, or close floats."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pqk_ext import runtime
from pqk_ext.deploy.evaluate import TorchGraph
from pqk_ext.wrappers import unwrap

__all__ = ["Parity", "assert_close", "assert_parity", "compare", "relative_difference"]


_SAMPLES_AT_ONCE = 256  # exact evaluation takes some megabytes for each


@dataclass(frozen=True)
class Parity:
    """Result of a comparison: how many samples were compared, and in how many of them any output bit differs."""

    samples: int
    different: int


def compare(model: nn.Module, path: str | os.PathLike[str], x: Tensor, *, num_threads: int = 1) -> Parity:
    """Compares ``model.eval()(x)``, the int8 torch ops and the runtime on the file, bit for bit.

    Args:
        model: the prepared model that was exported, or a module around it.
        path: its ``.pqk`` file.
        x: float32 batch; it is brought to the model's device.
        num_threads: of the runtime.
    """
    model = unwrap(model)
    was_training = model.training
    model.eval()
    network = runtime.load(Path(path), num_threads=num_threads)
    ops = TorchGraph(network.graph, native=True)
    different = 0
    for part in x.split(_SAMPLES_AT_ONCE):
        expected = _bits(model(_beside(model, part)).cpu())
        from_file = _bits(torch.from_numpy(network(part.cpu().numpy())))
        differs = (expected != from_file) | (expected != _bits(ops(part.cpu())))
        different += int(differs.reshape(len(part), -1).any(1).sum())
    model.train(was_training)
    return Parity(samples=len(x), different=different)


def _beside(model: nn.Module, x: Tensor) -> Tensor:
    """``x`` on the model's device."""
    return x.to(next((parameter.device for parameter in model.parameters()), x.device))


def _bits(output: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return output.contiguous().numpy().view(np.int32)


def assert_parity(model: nn.Module, path: str | os.PathLike[str], x: Tensor, *, num_threads: int = 1) -> None:
    """Raises unless the evaluation of ``model``, the int8 torch ops and the file give the same bits for ``x``.

    Args:
        model: the prepared model that was exported, or a module around it.
        path: its ``.pqk`` file.
        x: float32 batch of at least one sample.
        num_threads: of the runtime.

    Raises:
        AssertionError: some sample's outputs differ; says how many.
        ValueError: an empty batch, which would prove nothing.
    """
    if len(x) == 0:
        raise ValueError("x must hold at least one sample, got an empty batch")
    result = compare(model, path, x, num_threads=num_threads)
    if result.different:
        raise AssertionError(f"{result.different} of {result.samples} samples differ between evaluation and {path}")


@torch.no_grad()
def relative_difference(model: nn.Module, path: str | os.PathLike[str], x: Tensor, *, num_threads: int = 1) -> float:
    """How far the runtime on the file is from ``model.eval()(x)``, relative to the largest output of the batch.

    Args:
        model: the model that was exported.
        path: its ``.pqk`` file.
        x: float32 batch of at least one sample.
        num_threads: of the runtime.

    Raises:
        ValueError: an empty batch, which would prove nothing.
    """
    if len(x) == 0:
        raise ValueError("x must hold at least one sample, got an empty batch")
    modes = [(module, module.training) for module in model.modules()]
    expected = model.eval()(_beside(model, x)).cpu().double()
    for module, training in modes:
        module.training = training
    output = torch.from_numpy(runtime.load(Path(path), num_threads=num_threads)(x.cpu().numpy())).double()
    if output.shape != expected.shape:
        raise ValueError(f"{path}: gives shape {tuple(output.shape)}, the model {tuple(expected.shape)}")
    return float((output - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def assert_close(
    model: nn.Module,
    path: str | os.PathLike[str],
    x: Tensor,
    *,
    tolerance: float = 1e-4,
    num_threads: int = 1,
) -> None:
    """Raises unless the file of a model with shared weights gives what the model gives, up to float rounding.

    Float sums have no fixed order, so that equal bits cannot be asked for. The default tolerance is far above what
    rounding makes of a network of a hundred layers and far below what any wrong weight does.

    Args:
        model: the model that was exported.
        path: its ``.pqk`` file.
        x: float32 batch of at least one sample.
        tolerance: largest difference, relative to the largest output of the batch.
        num_threads: of the runtime.

    Raises:
        AssertionError: some output differs by more, or is NaN; says how much.
        ValueError: an empty batch, which would prove nothing.
    """
    difference = relative_difference(model, path, x, num_threads=num_threads)
    if not difference <= tolerance:
        raise AssertionError(
            f"evaluation and {path} differ by {difference:.2e} of the largest output, not {tolerance:.0e}"
        )
