"""Which weights stay: the sparsity schedule, the scores, and the masks made from them. Pure functions, torch only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pqk_ext.registered import enlist

__all__ = ["CRITERIA", "compute_masks", "criterion", "cubic_sparsity", "filter_mean_magnitude", "magnitude"]

_BLOCK = 4  # consecutive input channels that the granularity "1x4" keeps or prunes together
_OF_FOUR = 2  # that the granularity "2:4" keeps of as many

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
    return enlist(CRITERIA, function, "criterion")


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

    What stays or goes is a unit: a weight, a block or a filter, as ``granularity`` says. The number of weights kept is
    ``round((1 - sparsity) * count)``, exactly for single weights; larger units are kept, best first, until that many
    weights are. Equal scores are told apart by position: the earlier unit stays. A floor protects thin layers: its
    members stay whatever their score and count towards the total, so others make room for them; where the floors alone
    are more than the total, the floors are what stays.

    Blocks are what the sparse int8 kernels multiply at once (as in 1xN pruning, Lin et al., "1xN Pattern for Pruning
    Convolutional Neural Networks", TPAMI 2022, though along input channels): 4 consecutive input channels of one filter
    tap, aligned at multiples of 4. Where the input channels (of a group) are no multiple of 4, the last block is
    shorter; its score is the mean over what it has.

    The pattern 2:4, which sparse tensor cores multiply (Mishra et al., "Accelerating Sparse Deep Neural Networks",
    2021), keeps the two best of such a block. They are its floor, in place of the two below: at a sparsity of 0.5 they
    are what stays; on the way there the least of the others go first.

    Args:
        weights: one floating-point tensor of shape (out_channels, in_channels / groups, ...) per layer, all on one
            device.
        sparsity: share to prune, in [0, 1).
        ranking: ``"global"`` compares the weights of all layers, ``"per_layer"`` prunes every layer to ``sparsity``.
        granularity: ``"unstructured"``, ``"1x4"`` (blocks of 4 input channels), ``"2:4"`` (single weights, two of each
            such block) or ``"filter"`` (whole output channels).
        criterion: a name in ``CRITERIA``; ``filter_mean_magnitude`` for filters and else ``magnitude`` by default.
            Per-weight scores are averaged over each unit.
        min_keep_per_channel: floor of kept weights (blocks, with granularity 1x4) in every output channel; of kept
            filters in every layer with filter granularity.
        min_keep_fraction: floor of the kept share of every layer's units; one of them always stays.

    Returns:
        One bool mask per weight, of its shape and on its device; true where the weight stays.

    Raises:
        ValueError: an argument outside its range, or scores that are not finite (the layer's index is named).
    """
    _check_arguments(sparsity, ranking, granularity, min_keep_per_channel, min_keep_fraction)
    pattern, granularity = granularity == "2:4", "unstructured" if granularity == "2:4" else granularity
    scores = [_scores(weight, index, criterion, granularity) for index, weight in enumerate(weights)]
    for layer, weight in zip(scores, weights, strict=True):
        floor = _best_of_four(layer, weight) if pattern else _floor(layer, min_keep_per_channel, min_keep_fraction)
        layer[floor] = math.inf
    groups = [range(len(weights))] if ranking == "global" else [range(i, i + 1) for i in range(len(weights))]
    masks: list[Tensor] = []
    for group in groups:
        kept = _keep_best([scores[i] for i in group], [weights[i] for i in group], 1 - sparsity, granularity)
        masks += [_expanded(mask, weights[i], granularity) for i, mask in zip(group, kept, strict=True)]
    return masks


def _taps(tensor: Tensor) -> Tensor:
    """A layer's weights, or something of their shape, as (out_channels, in_channels / groups, filter taps)."""
    channels = tensor.shape[1] if tensor.dim() > 1 else 1
    return tensor.reshape(len(tensor), channels, math.prod(tensor.shape[2:]))


def _expanded(mask: Tensor, weight: Tensor, granularity: str) -> Tensor:
    """The flat mask of a layer's units, in the shape of the weight."""
    if weight.numel() == 0:
        return mask.new_zeros(weight.shape)
    if granularity == "unstructured":
        return mask.view(weight.shape)
    if granularity == "filter":
        return mask.view(-1, *[1] * (weight.dim() - 1)).expand(weight.shape).contiguous()
    filters, channels, taps = _taps(weight).shape
    blocks = mask.view(filters, -1, taps).repeat_interleave(_BLOCK, 1)
    return blocks[:, :channels].reshape(weight.shape)


def _check_arguments(sparsity: float, ranking: str, granularity: str, per_channel: int, fraction: float) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity: expected a number in [0, 1), got {sparsity}")
    if ranking not in ("global", "per_layer"):
        raise ValueError(f"ranking: expected 'global' or 'per_layer', got {ranking!r}")
    if granularity not in ("unstructured", "1x4", "2:4", "filter"):
        raise ValueError(f"granularity: expected 'unstructured', '1x4', '2:4' or 'filter', got {granularity!r}")
    if per_channel < 0:
        raise ValueError(f"min_keep_per_channel: expected an integer of at least 0, got {per_channel}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"min_keep_fraction: expected a number in [0, 1], got {fraction}")


def _scores(weight: Tensor, index: int, name: str | None, granularity: str) -> Tensor:
    """A new float32 or float64 tensor, one score for each unit: (1, filters), else (out_channels, units of each)."""
    if weight.dim() < 1 or not weight.is_floating_point():
        raise ValueError(
            f"weights[{index}]: expected a floating-point tensor of shape (out_channels, ...), got {weight.dtype} "
            f"{tuple(weight.shape)}"
        )
    by_filter = granularity == "filter"
    name = name or ("filter_mean_magnitude" if by_filter else "magnitude")
    if name not in CRITERIA:
        raise ValueError(f"criterion: expected one of {', '.join(CRITERIA)}, got {name!r}")
    weight = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
    scores = CRITERIA[name](weight)
    if weight.numel() == 0:
        return weight.new_zeros((0, 0))
    if scores.shape == weight.shape:
        scores = _unit_means(scores, granularity)
    elif by_filter and scores.shape == weight.shape[:1]:
        scores = scores[None].clone()
    else:
        raise ValueError(
            f"criterion {name}: weights[{index}] of {tuple(weight.shape)} got scores of {tuple(scores.shape)}"
        )
    if not bool(scores.isfinite().all()):
        raise ValueError(f"weights[{index}]: its {name} scores are not finite")
    return scores


def _unit_means(scores: Tensor, granularity: str) -> Tensor:
    """Scores of single weights averaged over each unit, in a new tensor."""
    if granularity == "unstructured":
        return scores.reshape(len(scores), -1).clone()
    if granularity == "filter":
        return scores.reshape(len(scores), -1).mean(1)[None]
    taps = _taps(scores)
    members = F.pad(taps, (0, 0, 0, -taps.shape[1] % _BLOCK)).unflatten(1, (-1, _BLOCK)).unbind(2)
    # In the order of the channels: float sums depend on it, and ranks on every bit.
    total: Tensor = members[0] + members[1] + members[2] + members[3]
    return (total / _unit_sizes(scores, granularity).view_as(total)).flatten(1)


def _unit_sizes(weight: Tensor, granularity: str) -> Tensor:
    """Number of weights in each unit of a layer, flat."""
    if granularity == "filter":
        return torch.full((len(weight),), weight.numel() // max(1, len(weight)), device=weight.device)
    filters, channels, taps = _taps(weight).shape
    lengths = torch.tensor([min(_BLOCK, channels - i) for i in range(0, channels, _BLOCK)], device=weight.device)
    return lengths[None, :, None].expand(filters, -1, taps).flatten()


def _floor(scores: Tensor, per_channel: int, fraction: float) -> Tensor:
    """Mask of what stays in this layer whatever the other layers hold; of the shape of ``scores``."""
    floor = torch.zeros_like(scores, dtype=torch.bool)
    if scores.numel() == 0:
        return floor
    layer_keep = max(1, math.ceil(fraction * scores.numel()))
    remaining = scores.clone() if per_channel > 1 else scores
    for _ in range(min(per_channel, scores.shape[1])):
        best = remaining.argmax(1, keepdim=True)  # the first of equal ones
        floor.scatter_(1, best, True)
        if per_channel > 1:
            remaining.scatter_(1, best, -math.inf)
    # The channels' floor is part of the layer's: only the rest is chosen by rank.
    return _top(scores.masked_fill(floor, math.inf).flatten(), max(layer_keep, int(floor.sum()))).view_as(scores)


def _best_of_four(scores: Tensor, weight: Tensor) -> Tensor:
    """Mask of the two best weights of each block, the earlier of equal ones; of the shape of ``scores``."""
    if scores.numel() == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    taps = _taps(scores.view(weight.shape))
    blocks = F.pad(taps, (0, 0, 0, -taps.shape[1] % _BLOCK), value=-math.inf).unflatten(1, (-1, _BLOCK))
    best = blocks.argsort(dim=2, descending=True, stable=True)[:, :, :_OF_FOUR]
    mask = torch.zeros_like(blocks, dtype=torch.bool).scatter_(2, best, True)
    return mask.flatten(1, 2)[:, : taps.shape[1]].reshape(scores.shape)


def _keep_best(scores: list[Tensor], weights: list[Tensor], share: float, granularity: str) -> list[Tensor]:
    """Flat masks over the units of layers that are ranked together."""
    flat = torch.cat([layer.flatten() for layer in scores]) if scores else torch.empty(0)
    total = sum(weight.numel() for weight in weights)
    target, forced = round(share * total), int(flat.isinf().sum())
    if granularity != "unstructured" and total:
        sizes = torch.cat([_unit_sizes(weight, granularity) for weight in weights if weight.numel()])
        kept_weights = sizes[flat.argsort(descending=True, stable=True)].cumsum(0)
        target = int((kept_weights < target).sum()) + 1
    return list(_top(flat, max(target, forced)).split([layer.numel() for layer in scores]))


def _top(scores: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` highest of flat ``scores``, the earlier of equal ones; linear time, any device."""
    if count >= scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _ascending(scores, scores.numel() - count)
    mask = scores > threshold
    equal = (scores == threshold).nonzero().flatten()
    mask[equal[: count - int(mask.sum())]] = True
    return mask


def _ascending(scores: Tensor, rank: int) -> Tensor | float:
    """The score at ``rank`` (from 0) of flat ``scores`` in ascending order."""
    if scores.device.type != "cpu":
        return scores.kthvalue(rank + 1).values
    # Vectorised in NumPy: ten times as fast as torch's kthvalue, which the training step would feel.
    return float(np.partition(scores.numpy(), rank)[rank])
