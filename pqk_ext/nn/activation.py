"""The quantizer that stands on a tensor of activations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pqk_ext.ops.fake_quantize import fake_quantize
from pqk_ext.quant import activation_range, range_to_qparams

__all__ = ["ActivationQuantizer"]

_SAMPLES_PER_BATCH = 8192
_MOMENTUM = 0.1
_GOLDEN_RATIO = 2654435761  # 2**32 divided by it: neighbouring indices land far apart (Knuth)


# An operator, so that compilers need not follow its choices.
@torch.library.custom_op("pqk::observe", mutates_args=("scale", "zero_point", "low", "high", "batches"))
def _observe(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    low: Tensor,
    high: Tensor,
    batches: Tensor,
    quant_max: int,
    nonnegative: bool,
) -> None:
    samples = input.flatten()
    if samples.numel() == 0:
        return
    if samples.numel() > _SAMPLES_PER_BATCH:
        # Spread by a multiplicative hash: a plain stride would fall into step with channels or rows, and a
        # random choice would give another range for the same batch.
        at = torch.arange(_SAMPLES_PER_BATCH, device=samples.device) * _GOLDEN_RATIO % samples.numel()
        samples = samples[at]
    if not bool(torch.isfinite(samples).all()):
        raise ValueError("activations must be finite to choose a quantization range, got NaN or infinity")
    batch_low, batch_high = activation_range(samples, quant_max)
    weight = max(_MOMENTUM, 1.0 / (int(batches) + 1))
    low += weight * (batch_low - low)
    high += weight * (batch_high - high)
    batches += 1
    values = range_to_qparams(0.0 if nonnegative else float(low), float(high), quant_max)
    scale.fill_(values[0])
    zero_point.fill_(values[1])


class ActivationQuantizer(nn.Module):
    """Fake-quantizes activations to unsigned codes ``0..2**bits - 1``, one affine scale for the tensor.

    The scale is learned (LSQ, Esser et al. 2020); the zero point is fixed by the observed range and is 0 for
    tensors that are never negative. While it observes it passes its input through and follows its range.

    Attributes:
        scale: float32 parameter, shape ``()``.
        zero_point: int32 buffer, shape ``()``.
    """

    scale: nn.Parameter
    zero_point: Tensor
    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(self, bits: int, nonnegative: bool) -> None:
        super().__init__()
        self.quant_max = 2**bits - 1
        self.nonnegative = nonnegative
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))
        self.register_buffer("batches", torch.tensor(0, dtype=torch.int64))

    def reset(self) -> None:
        """Forgets what was observed."""
        self.batches.zero_()

    @torch.no_grad()
    def observe(self, input: Tensor) -> None:
        """Moves the range towards that of ``input`` and sets scale and zero point from it.

        Raises:
            ValueError: ``input`` holds NaN or infinity.
        """
        _observe(
            input.detach(),
            self.scale.detach(),
            self.zero_point,
            self.low,
            self.high,
            self.batches,
            self.quant_max,
            self.nonnegative,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Fake-quantized ``input``; gradients are straight-through for it and LSQ for the scale."""
        return fake_quantize(
            input,
            self.scale,
            self.zero_point,
            quant_min=0,
            quant_max=self.quant_max,
            grad_scale=self.scale_factor(input),
        )

    def scale_factor(self, input: Tensor) -> float:
        """On the gradient of the scale, which would else grow with the number of elements of an image (LSQ)."""
        return 1.0 / math.sqrt(max(1, math.prod(input.shape[1:])) * self.quant_max)

    def extra_repr(self) -> str:
        return f"quant_max={self.quant_max}, nonnegative={self.nonnegative}"
