"""Distillation by Gramians between the feature maps of two depths ("flow of solution procedure")."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pqk_ext.distill._registry import check_features, feature_loss

__all__ = ["fsp", "gramian", "gramian_loss"]


@feature_loss
def fsp(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the Gramians of neighbouring stages.

    Yim, Joo, Bae and Kim, "A gift from knowledge distillation" (CVPR 2017). They sum over the entries of a matrix;
    here each pair counts by its mean entry, so that wide stages weigh no more than narrow ones.

    Args:
        student_features: two stages or more, each (batch, channels, ...).
        teacher_features: as many, with the same channels; their spatial sizes are free.

    Raises:
        ValueError: fewer than two stages, or numbers of stages, batch sizes or channels that differ.
    """
    pairs = [(stage, stage + 1) for stage in range(len(student_features) - 1)]
    return gramian_loss(student_features, teacher_features, pairs)


def gramian_loss(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], pairs: Iterable[tuple[int, int]]
) -> Tensor:
    """Mean over pairs of stages, batch and entries of the squared difference of both Gramians.

    Args:
        student_features: two stages or more, each (batch, channels, ...).
        teacher_features: as many, with the same channels; detached.
        pairs: numbers of the stages whose Gramian is compared.

    Raises:
        ValueError: as :func:`fsp`.
    """
    check_features(student_features, teacher_features, at_least=2, same_size=False)
    student, teacher = list(student_features), [feature.detach() for feature in teacher_features]
    losses = [F.mse_loss(gramian(student[a], student[b]), gramian(teacher[a], teacher[b])) for a, b in pairs]
    return torch.stack(losses).mean()


def gramian(first: Tensor, second: Tensor) -> Tensor:
    """Inner products of the channels of two feature maps, a mean over positions.

    ``G[b, i, j] = mean over positions p of first[b, i, p] * second[b, j, p]``. Of maps of different sizes both are
    brought to the smaller one by (adaptive) max pooling, as in the FSP paper. Without the mean the matrices of early,
    large maps would outweigh all others.

    Args:
        first: (batch, channels, height, width) or (batch, channels, length).
        second: the same batch size and number of dimensions.

    Returns:
        (batch, channels of first, channels of second).

    Raises:
        ValueError: batch sizes or numbers of dimensions that differ.
    """
    if first.dim() not in (3, 4) or second.dim() != first.dim() or second.shape[0] != first.shape[0]:
        raise ValueError(
            f"second: expected a map of 3 or 4 dimensions and the batch size of first, {tuple(first.shape)}, "
            f"got {tuple(second.shape)}"
        )
    size = [min(pair) for pair in zip(first.shape[2:], second.shape[2:], strict=True)]
    a, b = (_pooled(map_, size).flatten(2) for map_ in (first, second))
    return torch.bmm(a, b.transpose(1, 2)) / a.shape[2]


def _pooled(map_: Tensor, size: list[int]) -> Tensor:
    if list(map_.shape[2:]) == size:
        return map_
    return F.adaptive_max_pool2d(map_, size) if map_.dim() == 4 else F.adaptive_max_pool1d(map_, size[0])
