"""Which weights stay: the sparsity schedule, the scores, and the masks made from them. Pure functions, torch only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["CRITERIA", "compute_masks", "criterion", "cubic_sparsity", "filter_mean_magnitude", "magnitude"]

Criterion = Callable[[Tensor], Tensor]

# Name -> function, filled by the decorator below.
CRITERIA: dict[str, Criterion] = {}


def criterion(function: Criterion) -> Criterion:
    """Registers a pruning criterion under its function's name.

    A criterion takes one layer's weight, of shape (out_channels, ...), and gives finite scores, large for what should
    stay: one per weight (same shape) or one per filter (shape ``(out_channels,)``).

    Raises:
        ValueError: the name is taken.
    """
    name = getattr(function, "__name__", "")
    if name in CRITERIA:
        raise ValueError(f"criterion: the name {name!r} is registered already")
    CRITERIA[name] = function
    return function


@criterion
def magnitude(weight: Tensor) -> Tensor:
    """Absolute value of each weight."""
    return weight.abs()


@criterion
def filter_mean_magnitude(weight: Tensor) -> Tensor:
    """Mean absolute value of each filter: scores of shape ``(out_channels,)``."""
    return weight.abs().flatten(1).mean(1)


def cubic_sparsity(step: int, *, start: int, end: int, final: float) -> float:
    """Sparsity at ``step``: 0 up to ``start``, then ``final * (1 - (1 - t)^3)`` with t running from 0 to 1 at ``end``.

    The schedule of Zhu and Gupta, "To prune, or not to prune" (2017): it prunes fast while many weights are redundant
    and slowly near the end.

    Raises:
        ValueError: ``end`` is not after ``start``, or ``final`` is not in [0, 1].
    """
    if end <= start:
        raise ValueError(f"end: expected a step after start = {start}, got {end}")
    if not 0 <= final <= 1:
        raise ValueError(f"final: expected a sparsity in [0, 1], got {final}")
    if step >= end:
        return final
    remaining = 1 - max(0, step - start) / (end - start)
    return float(final * (1 - remaining**3))


@torch.no_grad()
def compute_masks(
    weights: Sequence[Tensor],
    sparsity: float,
    *,
    ranking: str = "global",
    granularity: str = "unstructured",
    criterion: str | None = None,
    min_keep_per_channel: int = 1,
    min_keep_fraction: float = 0.01,
) -> list[Tensor]:
    """Keeps the ``1 - sparsity`` share of the weights that scores highest.

    With unstructured granularity the number kept is ``round((1 - sparsity) * count)``, exactly; with filter
    granularity filters are kept, best first, until that many weights are. Equal scores are told apart by position: the
    earlier weight stays. A floor protects thin layers: its members stay whatever their score and count towards the
    total, so others make room for them; where the floors alone are more than the total, the floors are what stays.

    Args:
        weights: one floating-point tensor of shape (out_channels, ...) per layer, all on one device.
        sparsity: share to prune, in [0, 1).
        ranking: ``"global"`` compares the weights of all layers, ``"per_layer"`` prunes every layer to ``sparsity``.
        granularity: ``"unstructured"`` or ``"filter"`` (whole output channels).
        criterion: a name in ``CRITERIA``; ``magnitude`` or ``filter_mean_magnitude`` by default, as granularity asks.
            Per-weight scores are averaged over each filter where filters are pruned.
        min_keep_per_channel: floor of kept weights in every output channel; of kept filters in every layer with filter
            granularity.
        min_keep_fraction: floor of the kept share of every layer; one weight or filter of a layer always stays.

    Returns:
        One bool mask per weight, of its shape and on its device; true where the weight stays.

    Raises:
        ValueError: an argument outside its range, or scores that are not finite (the layer's index is named).
    """
    _check_arguments(sparsity, ranking, granularity, min_keep_per_channel, min_keep_fraction)
    by_filter = granularity == "filter"
    scores = [_scores(weight, index, criterion, by_filter) for index, weight in enumerate(weights)]
    for layer in scores:
        layer[_floor(layer, by_filter, min_keep_per_channel, min_keep_fraction)] = math.inf
    groups = [range(len(weights))] if ranking == "global" else [range(i, i + 1) for i in range(len(weights))]
    masks: list[Tensor] = []
    for group in groups:
        kept = _keep_best([scores[i] for i in group], [weights[i] for i in group], 1 - sparsity, by_filter)
        masks += [_expanded(mask, weights[i]) for i, mask in zip(group, kept, strict=True)]
    return masks


def _expanded(mask: Tensor, weight: Tensor) -> Tensor:
    """The flat mask of a layer's weights, or of its filters, in the shape of the weight."""
    if mask.numel() == weight.numel():
        return mask.view(weight.shape)
    return mask.view(-1, *[1] * (weight.dim() - 1)).expand(weight.shape).contiguous()


def _check_arguments(sparsity: float, ranking: str, granularity: str, per_channel: int, fraction: float) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity: expected a number in [0, 1), got {sparsity}")
    if ranking not in ("global", "per_layer"):
        raise ValueError(f"ranking: expected 'global' or 'per_layer', got {ranking!r}")
    if granularity not in ("unstructured", "filter"):
        raise ValueError(f"granularity: expected 'unstructured' or 'filter', got {granularity!r}")
    if per_channel < 0:
        raise ValueError(f"min_keep_per_channel: expected an integer of at least 0, got {per_channel}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"min_keep_fraction: expected a number in [0, 1], got {fraction}")


def _scores(weight: Tensor, index: int, name: str | None, by_filter: bool) -> Tensor:
    """A new float32 or float64 tensor: (out_channels,) for filters, else (out_channels, weights per channel)."""
    if weight.dim() < 1 or not weight.is_floating_point():
        raise ValueError(
            f"weights[{index}]: expected a floating-point tensor of shape (out_channels, ...), got {weight.dtype} "
            f"{tuple(weight.shape)}"
        )
    name = name or ("filter_mean_magnitude" if by_filter else "magnitude")
    if name not in CRITERIA:
        raise ValueError(f"criterion: expected one of {', '.join(CRITERIA)}, got {name!r}")
    weight = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
    scores = CRITERIA[name](weight)
    if weight.numel() == 0:
        return weight.new_zeros((0,) if by_filter else (0, 0))
    if scores.shape == weight.shape:
        scores = scores.reshape(len(weight), -1)
        scores = scores.mean(1) if by_filter else scores.clone()
    elif not by_filter or scores.shape != weight.shape[:1]:
        raise ValueError(
            f"criterion {name}: weights[{index}] of {tuple(weight.shape)} got scores of {tuple(scores.shape)}"
        )
    if not bool(scores.isfinite().all()):
        raise ValueError(f"weights[{index}]: its {name} scores are not finite")
    return scores


def _floor(scores: Tensor, by_filter: bool, per_channel: int, fraction: float) -> Tensor:
    """Mask of what stays in this layer whatever the other layers hold; of the shape of ``scores``."""
    floor = torch.zeros_like(scores, dtype=torch.bool)
    if scores.numel() == 0:
        return floor
    layer_keep = max(1, math.ceil(fraction * scores.numel()))
    if by_filter:
        return _top(scores, min(scores.numel(), max(layer_keep, per_channel)))
    remaining = scores.clone() if per_channel > 1 else scores
    for _ in range(min(per_channel, scores.shape[1])):
        best = remaining.argmax(1, keepdim=True)  # the first of equal ones
        floor.scatter_(1, best, True)
        if per_channel > 1:
            remaining.scatter_(1, best, -math.inf)
    # The channels' floor is part of the layer's: only the rest is chosen by rank.
    return _top(scores.masked_fill(floor, math.inf).flatten(), max(layer_keep, int(floor.sum()))).view_as(scores)


def _keep_best(scores: list[Tensor], weights: list[Tensor], share: float, by_filter: bool) -> list[Tensor]:
    """Flat masks over the units (weights or filters) of layers that are ranked together."""
    flat = torch.cat([layer.flatten() for layer in scores]) if scores else torch.empty(0)
    sizes = [layer.numel() for layer in scores]
    total = sum(weight.numel() for weight in weights)
    target, forced = round(share * total), int(flat.isinf().sum())
    if by_filter and total:
        filter_sizes = torch.tensor([weight.numel() // max(1, len(weight)) for weight in weights], device=flat.device)
        costs = filter_sizes.repeat_interleave(torch.tensor(sizes, device=flat.device))
        kept_weights = costs[flat.argsort(descending=True, stable=True)].cumsum(0)
        target = int((kept_weights < target).sum()) + 1
    return list(_top(flat, max(target, forced)).split(sizes))


def _top(scores: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` highest of flat ``scores``, the earlier of equal ones; linear time, any device."""
    if count >= scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(scores.numel() - count + 1).values
    mask = scores > threshold
    equal = (scores == threshold).nonzero().flatten()
    mask[equal[: count - int(mask.sum())]] = True
    return mask
