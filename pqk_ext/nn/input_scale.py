"""The gradient of the input quantizer's scale without the gradient of the input.

LSQ needs the scalar ``<dL/dq, dq/dscale>`` for the quantized input ``q``. The layer that reads ``q`` is linear, so this
is ``<dL/doutput, layer(dq/dscale)>``: one more forward pass of that layer in place of its backward pass to the input,
which nobody else asks for and which is slow where images have one or three channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pqk_ext.nn.activation import ActivationQuantizer
from pqk_ext.ops._transforms import transforms_active

__all__ = ["learns_scale_alone", "with_scale_gradient"]


def learns_scale_alone(quantizer: ActivationQuantizer, input: Tensor) -> bool:
    """Whether of the two arguments only the scale gets a gradient, in plain eager mode."""
    return (
        torch.is_grad_enabled()
        and quantizer.scale.requires_grad
        and not input.requires_grad
        and not torch.compiler.is_compiling()
        and not transforms_active()
    )


def with_scale_gradient(
    output: Tensor, input: Tensor, quantizer: ActivationQuantizer, layer: Callable[[Tensor], Tensor]
) -> Tensor:
    """``output`` with the gradient of the quantizer's scale.

    Args:
        output: ``layer`` of the quantized input, plus a constant; computed without a gradient to the input.
        input: what was quantized.
        quantizer: with a scale to learn.
        layer: the linear function, of constant weights.
    """
    result: Tensor = _ScaleGradient.apply(output, quantizer.scale, input, quantizer, layer)  # type: ignore[no-untyped-call]
    return result


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        scale: Tensor,
        input: Tensor,
        quantizer: ActivationQuantizer,
        layer: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(scale, input, quantizer.zero_point)
        ctx.layer, ctx.quant_max, ctx.factor = layer, quantizer.quant_max, quantizer.scale_factor(input)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, input, zero_point = ctx.saved_tensors
        scaled = input * (1.0 / scale)
        rounded = scaled.round()
        codes = rounded + zero_point
        clamped = codes.clamp(0, ctx.quant_max)
        # As in fake_quantize: inside the range what rounding added, outside the code itself; nothing for a NaN.
        slope = torch.where(clamped == codes, rounded - scaled, clamped - zero_point).nan_to_num_(0.0, 0.0, 0.0)
        products = grad * ctx.layer(slope)
        # Channels first, as sums that no thread shares: the same bits for any number of threads.
        gradient = products.sum([d for d in range(products.dim()) if d != 1]).sum() * ctx.factor
        return grad, gradient.view(scale.shape), None, None, None
