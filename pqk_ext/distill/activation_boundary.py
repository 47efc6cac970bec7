"""Distillation of activation boundaries: on which side of 0 each hidden neuron lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pqk_ext.distill._registry import check_features, feature_loss

__all__ = ["activation_boundary", "activation_similarity"]


@feature_loss
def activation_boundary(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    margin: float = 1.0,
    per_element: bool = True,
) -> Tensor:
    """Squared hinge that drives each of the student's neurons to the teacher's side of 0, and ``margin`` beyond it.

    Heo, Lee, Yun and Choi, "Knowledge transfer via distillation of activation boundaries formed by hidden neurons"
    (AAAI 2019), equation 5: ``(S + margin)^2`` where the teacher is off (at most 0) and S above ``-margin``,
    ``(S - margin)^2`` where it is on and S below ``margin``. The deepest stage counts once, each one before it half of
    the next. The features must be those before the activation and after batch norm (taps with ``before_activation``):
    after a ReLU there is no boundary.

    Args:
        student_features: in the order of the network, each (batch, channels, ...).
        teacher_features: as many, of the same shapes; detached.
        margin: above 0.
        per_element: the mean over the elements of each stage, which does not depend on resolution and width. False
            gives the sum over them, as published, divided by the batch; the authors weight it by 3 / 1000.

    Raises:
        ValueError: numbers of stages or shapes that differ, or a margin that is not positive.
    """
    check_features(student_features, teacher_features)
    if not 0 < margin < float("inf"):
        raise ValueError(f"margin: expected a number above 0, got {margin}")
    stages = []
    for student, teacher in zip(student_features, teacher_features, strict=True):
        side = torch.where(teacher.detach() > 0, 1.0, -1.0).to(student.dtype)
        missing = F.relu(margin - side * student).square()
        stages.append(missing.mean() if per_element else missing.sum() / len(missing))
    last = len(stages) - 1
    return torch.stack([stage * 0.5 ** (last - index) for index, stage in enumerate(stages)]).sum()


@torch.no_grad()
def activation_similarity(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> list[float]:
    """Share of the elements of each stage that both networks have on the same side of 0, where 0 itself is off.

    Args:
        student_features: before the activation, each (batch, channels, ...).
        teacher_features: as many, of the same shapes.

    Raises:
        ValueError: numbers of stages or shapes that differ.
    """
    check_features(student_features, teacher_features)
    pairs = zip(student_features, teacher_features, strict=True)
    return [float(((student > 0) == (teacher > 0)).double().mean()) for student, teacher in pairs]
