"""The diagnosis of an activation quantizer."""

from __future__ import annotations

import torch
from torch import Tensor

from pqk_ext.diagnostics.measures import code_counts, entropy_bits, sqnr_db
from pqk_ext.diagnostics.records import FIRST_CHANNELS, ActivationDiagnosis
from pqk_ext.nn import ActivationQuantizer

__all__ = ["diagnose_activation"]


@torch.no_grad()
def diagnose_activation(
    quantizer: ActivationQuantizer,
    value: Tensor,
    output: Tensor,
    reference: Tensor,
    *,
    name: str = "",
    op: str = "",
    layer: str | None = None,
    start: Tensor | None = None,
) -> ActivationDiagnosis:
    """Measures one quantizer; see :class:`ActivationDiagnosis`.

    Args:
        quantizer: the quantizer.
        value: what it read, shape ``(N, C, ...)``.
        output: what it gave for it.
        reference: the same tensor in a network without quantization.
        name, op, layer: what the result calls it.
        start: its scale at the start of quantization.
    """
    scale, zero_point, quant_max = float(quantizer.scale), int(quantizer.zero_point), quantizer.quant_max
    counts = code_counts((output / quantizer.scale).round() + zero_point, 0, quant_max)
    low, high = (float(edge) for edge in torch.aminmax(value))
    range_min, range_max = -zero_point * scale, (quant_max - zero_point) * scale
    others = [dim for dim in range(output.dim()) if dim != 1]
    least, largest = output.amin(others), output.amax(others)
    constant = (least == largest).nonzero().flatten().tolist()
    below = low < range_min - scale / 2
    above = high > range_max + scale / 2
    return ActivationDiagnosis(
        name=name,
        op=op,
        layer=layer,
        bits=quant_max.bit_length(),
        sqnr_db=sqnr_db(value, output),
        accumulated_sqnr_db=sqnr_db(reference, output),
        min=low,
        max=high,
        range_min=range_min,
        range_max=range_max,
        clipped_low=int((value < range_min - scale / 2).sum()) / value.numel() if below else 0.0,
        clipped_high=int((value > range_max + scale / 2).sum()) / value.numel() if above else 0.0,
        scale=scale,
        zero_point=zero_point,
        drift=None if start is None else scale / float(start),
        used_codes=int((counts > 0).sum()) / counts.numel(),
        entropy_bits=entropy_bits(counts),
        channels=output.shape[1],
        zero_channels=int(((least == 0) & (largest == 0)).sum()),
        constant_channels=len(constant),
        first_constant_channels=tuple(constant[:FIRST_CHANNELS]),
    )
