"""Distillation by Gramians between all pairs of stages, neighbours or not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from torch import Tensor

from pqk_ext.distill._registry import feature_loss
from pqk_ext.distill.fsp import gramian_loss

__all__ = ["crosslayer"]


@feature_loss
def crosslayer(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the Gramians of all pairs of stages ``a < b``.

    After Chou, Chiu and Liao, "Cross-layer knowledge distillation with KL divergence and offline ensemble for
    compressing deep neural network" (APSIPA Transactions on Signal and Information Processing 10, 2021). The set of
    pairs and their equal weights are reconstructed. With two stages it is :func:`pqk_ext.distill.fsp`.

    Args:
        student_features: two stages or more, each (batch, channels, ...).
        teacher_features: as many, with the same channels; their spatial sizes are free.

    Raises:
        ValueError: fewer than two stages, or numbers of stages, batch sizes or channels that differ.
    """
    return gramian_loss(student_features, teacher_features, combinations(range(len(student_features)), 2))
