"""Where a student's teacher comes from, behind one call: ``teacher(x, step) -> TeacherOutput``.

A teacher gives logits and, if it was asked for some, features of a batch at a training step, without gradients. Its
answer is a function of its arguments alone, so that a run that is resumed hears the same. One source a file; PQK's own
teacher, which learns beside its student in the same tensors, is not among them: it is in ``model.pqk``.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pqk_ext.nn import NetworkOutput
from pqk_ext.teachers.frozen import FloatTeacher

__all__ = ["FloatTeacher", "Teacher", "TeacherOutput"]

TeacherOutput = NetworkOutput


class Teacher(Protocol):
    """``teacher(x, step)``: x is the batch, step the number of training steps done before it."""

    def __call__(self, x: Tensor, step: int) -> TeacherOutput: ...
