"""Checks for the tests of users' own models: that what was asked for is there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from pqk_ext.nn import PQKLayer
from pqk_ext.preparation import PreparedModel

__all__ = ["assert_sparsity"]


def assert_sparsity(
    network: nn.Module | str | os.PathLike[str],
    sparsity: float | Mapping[str, float],
    *,
    tolerance: float = 0.005,
) -> None:
    """Raises unless the network's weights are as sparse as they should be, in what it computes with.

    Of a prepared model the quantized weights of the student are counted, and a weight under the mask that is not
    exactly 0 fails whatever the shares are; of a plain model the weights of its convolutions and linear layers; of a
    ``.pqk`` file the stored codes. Zeros that rounding adds count.

    Args:
        network: a prepared model, a plain one, or the path of a file.
        sparsity: the least share of zeros, in [0, 1]: of a prepared model's prunable weights together, of all
            weights of a plain model or a file; or for each regular expression of ``sparsity`` that of every layer
            whose whole name it matches (in a file: of the node).
        tolerance: how much less will do.

    Raises:
        AssertionError: some share is too small; lists each layer's.
        ValueError: a share out of range, or a pattern that matches no layer.
    """
    wanted = dict(sparsity) if isinstance(sparsity, Mapping) else {}
    for value in wanted.values() if isinstance(sparsity, Mapping) else [sparsity]:
        if not 0 <= value <= 1:
            raise ValueError(f"sparsity: expected a share in [0, 1], got {value}")
    counts, counted = _zeros(network)
    listing = ", ".join(f"{name} {zeros / max(1, count):.3f}" for name, (zeros, count) in counts.items())
    if not isinstance(sparsity, Mapping):
        of_all = [counts[name] for name in counted]
        share = sum(zeros for zeros, _ in of_all) / max(1, sum(count for _, count in of_all))
        if share < sparsity - tolerance:
            raise AssertionError(f"sparsity is {share:.4f}, expected {sparsity:g}; layers: {listing}")
        return
    for pattern, value in wanted.items():
        names = [name for name in counts if re.fullmatch(pattern, name)]
        if not names:
            raise ValueError(f"sparsity: {pattern!r} matches no layer; layers: {', '.join(counts)}")
        for name in names:
            share = counts[name][0] / max(1, counts[name][1])
            if share < value - tolerance:
                raise AssertionError(f"sparsity of {name} is {share:.4f}, expected {value:g}; layers: {listing}")


def _zeros(network: nn.Module | str | os.PathLike[str]) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Zeros and weights of each layer; and the names of those that one common share is about."""
    if isinstance(network, PreparedModel):
        counts = {name: _of_layer(name, layer) for name, layer in _layers(network)}
        prunable = [name for name, layer in _layers(network) if layer.prunable]
        return counts, prunable or list(counts)
    if isinstance(network, nn.Module):
        kinds = (nn.modules.conv._ConvNd, nn.Linear)
        weights = {name: module.weight for name, module in network.named_modules() if isinstance(module, kinds)}
        counts = {name: (int((weight == 0).sum()), weight.numel()) for name, weight in weights.items()}
        return counts, list(counts)
    from pqk_ext.runtime.sizes import inspect

    stored = {weight.node: weight for weight in inspect(Path(network)).weights}
    counts = {name: (weight.count - weight.nonzeros, weight.count) for name, weight in stored.items()}
    return counts, list(counts)


def _layers(model: PreparedModel) -> list[tuple[str, PQKLayer]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, PQKLayer)]


def _of_layer(name: str, layer: PQKLayer) -> tuple[int, int]:
    weight = layer.student_weight().detach()
    leaked = int((weight[~layer.weight_mask] != 0).sum())
    if leaked:
        raise AssertionError(f"{name}: {leaked} weights under the mask are not 0")
    return int((weight == 0).sum()), weight.numel()
