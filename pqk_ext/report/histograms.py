"""Histograms of weights and their codes, from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pqk_ext.diagnostics import code_counts
from pqk_ext.nn.weight_grid import grid_codes, steps_and_limits
from pqk_ext.report.run import Run
from pqk_ext.report.svg import COLOURS, Picture, new_figure, render, styled

__all__ = ["MOST_LAYERS", "histograms"]

MOST_LAYERS = 24
_BINS = 49


def histograms(run: Run) -> list[tuple[str, Picture]]:
    """For each of the first 24 layers with weights its name, and a picture of its kept weights and their codes."""
    layers = {layer["name"]: layer for layer in run.diagnoses[-1]["layers"]} if run.diagnoses else {}
    pictures = []
    for number, (name, weight) in enumerate(_weights(run.weights)):
        if number == MOST_LAYERS:
            break
        kept = run.weights.get(f"{name}.weight_mask", torch.ones_like(weight, dtype=torch.bool))
        scale, layer = run.weights.get(f"{name}.weight_scale"), layers.get(name)
        bits = run.weights.get(f"{name}.weight_bits")
        codes = None if scale is None or layer is None else _codes(weight, scale, layer, bits)[kept]
        pictures.append((name, _picture(number, name, weight[kept], codes, layer["bits"] if layer else None)))
    return pictures


def _codes(weight: Tensor, scale: Tensor, layer: dict[str, Any], bits: Tensor | None = None) -> Tensor:
    """Codes of all weights, as training computes them for those that are kept; the shape of ``weight``.

    Args:
        bits: of each channel or weight by output channel, where they have their own.
    """
    transposed = layer["op"].startswith("conv_transpose")  # there output channels stand second, in each group
    channels = weight
    if transposed:
        groups = len(scale) // weight.shape[1]
        channels = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    step, limit = torch.ones(()), torch.tensor(2.0 ** (layer["bits"] - 1) - 1)
    if bits is not None:
        step, limit = steps_and_limits(bits, layer["bits"], weight.dim())
    codes = grid_codes(channels, scale, step, limit)
    return codes.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1) if transposed else codes


def _weights(state: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Layers that are quantized; in a float network, those with at least two dimensions."""
    quantized = [key.removesuffix(".weight_scale") for key in state if key.endswith(".weight_scale")]
    if not quantized:
        every = [key for key, value in state.items() if key.endswith(".weight") and value.dim() >= 2]
        quantized = [key.removesuffix(".weight") for key in every]
    for name in quantized:
        weight = state.get(f"{name}.weight")
        if isinstance(weight, Tensor) and weight.is_floating_point():
            yield name, weight.float()


@styled
def _picture(number: int, name: str, kept: Tensor, codes: Tensor | None, bits: int | None) -> Picture:
    figure, axes = new_figure(1.7, 1 if codes is None else 2, squeeze=False)
    plots = axes[0]
    finite = kept[kept.isfinite()]
    if finite.numel():
        counts, edges = torch.histogram(finite, _BINS)
        plots[0].stairs(counts.tolist(), edges.tolist(), fill=True, color=COLOURS[0])
    plots[0].set_title("weights" if codes is None else "kept weights")
    text = f"Histogram of {kept.numel()} weights of {name}"
    if finite.numel():
        text += f", from {float(finite.min()):.3g} to {float(finite.max()):.3g}, mean {float(finite.mean()):.3g}"
    if codes is not None and bits is not None:
        largest = 2 ** (bits - 1) - 1
        counts = code_counts(codes, -largest, largest)
        plots[1].stairs(
            counts.tolist(), [code - 0.5 for code in range(-largest, largest + 2)], fill=True, color=COLOURS[1]
        )
        plots[1].set_title(f"codes, {bits} bits")
        plots[1].locator_params(axis="x", nbins=5, integer=True)
        text += f"; {int((counts > 0).sum())} of {counts.numel()} codes are used"
    for plot in plots:
        plot.set_yticks([])
        plot.spines["left"].set_visible(False)
        plot.grid(False)
        plot.tick_params(labelsize=8)
    return render(f"histogram{number}", name, text + ".", figure)
