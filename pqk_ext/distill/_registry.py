"""Where distillation losses are listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from pqk_ext.registered import enlist

__all__ = ["FEATURE_LOSSES", "LOSSES", "distillation_loss", "feature_loss"]

# (student_logits, teacher_logits, temperature) -> scalar loss
DistillationLoss = Callable[[Tensor, Tensor, float], Tensor]

# (student_features, teacher_features) -> scalar loss; features are the values of the tapped blocks, shallowest first
FeatureLoss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
Registered = TypeVar("Registered", bound=FeatureLoss)  # which may have options of its own

# Name -> function, filled by the decorators below.
LOSSES: dict[str, DistillationLoss] = {}
FEATURE_LOSSES: dict[str, FeatureLoss] = {}


def distillation_loss(function: DistillationLoss) -> DistillationLoss:
    """Registers a loss under its function's name.

    A loss takes student and teacher logits of shape (batch, classes, ...) and the temperature, and gives a scalar: at
    least 0 up to rounding, 0 where both are equal, finite for logits up to 1e15, and without gradient for the teacher.

    Raises:
        ValueError: the name is taken.
    """
    return enlist(LOSSES, function, "distillation_loss")


def feature_loss(function: Registered) -> Registered:
    """Registers a feature loss under its function's name.

    A feature loss takes the student's and the teacher's features, stage by stage from the input on, each of shape
    (batch, channels, ...) with one or more spatial dimensions, and gives a scalar: at least 0, and without gradient for
    the teacher, which it detaches. It is a mean over the batch, so that its size depends on no batch size.

    Raises:
        ValueError: the name is taken.
    """
    return enlist(FEATURE_LOSSES, function, "feature_loss")


def check_features(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    at_least: int = 1,
    same_channels: bool = True,
    same_size: bool = True,
) -> None:
    """Raises ValueError where features cannot be compared stage by stage.

    Args:
        student_features: stage by stage, each (batch, channels, ...).
        teacher_features: the same number of stages.
        at_least: stages that the loss needs.
        same_channels: both sides must have the same number of channels at a stage.
        same_size: both sides must have the same spatial size at a stage.
    """
    if len(student_features) < at_least:
        raise ValueError(f"student_features: expected {at_least} stages or more, got {len(student_features)}")
    if len(teacher_features) != len(student_features):
        raise ValueError(
            f"teacher_features: expected as many stages as the student's, {len(student_features)}, "
            f"got {len(teacher_features)}"
        )
    for stage, (student, teacher) in enumerate(zip(student_features, teacher_features, strict=True)):
        if student.dim() < 3 or student.numel() == 0:
            raise ValueError(
                f"student_features[{stage}]: expected a non-empty tensor of shape (batch, channels, ...), "
                f"got {tuple(student.shape)}"
            )
        batch, channels, *size = student.shape
        expected = [batch, channels if same_channels else -1, *(size if same_size else [-1] * len(size))]
        fits = teacher.dim() == student.dim() and teacher.numel() > 0
        if not fits or any(want not in (-1, got) for want, got in zip(expected, teacher.shape, strict=True)):
            raise ValueError(
                f"teacher_features[{stage}]: expected the student's shape, {tuple(expected)} (-1: any), "
                f"got {tuple(teacher.shape)}"
            )


def check_logits(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    """Raises ValueError where the arguments of a loss cannot be compared."""
    if student_logits.dim() < 2 or student_logits.numel() == 0:
        raise ValueError(
            "student_logits: expected a non-empty tensor of shape (batch, classes, ...), "
            f"got {tuple(student_logits.shape)}"
        )
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher_logits: expected the student's shape {tuple(student_logits.shape)}, "
            f"got {tuple(teacher_logits.shape)}"
        )
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
