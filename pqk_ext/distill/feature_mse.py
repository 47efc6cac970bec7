"""Distillation by squared difference of feature maps ("hints")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pqk_ext.distill._registry import check_features, feature_loss

__all__ = ["feature_mse"]


@feature_loss
def feature_mse(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the features, mean over stages.

    Romero et al., "FitNets: hints for thin deep nets" (ICLR 2015), where half the sum over all entries is taken and the
    student's features pass a trained convolution: :class:`pqk_ext.distill.Adapters`.

    Args:
        student_features: each (batch, channels, ...).
        teacher_features: as many, of the same shapes; detached.

    Raises:
        ValueError: numbers of stages or shapes that differ.
    """
    check_features(student_features, teacher_features)
    pairs = zip(student_features, teacher_features, strict=True)
    return torch.stack([F.mse_loss(student, teacher.detach()) for student, teacher in pairs]).mean()
