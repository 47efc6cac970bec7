"""Distillation by Kullback-Leibler divergence of softened class probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pqk_ext.distill._registry import check_logits, distillation_loss

__all__ = ["kl"]


@distillation_loss
def kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, mean over the batch and all positions.

    From Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015); T^2 keeps the size of the
    gradient independent of T. The teacher's logits are detached: for a two-way loss call it a second time with the
    roles exchanged.

    Args:
        student_logits: shape (batch, classes), or (batch, classes, ...) with a decision for each position.
        teacher_logits: same shape.
        temperature: softening T, above 0.

    Raises:
        ValueError: shapes that differ or are empty, or a temperature that is not positive.
    """
    check_logits(student_logits, teacher_logits, temperature)
    student = F.log_softmax(_decisions(student_logits) / temperature, dim=1)
    teacher = F.log_softmax(_decisions(teacher_logits.detach()) / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def _decisions(logits: Tensor) -> Tensor:
    return logits.movedim(1, -1).flatten(0, -2)
