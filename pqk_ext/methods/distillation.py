"""A prepared student under any teacher: what methods of distillation have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.distill import LOSSES
from pqk_ext.nn import NetworkOutput
from pqk_ext.preparation import PreparedModel, Tap
from pqk_ext.teachers import Teacher
from pqk_ext.training import Trainee

__all__ = ["Distillation", "FeatureTerm"]


@dataclasses.dataclass(frozen=True)
class FeatureTerm:
    """One loss of features.

    Attributes:
        loss: of the student's and the teacher's features, such as those in ``pqk_ext.distill.FEATURE_LOSSES``.
        weight: of it.
        adapters: bring the student's features to the teacher's widths; trained with the student, not deployed.
    """

    loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
    weight: float = 1.0
    adapters: nn.Module | None = None


class Distillation(Trainee):
    """``ce_weight * cross-entropy + kd_weight * kd_loss + feature terms``, beside whatever PQK itself adds.

    The teacher is asked with the number of steps done. It is not part of the state: whoever resumes makes it anew.

    Args:
        student: the prepared network.
        teacher: see :mod:`pqk_ext.teachers`.
        taps: where the student's features are taken; as many as the teacher gives.
        ce_weight: of the student's cross-entropy.
        kd_weight: of the loss of logits; 0 leaves it out.
        temperature: of the loss of logits.
        kd_loss: a name in ``pqk_ext.distill.LOSSES``.
        feature_terms: losses of features.

    Raises:
        TypeError: the student is not a prepared model.
        ValueError: no loss of that name.
    """

    student: PreparedModel

    def __init__(
        self,
        student: PreparedModel,
        teacher: Teacher,
        *,
        taps: Sequence[Tap] = (),
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        temperature: float = 4.0,
        kd_loss: str = "kl",
        feature_terms: Sequence[FeatureTerm] = (),
    ) -> None:
        if not isinstance(student, PreparedModel):
            raise TypeError(f"student: expected a prepared model, got {type(student).__name__}")
        if kd_loss not in LOSSES:
            raise ValueError(f"kd_loss: expected one of {', '.join(LOSSES)}, got {kd_loss!r}")
        super().__init__(student)
        self._teacher = (teacher,)  # no submodule, whatever it is
        self._taps = tuple(taps)
        self.ce_weight, self.kd_weight, self.temperature = ce_weight, kd_weight, temperature
        self._kd_loss = LOSSES[kd_loss]
        self._terms = tuple(feature_terms)
        self.adapters = nn.ModuleList(term.adapters for term in feature_terms if term.adapters is not None)
        self._parts: dict[str, Tensor] = {}

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of this step."""
        told = self._teacher[0](x, self.step_count)
        return self.student.pqk.loss(x, y, taps=self._taps, extra=lambda output: self._extra(output, told, y))

    def _extra(self, student: NetworkOutput, teacher: NetworkOutput, y: Tensor) -> Tensor:
        """All but the cross-entropy, which the student's own loss contains once."""
        loss = (self.ce_weight - 1.0) * F.cross_entropy(student.logits, y)
        self._parts = {}
        if self.kd_weight > 0:
            kd = self._kd_loss(student.logits, teacher.logits, self.temperature)
            self._parts["teacher_kd"] = kd.detach()
            loss = loss + self.kd_weight * kd
        for index, term in enumerate(self._terms):
            if term.weight == 0:
                continue
            features = student.features if term.adapters is None else term.adapters(student.features)
            part = term.loss(features, teacher.features)
            self._parts[f"features_{index}"] = part.detach()
            loss = loss + term.weight * part
        return loss

    def metrics(self) -> dict[str, float]:
        """Those of the student, and the parts of the last loss."""
        return super().metrics() | {name: float(value) for name, value in self._parts.items()}
