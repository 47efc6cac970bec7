"""Students that are one another's teacher: what they say on average."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pqk_ext.nn import NetworkOutput

__all__ = ["AverageOfStudents", "average_logits"]


def average_logits(logits: Sequence[Tensor]) -> Tensor:
    """The plain mean of the students' logits, without gradient.

    Walawalkar, Shen and Savvides, "Online Ensemble Model Compression using Knowledge Distillation" (ECCV 2020): the
    ensemble has no parameters of its own and is never trained beforehand.

    Args:
        logits: of each student, all (batch, classes).

    Raises:
        ValueError: no logits, or shapes that differ.
    """
    shapes = {tuple(one.shape) for one in logits}
    if len(shapes) != 1:
        raise ValueError(f"logits: expected one shape, got {sorted(shapes) or 'none'}")
    return torch.stack([one.detach() for one in logits]).mean(0)


class AverageOfStudents:
    """The ensemble of several networks as one teacher, or as one classifier.

    Args:
        students: networks with the same classes. They are not copied, and are asked in the mode that they are in: a
            prepared network in evaluation mode gives what its file will give.

    Raises:
        ValueError: no students.
    """

    def __init__(self, students: Sequence[nn.Module]) -> None:
        if not students:
            raise ValueError("students: expected at least one, got none")
        self._students = tuple(students)

    def __call__(self, x: Tensor, step: int = 0) -> NetworkOutput:
        """What the students say of ``x`` on average; the step makes no difference."""
        with torch.no_grad():
            return NetworkOutput(average_logits([student(x) for student in self._students]))
