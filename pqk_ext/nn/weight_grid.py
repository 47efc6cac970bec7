"""Weights of one layer with different numbers of bits: by output channel, or by group of weights.

A weight's code is ``clamp(rint(weight / (scale * step)), -limit, limit) * step`` with ``limit = 2**(bits - 1) - 1``.
Bits by output channel have ``step = 1``: the channel's own scale stands for its own bits. Bits by weight (groups are
weights of equal bits) have ``step = 2**(widest - bits)``: their codes are some of those of the layer's widest bits, so
that all groups of a channel share its scale and the integer kernels need not know of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pqk_ext.ops._transforms import with_gradients

__all__ = [
    "FEWEST_BITS",
    "bits_of_groups",
    "check_bits",
    "fake_quantize_grid",
    "grid_codes",
    "level_histograms",
    "steps_and_limits",
]

FEWEST_BITS = 2
_SHARES = 2.0**20  # as in soft_histogram: sums of shares are exact in any order


def check_bits(bits: Tensor, shape: torch.Size, widest: int) -> None:
    """Raises unless ``bits`` is a grid for a weight.

    Args:
        bits: what is checked.
        shape: of the weight by output channel, ``(O, ...)``.
        widest: bits of the layer.

    Raises:
        TypeError: not a tensor of integers.
        ValueError: neither of shape ``(O,)`` nor of the weight's, or bits outside 2..widest.
    """
    if not isinstance(bits, Tensor) or bits.is_floating_point() or bits.is_complex() or bits.dtype == torch.bool:
        found = bits.dtype if isinstance(bits, Tensor) else type(bits).__name__
        raise TypeError(f"bits: expected a tensor of integers, got {found}")
    if bits.shape not in (shape[:1], shape):
        raise ValueError(f"bits: expected shape {tuple(shape[:1])} or {tuple(shape)}, got {tuple(bits.shape)}")
    if bits.numel() and not (int(bits.min()) >= FEWEST_BITS and int(bits.max()) <= widest):
        raise ValueError(
            f"bits: expected {FEWEST_BITS} to {widest}, those of the layer, got {int(bits.min())} to {int(bits.max())}"
        )


def bits_of_groups(bits: Tensor, shape: torch.Size | tuple[int, ...], group_size: int) -> Tensor:
    """Bits of every weight from bits of groups of consecutive weights.

    Args:
        bits: shape ``(groups,)``, in the order of the flattened weight.
        shape: of the weight by output channel.
        group_size: weights in a group; the last group may have fewer.

    Raises:
        ValueError: another number of groups than the weight has.
    """
    number = torch.Size(shape).numel()
    groups = -(-number // group_size)
    if bits.shape != (groups,):
        raise ValueError(f"bits: expected shape ({groups},) for {number} weights, got {tuple(bits.shape)}")
    return bits.repeat_interleave(group_size)[:number].reshape(shape)


def steps_and_limits(bits: Tensor, widest: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Step and limit of every weight, float32, to be broadcast against a weight by output channel.

    Args:
        bits: shape ``(O,)``, or that of the weight.
        widest: bits of the layer.
        dimensions: of the weight.
    """
    whole = bits.int()
    one = torch.ones_like(whole)
    limit = (torch.bitwise_left_shift(one, whole - 1) - 1).float()  # a shift: exp2 need not be exact
    if bits.dim() == 1:
        limit = limit.view(-1, *[1] * (dimensions - 1))
        return torch.ones_like(limit), limit
    return torch.bitwise_left_shift(one, widest - whole).float(), limit


def _ratio(weight: Tensor, scale: Tensor, step: Tensor) -> Tensor:
    # The kernels' product with 1 / scale; division by a step, a power of two, rounds nothing.
    inv_scale = (torch.ones_like(scale) / scale).view(-1, *[1] * (weight.dim() - 1))
    return weight * inv_scale / step


def grid_codes(weight: Tensor, scale: Tensor, step: Tensor, limit: Tensor) -> Tensor:
    """Codes as whole float32 numbers, in the shape of ``weight``; a NaN stays NaN.

    Args:
        weight: float32 by output channel, ``(O, ...)``.
        scale: float32 ``(O,)``.
        step: of :func:`steps_and_limits`.
        limit: of :func:`steps_and_limits`.
    """
    return torch.clamp(_ratio(weight, scale, step).round(), -limit, limit) * step


def fake_quantize_grid(
    weight: Tensor, scale: Tensor, step: Tensor, limit: Tensor, *, mask: Tensor | None, grad_scale: Tensor | float
) -> Tensor:
    """The values of :func:`grid_codes`, differentiable as :func:`pqk_ext.ops.fake_quantize.fake_quantize` is.

    The gradient is straight-through for weights within the limit of their code. That of the scale is LSQ's (Esser et
    al. 2020), where an element's error is that of its code: ``step * (rint(u) - u)`` with ``u = weight / (scale *
    step)``, or ``step * clamp(u)`` beyond the limit.

    Args:
        weight: float32 by output channel, ``(O, ...)``.
        scale: float32 ``(O,)``.
        step: of :func:`steps_and_limits`.
        limit: of :func:`steps_and_limits`.
        mask: bool of the weight's shape; exact zeros without gradients where False.
        grad_scale: factor on the gradient of ``scale``, a number or one a channel ``(O, 1, ...)``.
    """
    values_scale = scale.detach()
    spread = [-1, *[1] * (weight.dim() - 1)]
    u = _ratio(weight.detach(), values_scale, step)
    rounded = u.round()
    inside = rounded.abs() <= limit
    counts = ~u.isnan() if mask is None else mask & ~u.isnan()
    codes = torch.clamp(rounded, -limit, limit) * step
    values = codes * values_scale.view(spread)
    if mask is not None:
        values = torch.where(mask, values, 0.0)
    of_scale = torch.where(inside, (rounded - u) * step, codes)
    of_scale = torch.where(counts, of_scale, 0.0) * grad_scale
    return with_gradients(values, [((inside & counts).to(weight.dtype), weight), (of_scale, scale.view(spread))])


def level_histograms(
    weight: Tensor, scale: Tensor, bits: Tensor, widest: int, *, mask: Tensor | None, grad_scale: Tensor | float
) -> list[Tensor]:
    """How often each code occurs among the weights of 2, 3, ... ``widest`` bits, softly, with gradients.

    As :func:`pqk_ext.ops.soft_histogram.soft_histogram`, for each number of bits apart and in units of its step.

    Returns:
        For each number of bits float64 counts of the codes ``-limit..limit``; zeros where no weight has that number.
    """
    step, limit = steps_and_limits(bits, widest, weight.dim())
    own = scale.detach()
    factor = grad_scale.view(-1) if isinstance(grad_scale, Tensor) else grad_scale
    kept = weight if mask is None else torch.where(mask, weight, 0.0)
    u = torch.clamp(_ratio(kept, own + (scale - own) * factor, step), -limit, limit)
    below = u.detach().nan_to_num().floor()
    fraction = u - below
    fraction = torch.where(fraction.detach() == 0, torch.zeros_like(fraction), fraction)
    share = (fraction.detach() * _SHARES + 0.5).floor() / _SHARES + (fraction - fraction.detach())
    # One histogram behind the other, each with a bin more than it has codes, for the share above its last one.
    lengths = [2**level for level in range(FEWEST_BITS, widest + 1)]
    starts = torch.tensor([0] * FEWEST_BITS + [sum(lengths[:i]) for i in range(len(lengths))], device=weight.device)
    start = starts[bits.long()]
    start = start.view(limit.shape) if bits.dim() == 1 else start
    bins = (below.long() + limit.long() + start).flatten()
    shares = share.double().flatten()
    counts = torch.zeros(sum(lengths) + 1, dtype=torch.float64, device=weight.device)
    counts = counts.index_add(0, bins, 1 - shares).index_add(0, bins + 1, shares)[:-1]
    counts = torch.where(u.detach().isnan().any(), torch.full_like(counts, torch.nan), counts)
    return [part[:-1] for part in counts.split(lengths)]
