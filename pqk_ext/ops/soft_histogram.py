"""How often each integer code occurs among weights, with a gradient (`csrc/core/soft_histogram.h`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pqk_ext.ops._spec import OpSpec, Sample, layouts, register
from pqk_ext.ops._transforms import transforms_active

__all__ = ["soft_histogram"]

_SHARES = 2.0**20  # a share of an element is a whole number of these: sums are exact in any order


def soft_histogram(
    input: Tensor, scale: Tensor, *, quant_max: int, mask: Tensor | None = None, grad_scale: float = 1.0
) -> Tensor:
    """Counts the codes ``-quant_max..quant_max`` of symmetric per-channel quantization, differentiably.

    With ``u = clamp(input / scale, -quant_max, quant_max)`` and ``f = u - floor(u)``, an element counts ``1 - f`` for
    the code ``floor(u)`` and ``f`` for the next one: linear interpolation, that is a triangular kernel of width 1 on
    each code. The shares are rounded to multiples of 2**-20, so that counts do not depend on the order of summation.

    Gradients, where ``g`` is the gradient of the counts and ``d = g[floor(u) + 1] - g[floor(u)]`` an element's slope:

    - ``input``: ``d / scale``.
    - ``scale``: the sum over the channel of ``-d * u / scale``, times ``grad_scale``.

    ``d`` is 0 where ``u`` is an integer, at which the kernel has a corner (so a weight of 0 stays), where ``u`` was
    clamped, and where ``mask`` is False. The sums are taken in one fixed order.

    Args:
        input: shape ``(channels, ...)``. float32 on the CPU and on CUDA has kernels of its own; for other
            floating-point types and devices torch's operators do the same.
        scale: float, shape ``(channels,)``, positive.
        quant_max: largest code, 1 to 127.
        mask: bool of ``input``'s shape; where False an element is code 0, whatever it holds.
        grad_scale: factor on the gradient of ``scale``, as in :func:`fake_quantize`.

    Returns:
        float64 of shape ``(2 * quant_max + 1,)``, counts from code ``-quant_max`` on; their sum is
        ``input.numel()``. All NaN when an unmasked element is NaN.

    Raises:
        RuntimeError: an argument of the wrong dtype, shape or range; the message names it.
    """
    native = input.device.type in ("cpu", "cuda") and input.dtype == torch.float32
    if not native or transforms_active():
        return soft_histogram_reference(input, scale, quant_max=quant_max, mask=mask, grad_scale=grad_scale)
    counts: Tensor = torch.ops.pqk.soft_histogram(input, scale, quant_max, mask, grad_scale)
    return counts


@torch.library.register_fake("pqk::soft_histogram")
def _(input: Tensor, scale: Tensor, quant_max: int, mask: Tensor | None = None, grad_scale: float = 1.0) -> Tensor:
    return input.new_empty((2 * quant_max + 1,), dtype=torch.float64)


@torch.library.register_fake("pqk::soft_histogram_backward")
def _(
    grad_counts: Tensor,
    input: Tensor,
    scale: Tensor,
    quant_max: int,
    mask: Tensor | None = None,
    grad_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape), scale.new_empty(scale.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, scale, quant_max, mask, grad_scale = inputs
    ctx.save_for_backward(input, scale, mask)
    ctx.constants = (quant_max, grad_scale)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, scale, mask = ctx.saved_tensors
    quant_max, grad_scale = ctx.constants
    of_input, of_scale = torch.ops.pqk.soft_histogram_backward(grad, input, scale, quant_max, mask, grad_scale)
    needs_input, needs_scale, *_ = ctx.needs_input_grad
    return of_input if needs_input else None, of_scale if needs_scale else None, None, None, None


torch.library.register_autograd("pqk::soft_histogram", _backward, setup_context=_setup_context)


def soft_histogram_reference(
    input: Tensor, scale: Tensor, *, quant_max: int, mask: Tensor | None = None, grad_scale: float = 1.0
) -> Tensor:
    """Plain torch, differentiable by torch's own autograd."""
    own = scale.detach()
    inv_scale = 1.0 / (own + (scale - own) * grad_scale).view(-1, *[1] * (input.dim() - 1))
    kept = input if mask is None else torch.where(mask, input, torch.zeros_like(input))
    u = (kept.to(scale.dtype) * inv_scale).clamp(-quant_max, quant_max)
    below = u.detach().nan_to_num().floor()
    fraction = u - below
    corner = fraction.detach() == 0
    fraction = torch.where(corner, torch.zeros_like(fraction), fraction)
    rounded = (fraction.detach() * _SHARES + 0.5).floor() / _SHARES
    share = (rounded + (fraction - fraction.detach())).double().flatten()
    bins = (below.long() + quant_max).flatten()
    counts = torch.zeros(2 * quant_max + 2, dtype=torch.float64, device=input.device)
    counts = counts.index_add(0, bins, 1 - share).index_add(0, bins + 1, share)[:-1]
    return torch.where(u.detach().isnan().any(), torch.full_like(counts, torch.nan), counts)


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for shape in [(3,), (0, 4), (4, 0), (5, 7), (4, 3, 3, 3), (1, 1300), (700, 9)]:
        scale = torch.rand(shape[0], generator=generator) * 0.1 + 0.05
        for quant_max in (1, 7, 127):
            values = torch.randn(shape, generator=generator) * quant_max * 0.06
            mask = torch.rand(shape, generator=generator) > 0.5
            for view in layouts(values):
                yield (view, scale), {"quant_max": quant_max}
            for view, mask_view in zip(layouts(values), layouts(mask), strict=True):
                yield (view, scale), {"quant_max": quant_max, "mask": mask_view}
    special = torch.tensor([[torch.inf, -torch.inf, -0.0, 1e-45, -1e-45, 3e38, 2.0, 2.5, torch.nan]])
    for quant_max in (3, 127):
        yield (special[:, :-1], torch.ones(1)), {"quant_max": quant_max}
        yield (special, torch.ones(1)), {"quant_max": quant_max}
        yield (special, torch.ones(1)), {"quant_max": quant_max, "mask": ~special.isnan()}


def _opcheck_samples() -> Iterator[Sample]:
    for args, kwargs in list(_samples())[4:100:11]:
        input, scale = (arg.detach().requires_grad_() for arg in args)
        yield (input, scale, kwargs["quant_max"], kwargs.get("mask"), 0.5), {}


SOFT_HISTOGRAM = register(
    OpSpec(
        name="soft_histogram",
        overload=torch.ops.pqk.soft_histogram.default,
        function=soft_histogram,
        reference=soft_histogram_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
    )
)
