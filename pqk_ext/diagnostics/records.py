"""What a diagnosis found, as dataclasses that become plain JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

__all__ = ["FIRST_CHANNELS", "ActivationDiagnosis", "Agreement", "Diagnosis", "LayerDiagnosis"]

FIRST_CHANNELS = 16  # indices of dead channels that are kept; all of them are counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerDiagnosis:
    """The weights of one layer. Shares are in [0, 1]; "kept" weights are those that the mask lets through.

    Attributes:
        name: path of the layer.
        op: ``conv2d``, ``linear``, ``conv_transpose2d`` and so on.
        shape: of the weight, ``(out_channels, in_channels / groups, ...)``.
        bits: of a weight code; the most, where channels or weights have bits of their own.
        prunable: whether it may be pruned.
        sqnr_db: quantized against float kept weights, in dB; ``inf``: no loss.
        sparsity: share of the weights that the mask sets to zero.
        rounded_to_zero: share of the weights that are kept, but rounded to code 0; in addition to ``sparsity``.
        min, max: of the kept weights; 0 if there are none.
        clipped_low, clipped_high: share of the kept weights below and above the range of the codes.
        scale_min, scale_median, scale_max: of the channels' step sizes.
        drift, drift_min, drift_max: step sizes now / at the start of quantization: median, least, largest over the
            channels; None if the start is not known.
        used_codes: share of the ``2 * quant_max + 1`` codes that some kept weight has.
        entropy_bits: entropy of the kept weights' codes.
        dead_channels: output channels whose codes are all 0.
        first_dead_channels: indices of the first 16 of them.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    bits: int
    prunable: bool
    sqnr_db: float
    sparsity: float
    rounded_to_zero: float
    min: float
    max: float
    clipped_low: float
    clipped_high: float
    scale_min: float
    scale_median: float
    scale_max: float
    drift: float | None
    drift_min: float | None
    drift_max: float | None
    used_codes: float
    entropy_bits: float
    dead_channels: int
    first_dead_channels: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationDiagnosis:
    """One quantizer of activations over the batch. Shares are in [0, 1].

    Attributes:
        name: key of the quantizer.
        op: operation of its block.
        layer: path of the block's layer, or None.
        bits: of a code.
        sqnr_db: its output against its own input, in dB: what this quantizer alone loses.
        accumulated_sqnr_db: its output against the same tensor of a network with the same pruned weights in which
            nothing is quantized: what all quantization up to here loses.
        min, max: of its input.
        range_min, range_max: what its codes can stand for.
        clipped_low, clipped_high: share of its input that lies more than half a step below and above that range.
        scale: its step size.
        zero_point: the code of 0.
        drift: step size now / at the start of quantization; None if the start is not known.
        used_codes: share of its codes that occur.
        entropy_bits: entropy of its codes.
        channels: of its tensor.
        zero_channels: channels that are 0 everywhere in the batch.
        constant_channels: channels with one and the same value everywhere, 0 or not.
        first_constant_channels: indices of the first 16 of them.
    """

    name: str
    op: str
    layer: str | None
    bits: int
    sqnr_db: float
    accumulated_sqnr_db: float
    min: float
    max: float
    range_min: float
    range_max: float
    clipped_low: float
    clipped_high: float
    scale: float
    zero_point: int
    drift: float | None
    used_codes: float
    entropy_bits: float
    channels: int
    zero_channels: int
    constant_channels: int
    first_constant_channels: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """How student and teacher answer the batch.

    Attributes:
        same_class: share of the samples to which both give the same class.
        kl: the distillation loss, ``T^2 KL(teacher || student)``.
        temperature: its T.
        student_accuracy, teacher_accuracy: share of right answers; None without labels.
    """

    same_class: float
    kl: float
    temperature: float
    student_accuracy: float | None
    teacher_accuracy: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The state of a prepared model, seen through one batch.

    Attributes:
        step: training steps done.
        phase: 1 or 2.
        quantizing: whether training uses fake quantization already.
        samples: of the batch.
        sparsity: share of the prunable weights that the masks set to zero.
        logits_sqnr_db: the student's logits against those of the same pruned network in float: what quantization
            loses.
        dense_logits_sqnr_db: the student's logits against those of all weights in float: what pruning and quantization
            lose. None in phase 2, and wherever the weights pruned away belong to a teacher.
        agreement: with the teacher, once it has begun; else None.
        layers: in the order of the network.
        activations: in the order of the network.
    """

    step: int
    phase: int
    quantizing: bool
    samples: int
    sparsity: float
    logits_sqnr_db: float
    dense_logits_sqnr_db: float | None
    agreement: Agreement | None
    layers: tuple[LayerDiagnosis, ...]
    activations: tuple[ActivationDiagnosis, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: six digits of each number, None in place of infinite ones (no loss) and of NaN."""
        result: dict[str, Any] = _plain(dataclasses.asdict(self))
        return result


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
