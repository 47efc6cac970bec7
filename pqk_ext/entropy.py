"""How many bytes the weights of a network in training will take in its file, as something that can be minimized."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.nn import PQKLayer
from pqk_ext.ops.soft_histogram import soft_histogram

__all__ = ["coded_size", "coded_sizes"]

_SMALLEST_COUNT = 2.0**-20  # what an empty bin is taken to hold: keeps the logarithm, and so the gradient, finite


def coded_size(model: nn.Module, *, rounded: bool = False) -> Tensor:
    """Estimated bytes of all quantized weights in the file, differentiable in the weights and their step sizes.

    The estimate is the order-0 entropy of each layer's integer codes, pruned weights being exact zeros; by the chain
    rule this is the entropy of the mask of non-zeros plus that of the values of the non-zeros. Scales, biases, code
    tables and metadata are not in it. Add it to any loss::

        loss = F.cross_entropy(model(x), y) + weight * pqk_ext.coded_size(model)

    To have a gradient, codes are counted softly (:func:`pqk_ext.ops.soft_histogram`): a weight between two codes counts
    for both. To have a useful one, each code is priced by a smoothed histogram, in which non-zero codes lend to their
    neighbours as far as the number of weights suggests (discrete Gaussian kernel, Lindeberg, "Scale-Space for Discrete
    Signals", PAMI 1990; width by Silverman's rule, taken as constant). Without it each weight is held by the code that
    it happens to share with a few others: that costs accuracy and keeps step sizes from growing, which is what saves
    most. Gradients reach unpruned weights and step sizes alone. Those of the step sizes carry the factor of LSQ (Esser
    et al. 2020) that their gradients of the task loss carry, so that the two stay in proportion. Entropy as a training
    loss follows Oktay et al., "Scalable Model Compression by Entropy Penalized Reparameterization" (ICLR 2020).

    Args:
        model: what :func:`pqk_ext.prepare` returned, or a module around it.
        rounded: count each weight for the code that the file will hold, and smooth nothing. This is the entropy of the
            exported weights itself, and has no gradient.

    Returns:
        float32 scalar, in bytes. At 8 bits the smoothed estimate is some percent above the rounded one.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no quantized layer.
    """
    return _bytes(_layers(model), rounded).sum().float()


def coded_sizes(model: nn.Module, *, rounded: bool = False) -> dict[str, Tensor]:
    """The same as :func:`coded_size` by layer: name of the layer -> float32 scalar in bytes."""
    layers = _layers(model)
    return dict(zip(layers, _bytes(layers, rounded).float().unbind(), strict=True))


def _layers(model: nn.Module) -> dict[str, PQKLayer]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PQKLayer)}
    if not layers:
        raise ValueError("model has no quantized layer; pqk_ext.prepare makes a model that has")
    return layers


def _bytes(layers: dict[str, PQKLayer], rounded: bool) -> Tensor:
    """float64, one entry a layer."""
    bins = 2 * max(layer.weight_quant_max for layer in layers.values()) + 1
    device = next(iter(layers.values())).weight.device
    histograms, limits, steps, owners = [], [], [], []
    for number, layer in enumerate(layers.values()):
        exact = [(_rounded_histogram(layer), layer.weight_quant_max, 1)] if rounded else None
        for counts, limit, step in exact or layer.weight_histograms():
            missing = (bins - counts.numel()) // 2
            histograms.append((F.pad(counts, (missing, missing)) if missing else counts).to(device))
            limits.append(limit)
            steps.append(step)
            owners.append(number)
    counts = torch.stack(histograms)
    model = counts if rounded else _smoothed(counts, torch.tensor(limits, device=device))
    if len(owners) > len(layers):
        place = torch.tensor(owners, device=device), torch.tensor(steps, device=device)
        counts, model = (_together(values, *place, len(layers)) for values in (counts, model))
    return _cost(counts, model) / 8


def _together(values: Tensor, owner: Tensor, step: Tensor, layers: int) -> Tensor:
    """Histograms of a layer's weights of 2, 3, ... bits, each in units of its step, as one of the codes in the file."""
    bins = values.shape[1]
    code = (torch.arange(bins, device=values.device) - bins // 2) * step[:, None]
    inside = code.abs() <= bins // 2  # others are the padding of short histograms, and 0
    at = owner[:, None] * bins + torch.where(inside, code, 0) + bins // 2
    total = values.new_zeros(layers * bins)
    return total.index_add(0, at.flatten(), torch.where(inside, values, 0.0).flatten()).view(layers, bins)


def _logarithm(counts: Tensor) -> Tensor:
    return counts.clamp_min(_SMALLEST_COUNT).log2()


def _cost(counts: Tensor, model: Tensor) -> Tensor:
    """Bits of codes that occur ``counts`` times, coded as if they occurred ``model`` times."""
    return counts.sum(1) * _logarithm(model.sum(1)) - (counts * _logarithm(model)).sum(1)


def _smoothed(counts: Tensor, limits: Tensor) -> Tensor:
    """The counts with those of non-zero codes spread over their neighbours; the zeros, mostly pruned, stay apart."""
    bins = counts.shape[1]
    code = torch.arange(bins, device=counts.device) - bins // 2
    possible = (code != 0) & (code.abs() <= limits[:, None])
    values = counts * possible
    with torch.no_grad():
        number = values.sum(1).clamp_min(1.0)
        spread = ((values * code.square()).sum(1) / number).sqrt()
        width = 1.06 * spread * number**-0.2
    length = 2 * bins  # room for the kernel's tails, which would else come round to the other end
    frequency = torch.arange(bins + 1, dtype=counts.dtype, device=counts.device) * (math.pi / bins)
    response = torch.exp(width.square()[:, None] * (frequency.cos() - 1))
    spread_out = torch.fft.irfft(torch.fft.rfft(values, length) * response, length)[:, :bins] * possible
    lost = values.sum(1) / spread_out.sum(1).clamp_min(_SMALLEST_COUNT)  # to zero and beyond the last codes
    return torch.where(code == 0, counts, spread_out * lost[:, None])


@torch.no_grad()
def _rounded_histogram(layer: PQKLayer) -> Tensor:
    """Of the codes that the layer will be exported with."""
    codes = layer.by_channel((layer.student_weight() / layer.scale_of_weights()).round())
    return soft_histogram(codes, torch.ones_like(layer.weight_scale), quant_max=layer.weight_quant_max)
