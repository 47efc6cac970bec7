"""Distillation by squared difference of logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pqk_ext.distill._registry import check_logits, distillation_loss

__all__ = ["mse"]


@distillation_loss
def mse(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Half the mean squared difference of the centred logits: the limit of ``kl`` at high temperature.

    Hinton, Vinyals and Dean (2015), section 2.1: with zero-mean logits the gradient of ``kl`` tends to
    ``(student - teacher) / classes``. The loss does not depend on the temperature, which is checked all the same.

    Args:
        student_logits: shape (batch, classes), or (batch, classes, ...) with a decision for each position.
        teacher_logits: same shape; detached.
        temperature: above 0; not used.

    Raises:
        ValueError: shapes that differ or are empty, or a temperature that is not positive.
    """
    check_logits(student_logits, teacher_logits, temperature)
    teacher = teacher_logits.detach()
    student_centred = student_logits - student_logits.mean(1, keepdim=True)
    teacher_centred = teacher - teacher.mean(1, keepdim=True)
    return 0.5 * F.mse_loss(student_centred, teacher_centred)
