"""Where distillation losses are listed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["LOSSES", "distillation_loss"]

# (student_logits, teacher_logits, temperature) -> scalar loss
DistillationLoss = Callable[[Tensor, Tensor, float], Tensor]

# Name -> function, filled by the decorator below.
LOSSES: dict[str, DistillationLoss] = {}


def distillation_loss(function: DistillationLoss) -> DistillationLoss:
    """Registers a loss under its function's name.

    A loss takes student and teacher logits of shape (batch, classes, ...) and the temperature, and gives a scalar: at
    least 0 up to rounding, 0 where both are equal, finite for logits up to 1e15, and without gradient for the teacher.

    Raises:
        ValueError: the name is taken.
    """
    name = getattr(function, "__name__", "")
    if name in LOSSES:
        raise ValueError(f"distillation_loss: the name {name!r} is registered already")
    LOSSES[name] = function
    return function


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
