"""The diagnosis of a layer's weights."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from pqk_ext.diagnostics.measures import code_counts, entropy_bits, sqnr_db
from pqk_ext.diagnostics.records import FIRST_CHANNELS, LayerDiagnosis
from pqk_ext.nn import PQKLayer

__all__ = ["diagnose_layer", "weight_codes"]


@torch.no_grad()
def weight_codes(layer: PQKLayer) -> Tensor:
    """The codes of the student's weights as whole float32 numbers, 0 where pruned; the shape of the weight."""
    return layer.from_channels(layer.weight_codes())


@torch.no_grad()
def diagnose_layer(layer: PQKLayer, *, name: str = "", start: Tensor | None = None) -> LayerDiagnosis:
    """Measures the weights of one layer; see :class:`LayerDiagnosis`.

    Args:
        layer: the layer.
        name: what the result calls it.
        start: its ``weight_scale`` at the start of quantization, shape ``(O,)``.
    """
    weight, mask, scale, quant_max = layer.weight, layer.weight_mask, layer.weight_scale, layer.weight_quant_max
    codes = weight_codes(layer)
    kept = torch.where(mask, weight, torch.zeros_like(weight))
    kept_count = max(1, int(mask.sum()))
    counts = code_counts(codes[mask], -quant_max, quant_max)
    steps = layer.scale_of_weights()
    step, limit = layer.steps_and_limits()
    edge = layer.from_channels(((limit + 0.5) * step).expand_as(layer.by_channel(weight))) * steps
    channels = layer.by_channel(codes)
    dead = (channels == 0).flatten(1).all(1).nonzero().flatten().tolist()
    drift = None if start is None else (scale / start.to(scale)).double()
    nonzero = int((codes != 0).sum())
    values = weight[mask]
    return LayerDiagnosis(
        name=name,
        op=_kind(layer),
        shape=tuple(channels.shape),
        bits=(quant_max + 1).bit_length(),
        prunable=layer.prunable,
        sqnr_db=sqnr_db(kept, codes * steps),
        sparsity=1 - int(mask.sum()) / max(1, mask.numel()),
        rounded_to_zero=(int(mask.sum()) - nonzero) / max(1, mask.numel()),
        min=float(values.min()) if values.numel() else 0.0,
        max=float(values.max()) if values.numel() else 0.0,
        clipped_low=int((kept < -edge).sum()) / kept_count,
        clipped_high=int((kept > edge).sum()) / kept_count,
        scale_min=float(scale.min()),
        scale_median=float(scale.median()),
        scale_max=float(scale.max()),
        drift=None if drift is None else float(drift.median()),
        drift_min=None if drift is None else float(drift.min()),
        drift_max=None if drift is None else float(drift.max()),
        used_codes=int((counts > 0).sum()) / counts.numel(),
        entropy_bits=entropy_bits(counts),
        dead_channels=len(dead),
        first_dead_channels=tuple(dead[:FIRST_CHANNELS]),
    )


def _kind(layer: PQKLayer) -> str:
    """``PQKConvTranspose2d`` is a ``conv_transpose2d``."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__.removeprefix("PQK")).lower()
