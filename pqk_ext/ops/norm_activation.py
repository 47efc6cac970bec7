"""Batch norm + residual addition + ReLU or ReLU6 + fake-quantize (`csrc/core/norm_activation.h`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pqk_ext.ops._spec import OpSpec, Sample, layouts, register
from pqk_ext.ops._transforms import transforms_active
from pqk_ext.ops.fake_quantize import fake_quantize

__all__ = ["norm_activation"]

_BOUNDS = {None: (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}


def norm_activation(
    input: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    batch_statistics: bool = False,
    eps: float = 1e-5,
    activation: str | None = None,
    quant_max: int = 255,
    grad_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """What follows a convolution in training, in one step: differentiable, and keeps nothing but its inputs.

    ``fake_quantize(activation((input - mean) / sqrt(variance + eps) * weight + bias + residual))``. Forward reads
    ``input`` twice, backward twice; torch's own chain keeps a tensor for each link. Values and gradients are those
    of that chain up to float rounding; sums are taken in one fixed order: the same bits for any thread count and
    instruction set. The native kernels take float32 on the CPU and on CUDA; everything else goes through
    torch's operators.

    Args:
        input: floating, ``(N, C, ...)``, any memory format.
        residual: added after the batch norm; of ``input``'s shape.
        weight: float32 ``(C,)``; None is 1.
        bias: float32 ``(C,)``; None is 0.
        mean: float32 ``(C,)``, to normalize by, as a constant. Without it and without ``batch_statistics`` nothing is
            normalized.
        variance: float32 ``(C,)``, biased.
        scale: one element: fake-quantize to codes ``0..quant_max`` (LSQ, as :func:`pqk_ext.ops.fake_quantize`).
        zero_point: int32, one element.
        batch_statistics: normalize by mean and variance of the batch (Ioffe and Szegedy, 2015), with gradients.
        eps: added to the variance.
        activation: ``"relu"``, ``"relu6"`` or None.
        quant_max: largest code.
        grad_scale: factor on the gradient of ``scale``.

    Returns:
        The output in ``input``'s dtype and memory format, and the mean and biased variance that were used: float32
        ``(C,)``, without gradients; empty if nothing was normalized.

    Raises:
        RuntimeError: an argument of the wrong dtype or shape, or fewer than two values per channel for
            ``batch_statistics``; the message names it.
        ValueError: an unknown ``activation``.
    """
    if activation not in _BOUNDS:
        raise ValueError(f"activation: expected one of {', '.join(map(str, _BOUNDS))}, got {activation!r}")
    tensors = (input, residual, weight, bias, mean, variance, scale, zero_point)
    if not _is_native(tensors) or transforms_active():
        return _composite(*tensors, batch_statistics, eps, activation, quant_max, grad_scale)
    low, high = _BOUNDS[activation]
    args = (*tensors, batch_statistics, eps, low, high, quant_max, grad_scale)
    output: tuple[Tensor, Tensor, Tensor]
    if torch.compiler.is_compiling():
        output = torch.ops.pqk.norm_activation(*args)
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        output = _Eager.apply(*args)  # type: ignore[no-untyped-call]
    else:
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.pqk.norm_activation.default(*args)
    return output


def _is_native(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether the kernels take these: everything on one device, all but the zero point in float32."""
    given = [t for t in tensors if t is not None]
    device = given[0].device
    return device.type in ("cpu", "cuda") and all(
        t.device == device and t.dtype in (torch.float32, torch.int32) for t in given
    )


def _composite(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    batch_statistics: bool,
    eps: float,
    activation: str | None,
    quant_max: int,
    grad_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by torch's operators."""
    value = input
    if batch_statistics:
        dims = [d for d in range(input.dim()) if d != 1]
        with torch.no_grad():
            variance, mean = torch.var_mean(input.float(), dims, correction=0)
        value = F.batch_norm(input, None, None, weight, bias, True, 0.0, eps)
    elif mean is not None:
        value = F.batch_norm(input, mean, variance, weight, bias, False, 0.0, eps)
    if residual is not None:
        value = value + residual
    if activation is not None:
        value = F.relu(value) if activation == "relu" else F.relu6(value)
    if scale is not None and zero_point is not None:
        value = fake_quantize(value, scale, zero_point, quant_min=0, quant_max=quant_max, grad_scale=grad_scale)
    if mean is None or variance is None:
        mean = variance = input.new_empty(0, dtype=torch.float32)
    return value, mean, variance


@torch.library.register_fake("pqk::norm_activation")
def _(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    batch_statistics: bool,
    eps: float,
    low: float,
    high: float,
    quant_max: int,
    grad_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = input.shape[1] if batch_statistics or mean is not None else 0
    return torch.empty_like(input), input.new_empty(channels), input.new_empty(channels)


@torch.library.register_fake("pqk::norm_activation_backward")
def _(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    batch_statistics: bool,
    eps: float,
    low: float,
    high: float,
    quant_max: int,
    grad_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    channels = input.shape[1]
    separate = residual is not None and mean.shape[0] != 0
    grad_residual = torch.empty_like(input) if separate else input.new_empty(0)
    return (
        torch.empty_like(input),
        grad_residual,
        input.new_empty(channels),
        input.new_empty(channels),
        input.new_empty(1),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, residual, weight, bias, _, _, scale, zero_point, *constants = inputs
    _, mean, variance = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, variance)
    ctx.save_for_backward(input, residual, weight, bias, mean, variance, scale, zero_point)
    ctx.constants = constants


def _backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 14
    saved = ctx.saved_tensors
    scale = saved[6]
    grad_input, grad_residual, grad_weight, grad_bias, grad_scale = torch.ops.pqk.norm_activation_backward.default(
        grad_output, *saved, *ctx.constants
    )
    if saved[1] is not None and grad_residual.numel() == 0:
        grad_residual = grad_input  # nothing was normalized: both summands have the gradient of the sum
    gradients = (grad_input, grad_residual, grad_weight, grad_bias, None, None)
    needed = [g if needs else None for g, needs in zip(gradients, ctx.needs_input_grad, strict=False)]
    scale_gradient = grad_scale.view(scale.shape) if ctx.needs_input_grad[6] else None
    return (*needed, scale_gradient, *(None,) * 7)


class _Eager(torch.autograd.Function):
    """As the kernels registered below, at half of their cost a call."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            output: tuple[Tensor, Tensor, Tensor] = torch.ops.pqk.norm_activation.default(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _backward(ctx, *grads)


torch.library.register_autograd("pqk::norm_activation", _backward, setup_context=_save)


def norm_activation_reference(
    input: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    batch_statistics: bool = False,
    eps: float = 1e-5,
    activation: str | None = None,
    quant_max: int = 255,
    grad_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch in float64, from the formulas; forward only."""
    shape = [1, -1] + [1] * (input.dim() - 2)
    value = input.detach().double()
    if batch_statistics:
        rows = value.transpose(0, 1).flatten(1)
        mean = rows.mean(1)
        variance = (rows - mean[:, None]).square().mean(1)
    if mean is not None and variance is not None:
        value = (value - mean.double().view(shape)) / (variance.double().view(shape) + eps).sqrt()
        value = value * (1.0 if weight is None else weight.detach().double().view(shape))
        value = value + (0.0 if bias is None else bias.detach().double().view(shape))
    else:
        mean = variance = input.new_empty(0)
    if residual is not None:
        value = value + residual.detach().double()
    if activation is not None:
        value = value.clamp(0.0, 6.0 if activation == "relu6" else math.inf)
    if scale is not None and zero_point is not None:
        codes = ((value / scale.detach().double()).round() + zero_point).clamp(0, quant_max)
        value = (codes - zero_point) * scale.detach().double()
    return value.to(input.dtype), mean.float(), variance.float()


_SHAPES = [(2, 3), (5, 16), (7, 40), (2, 3, 5, 7), (3, 17, 9, 2), (2, 1, 6, 6), (4, 64, 8, 8), (3, 5, 70, 70)]


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    for shape in _SHAPES:
        channels = shape[1]
        for input in layouts(rand(*shape) * 3 + 5):
            parameters = (rand(channels) + 1, rand(channels))
            statistics = (rand(channels) + 5, rand(channels).square() + 1)
            quantizer = (torch.tensor([0.11]), torch.tensor([7], dtype=torch.int32))
            batch: dict[str, Any] = {"batch_statistics": True}
            yield (input, rand(*shape), *parameters, None, None, *quantizer), {"activation": "relu", **batch}
            yield (input, None, *parameters, None, None, *quantizer), {"activation": "relu6", "quant_max": 15, **batch}
            yield (input, rand(*shape)), {"activation": "relu"}
            yield (input, None, *parameters, *statistics, *quantizer), {"eps": 1e-3}
            yield (input,), batch
    yield (torch.empty(0, 3, 2, 2), None, rand(3), rand(3), rand(3), rand(3).square()), {"activation": "relu"}


def _opcheck_samples() -> Iterator[Sample]:
    for args, kwargs in list(_samples())[60:65]:  # with a batch, channels and both dimensions
        leaves = [a if a is None or not a.is_floating_point() else a.detach().clone().requires_grad_() for a in args]
        leaves += [None] * (8 - len(leaves))
        leaves[4:6] = [None if s is None else s.detach() for s in leaves[4:6]]
        low, high = _BOUNDS[kwargs.get("activation")]
        constants = (kwargs.get("eps", 1e-5), low, high, kwargs.get("quant_max", 255), 0.5)
        yield (*leaves, kwargs.get("batch_statistics", False), *constants), {}


NORM_ACTIVATION = register(
    OpSpec(
        name="norm_activation",
        overload=torch.ops.pqk.norm_activation.default,
        function=norm_activation,
        reference=norm_activation_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
        exact=False,
    )
)
