"""Which snapshots of a teacher's route a student follows, in which order, and how far the next one may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pqk_ext.distill.kl import kl
from pqk_ext.nn import Role
from pqk_ext.preparation import PreparedModel
from pqk_ext.teachers.route import Route, equal_parts
from pqk_ext.training.data import derived_seed

__all__ = ["Congruence", "arranged", "equal_interval", "next_anchor"]

_BATCH = 256


def equal_interval(length: int, anchors: int) -> tuple[int, ...]:
    """Numbers of ``anchors`` snapshots at equal intervals of a route of ``length``; the last one is the last.

    Raises:
        ValueError: less than one anchor, or more than there are snapshots.
    """
    return equal_parts(length, anchors)[1:]


def arranged(anchors: Sequence[int], order: str, seed: int) -> tuple[int, ...]:
    """The anchors in the order in which the student follows them.

    Args:
        anchors: along the route.
        order: ``route``, ``reversed``, ``shuffled`` (by ``seed``; never in order if there are two or more) or ``last``
            (the last one in every stage).
        seed: of the shuffling.
    """
    anchors = tuple(anchors)
    if order == "last":
        return anchors[-1:] * len(anchors)
    if order == "reversed":
        return anchors[::-1]
    generator = torch.Generator().manual_seed(derived_seed(seed))
    shuffled = anchors
    while order == "shuffled" and shuffled == anchors and len(set(anchors)) > 1:
        shuffled = tuple(anchors[i] for i in torch.randperm(len(anchors), generator=generator).tolist())
    return shuffled


def next_anchor(congruence: Sequence[float], current: int, delta: float) -> int:
    """The farthest snapshot within reach of a student that has followed snapshot ``current``.

    ``max{j : H(j) * delta <= H(current)}`` over all j after ``current``, and ``current + 1`` where there is none.

    Args:
        congruence: H, the student's divergence from every snapshot of the route, the untrained network first.
        current: the snapshot followed so far; 0 at the beginning.
        delta: the smallest ratio ``H(current) / H(j)`` that is within reach, in [0, 1].

    Raises:
        ValueError: no snapshot after ``current``, or a divergence that is not finite.
    """
    if not 0 <= current < len(congruence) - 1:
        raise ValueError(f"current: expected a snapshot before the last one, {len(congruence) - 1}, got {current}")
    if not all(map(math.isfinite, congruence)):
        raise ValueError(f"congruence: expected finite numbers, got {list(congruence)}")
    later = range(current + 1, len(congruence))
    return max((j for j in later if congruence[j] * delta <= congruence[current]), default=current + 1)


class Congruence:
    """The student's divergence from each snapshot of a route, on inputs that neither was trained on.

    Args:
        route: the snapshots.
        length: how many of them count.
        inputs: the held-out inputs.
        temperature: of both networks' logits.
    """

    def __init__(self, route: Route, length: int, inputs: Tensor, temperature: float) -> None:
        self._route, self._length, self._inputs, self._temperature = route, length, inputs, temperature
        self._logits: dict[int, Tensor] = {}

    def teacher_logits(self, number: int) -> Tensor:
        """Of all held-out inputs; computed once."""
        if number not in self._logits:
            teacher = self._route.teacher(number)
            self._logits[number] = torch.cat([teacher(x).logits for x in self._inputs.split(_BATCH)])
        return self._logits[number]

    def __call__(self, student: PreparedModel) -> list[float]:
        """The divergence from snapshot 0, 1, ..., as long as ``length`` says."""
        logits = self.student_logits(student)
        return [self.divergence(logits, number) for number in range(self._length + 1)]

    def divergence(self, student_logits: Tensor, number: int, temperature: float | None = None) -> float:
        """Mean KL(snapshot || student)."""
        t = self._temperature if temperature is None else temperature
        return float(kl(student_logits.double(), self.teacher_logits(number).double(), t)) / t**2

    @torch.no_grad()
    def student_logits(self, student: PreparedModel) -> Tensor:
        """What is deployed says of all held-out inputs; while it warms up, what the float network says."""
        training = student.training
        student.eval()
        role = None if student.pqk.quantizing else Role.FLOAT
        logits = torch.cat([student(x, role) for x in self._inputs.split(_BATCH)])
        student.train(training)
        return logits
