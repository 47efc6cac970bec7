"""Distillation by maps of where the activations are large ("attention transfer")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pqk_ext.distill._registry import check_features, feature_loss

__all__ = ["attention", "attention_map"]


@feature_loss
def attention(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Squared distance of the normalised attention maps, mean over batch and stages: between 0 and 2.

    Zagoruyko and Komodakis, "Paying more attention to attention" (ICLR 2017), activation-based, p = 2. Their published
    code takes the mean over positions instead of the sum, hence its weight of 1000. Channels need not agree; of maps
    of different sizes the larger one is brought to the smaller by average pooling.

    Args:
        student_features: each (batch, channels, ...).
        teacher_features: as many, of any channels and spatial sizes; detached.

    Raises:
        ValueError: numbers of stages, batch sizes or numbers of dimensions that differ.
    """
    check_features(student_features, teacher_features, same_channels=False, same_size=False)
    losses = []
    for student, teacher in zip(student_features, teacher_features, strict=True):
        size = [min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True)]
        difference = attention_map(student, size) - attention_map(teacher.detach(), size)
        losses.append(difference.square().sum(1).mean())
    return torch.stack(losses).mean()


def attention_map(features: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """Mean over channels of the squared activations, as a unit vector for each sample.

    Args:
        features: (batch, channels, height, width) or (batch, channels, length).
        size: spatial size that the map is averaged to; by default its own.

    Returns:
        (batch, positions); zeros where all activations of a sample are.
    """
    energy = features.square().mean(1, keepdim=True)
    if size is not None and list(energy.shape[2:]) != list(size):
        if energy.dim() == 4:
            energy = F.adaptive_avg_pool2d(energy, (size[0], size[1]))
        else:
            energy = F.adaptive_avg_pool1d(energy, size[0])
    return F.normalize(energy.flatten(1))
