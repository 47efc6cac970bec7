"""Fake-quantize with straight-through and LSQ gradients (`csrc/core/fake_quantize_cpu.cpp`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pqk_ext.ops._spec import OpSpec, Sample, layouts, register
from pqk_ext.ops._transforms import transforms_active, with_gradients

__all__ = ["fake_quantize"]


def fake_quantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    mask: Tensor | None = None,
    grad_scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """Rounds to the values that integer codes stand for; differentiable.

    ``(clamp(rint(input * (1 / scale)) + zero_point, quant_min, quant_max) - zero_point) * scale``, half to even.
    A NaN stays NaN and has gradient 0; infinities saturate. One pass over memory forward and one backward.

    Gradients, where ``q = rint(input / scale) + zero_point`` and ``g`` is the gradient of the output:

    - ``input``: ``g`` where ``quant_min <= q <= quant_max``, else 0 (straight-through estimator,
      https://arxiv.org/abs/1308.3432).
    - ``scale``: the sum of ``g * (rint(input / scale) - input / scale)`` in range and ``g * (clamp(q) -
      zero_point)`` outside (LSQ, https://arxiv.org/abs/1902.08153).
    - ``zero_point``, if floating: the sum of ``-g * scale`` outside the range (LSQ+,
      https://arxiv.org/abs/2004.09576).

    The sums are taken in one fixed order: the same bits for any thread count and instruction set. When only
    ``input`` needs a gradient, the backward pass keeps one bit an element and not ``input``.

    Args:
        input: float32, float64, bfloat16 or (computed in float32) float16; any shape and strides.
        scale: positive; float64 for float64 input, otherwise float32. One element without ``axis``, otherwise
            shape ``[input.shape[axis]]``.
        zero_point: as many elements as ``scale``; int32, or ``scale``'s dtype to learn it (rounded half to even).
            At most 2**23 in magnitude.
        quant_min: smallest code, at least -2**23.
        quant_max: largest code, at most 2**23.
        axis: channel dimension, or None for per tensor.
        mask: bool of ``input``'s shape, True = keep. Where False the output is exactly 0 whatever the zero
            point, and all gradients are 0.
        grad_scale: factor on the gradients of ``scale`` and ``zero_point``; LSQ uses
            ``1 / sqrt(elements * quant_max)``.
        out: where to write the result, of ``input``'s shape and dtype and any strides; may be ``input`` itself. Saves
            a fresh tensor, whose first use costs more than the arithmetic once it is some MB. Not differentiable.

    Returns:
        ``out``, or a new tensor. Same shape and dtype as ``input``, in its memory format (as ``torch.empty_like``).

    Raises:
        RuntimeError: an argument of the wrong dtype, shape or range; the message names it. On CUDA the values of
            ``scale`` and ``zero_point`` are not read back and so not checked. ``out`` where a gradient is wanted, or
            in memory that partly belongs to ``input`` or ``mask``.
    """
    if input.dtype == torch.float16:  # as autocast does
        input = input.float()
        values = fake_quantize(
            input,
            scale,
            zero_point,
            quant_min=quant_min,
            quant_max=quant_max,
            axis=axis,
            mask=mask,
            grad_scale=grad_scale,
        )
        return values.half()
    args = (input, scale, zero_point, quant_min, quant_max, axis, mask)
    has_gradient = torch.is_grad_enabled()
    learns = has_gradient and (scale.requires_grad or zero_point.requires_grad)
    straight_through = has_gradient and not learns and input.requires_grad
    output: Tensor
    if out is not None:
        if learns or straight_through or (has_gradient and out.requires_grad):
            raise RuntimeError(
                "pqk::fake_quantize: out takes no gradient, but input, scale, zero_point or out requires one; call it "
                "under torch.no_grad() or without out"
            )
        torch.ops.pqk.fake_quantize.out(*args, out=out)
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(out)  # so that backward notices if it had saved the old values
        return out
    if transforms_active():
        output = _transformable(*args, grad_scale)
    elif torch.compiler.is_compiling():
        if straight_through:
            output = torch.ops.pqk.fake_quantize_ste(*args)[0]
        else:
            output = torch.ops.pqk.fake_quantize(*args, grad_scale)
    elif straight_through:
        output = _EagerSte.apply(*args)  # type: ignore[no-untyped-call]
    elif learns:
        output = _EagerLsq.apply(*args, grad_scale)  # type: ignore[no-untyped-call]
    else:
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.pqk.fake_quantize.default(*args)
    return output


@torch.library.register_fake("pqk::fake_quantize")
def _(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    mask: Tensor | None = None,
    grad_scale: float = 1.0,
) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("pqk::fake_quantize.out")
def _(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    mask: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    torch._check(out.shape == input.shape, lambda: f"out must have the shape of input, {input.shape}, got {out.shape}")


@torch.library.register_fake("pqk::fake_quantize_ste")
def _(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), input.new_empty(((input.numel() + 7) // 8,), dtype=torch.uint8)


@torch.library.register_fake("pqk::fake_quantize_backward")
def _(
    grad_output: Tensor,
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    mask: Tensor | None = None,
    grad_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    zero_point_shape = zero_point.shape if zero_point.is_floating_point() else (0,)
    return torch.empty_like(input), scale.new_empty(scale.shape), scale.new_empty(zero_point_shape)


@torch.library.register_fake("pqk::fake_quantize_ste_backward")
def _(grad_output: Tensor, in_range: Tensor) -> Tensor:
    return torch.empty_like(grad_output)


def _save_for_lsq(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, scale, zero_point, quant_min, quant_max, axis, mask, grad_scale = inputs
    ctx.save_for_backward(input, scale, zero_point, mask)
    ctx.constants = (quant_min, quant_max, axis, grad_scale)


def _lsq_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, scale, zero_point, mask = ctx.saved_tensors
    quant_min, quant_max, axis, grad_scale = ctx.constants
    gradients = torch.ops.pqk.fake_quantize_backward.default(
        grad_output, input, scale, zero_point, quant_min, quant_max, axis, mask, grad_scale
    )
    needed = (gradient if needs else None for gradient, needs in zip(gradients, ctx.needs_input_grad, strict=False))
    return (*needed, None, None, None, None, None)


def _save_for_ste(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, in_range = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(in_range)
    ctx.save_for_backward(in_range)
    ctx.strides = values.stride()


def _ste_backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 7
    if grad_output.stride() != ctx.strides:
        in_order = torch.empty_strided(
            grad_output.shape, ctx.strides, dtype=grad_output.dtype, device=grad_output.device
        )
        grad_output = in_order.copy_(grad_output)
    gradient = torch.ops.pqk.fake_quantize_ste_backward.default(grad_output, *ctx.saved_tensors)
    return gradient, None, None, None, None, None, None


# In eager mode a plain autograd function in front of the ops costs a quarter of what the kernels registered below
# do, which is as much as the work on a small weight; compiled graphs and direct callers of the ops use the latter.
class _EagerLsq(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            output: Tensor = torch.ops.pqk.fake_quantize.default(*inputs)
        _save_for_lsq(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return _lsq_backward(ctx, grad_output)


class _EagerSte(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            output, in_range = torch.ops.pqk.fake_quantize_ste.default(*inputs)
        ctx.save_for_backward(in_range)
        ctx.strides = output.stride()
        return output  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return _ste_backward(ctx, grad_output, None)


torch.library.register_autograd("pqk::fake_quantize", _lsq_backward, setup_context=_save_for_lsq)
torch.library.register_autograd("pqk::fake_quantize_ste", _ste_backward, setup_context=_save_for_ste)


def _spread(channel_values: Tensor, input: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return channel_values.reshape(())
    shape = [1] * input.dim()
    shape[axis] = -1
    return channel_values.reshape(shape)


def fake_quantize_reference(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    mask: Tensor | None = None,
    grad_scale: float = 1.0,
) -> Tensor:
    """Plain torch, the same steps in the same precision; forward only."""
    wide = input.detach().to(scale.dtype)
    offset = _spread(zero_point.detach().round().to(scale.dtype), input, axis)
    inv_scale = _spread(torch.ones_like(scale) / scale.detach(), input, axis)
    codes = ((wide * inv_scale).round() + offset).clamp(quant_min, quant_max)
    values = ((codes - offset) * _spread(scale.detach(), input, axis)).to(input.dtype)
    return values if mask is None else torch.where(mask, values, 0.0)


def _transformable(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None,
    mask: Tensor | None,
    grad_scale: float,
) -> Tensor:
    """The same bits and first derivatives, by operators that ``torch.func`` can transform; the second are 0."""
    values = fake_quantize_reference(
        input, scale, zero_point, quant_min=quant_min, quant_max=quant_max, axis=axis, mask=mask
    )
    offset = _spread(zero_point.detach().round().to(scale.dtype), input, axis)
    ratio = input.detach().to(scale.dtype) * _spread(torch.ones_like(scale) / scale.detach(), input, axis)
    codes = ratio.round() + offset
    counts = ~ratio.isnan() if mask is None else mask & ~ratio.isnan()
    inside = (quant_min <= codes) & (codes <= quant_max)
    of_scale = torch.where(inside, ratio.round() - ratio, codes.clamp(quant_min, quant_max) - offset)
    terms = [
        ((inside & counts).to(input.dtype), input),
        (torch.where(counts, of_scale, 0.0) * grad_scale, _spread(scale, input, axis)),
    ]
    if zero_point.is_floating_point():
        of_zero_point = torch.where(counts & ~inside, -_spread(scale.detach(), input, axis), 0.0)
        terms.append((of_zero_point * grad_scale, _spread(zero_point, input, axis)))
    return with_gradients(values, terms)


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        for shape in [(3,), (0,), (4, 5), (2, 3, 5, 7), (3, 17, 33, 2), (40, 530)]:
            for input in layouts((rand(*shape) * 3).to(dtype)):
                scale = torch.tensor([0.05], dtype=parameter_dtype)
                yield (
                    (input, scale, torch.tensor([7], dtype=torch.int32)),
                    {"quant_min": 0, "quant_max": 255, "mask": rand(*shape) > 0},
                )
                for axis in range(-1, input.dim() - 1):
                    channels = input.shape[axis]
                    scale = (torch.rand(channels, generator=generator) * 0.1 + 0.01).to(parameter_dtype)
                    zero_point = rand(channels).mul(5).to(parameter_dtype)
                    yield (input, scale, zero_point), {"quant_min": -127, "quant_max": 127, "axis": axis}
    extremes = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 0.5, 1.5, 2.5, -0.0, 1e-40, -0.3])
    for value in (1.0, 1e-4, 3e38, 1.2e-38):
        yield (
            (extremes, torch.tensor([value]), torch.tensor([3], dtype=torch.int32)),
            {"quant_min": -8, "quant_max": 7},
        )


def _opcheck_samples() -> Iterator[Sample]:
    names = ("quant_min", "quant_max", "axis", "mask", "grad_scale")
    for args, kwargs in _samples():
        input, scale, zero_point = args
        input, scale = input.detach().requires_grad_(), scale.detach().requires_grad_()
        if zero_point.is_floating_point():
            zero_point = zero_point.detach().requires_grad_()
        yield (
            (input, scale, zero_point, *(kwargs.get(name, 1.0 if name == "grad_scale" else None) for name in names)),
            {},
        )


FAKE_QUANTIZE = register(
    OpSpec(
        name="fake_quantize",
        overload=torch.ops.pqk.fake_quantize.default,
        function=fake_quantize,
        reference=fake_quantize_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
    )
)
