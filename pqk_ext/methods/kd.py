"""Distillation from a separately trained float network: what other methods are compared with."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from pqk_ext.fields import Checked, choice, integer, number, text, text_or_flag
from pqk_ext.methods._registry import method
from pqk_ext.methods.distillation import Distillation
from pqk_ext.methods.run import Run
from pqk_ext.teachers import FloatTeacher

__all__ = ["KDSettings", "kd"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KDSettings(Checked):
    """Settings of :func:`kd`.

    Attributes:
        teacher: network of the zoo; empty: the student's, unpruned.
        teacher_pretrained: as ``pretrained`` of a recipe, for another network than the student's.
        teacher_steps: steps for which it is trained first; 0 takes it as it is.
        teacher_autocast: ``bf16``: the teacher answers under ``torch.autocast``; ``none``: as the student.
        temperature: softening of both logits.
        kd_weight: of the distillation loss.
        ce_weight: of the cross-entropy.
    """

    teacher: str = text()
    teacher_pretrained: bool | str = text_or_flag(False)
    teacher_steps: int = integer(920, 0)
    teacher_autocast: str = choice("none", "bf16")
    temperature: float = number(4.0, 0, open_low=True)
    kd_weight: float = number(3.0, 0)
    ce_weight: float = number(1.0, 0)


@method(KDSettings)
def kd(run: Run) -> dict[str, nn.Module]:
    """Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, on a pruned, quantized student.

    The teacher is a float network, by default the student's own, trained as long as the student before the student
    begins. It teaches from the first step to the last. With ``pqk.teacher: false`` this is what PQK saves: a second
    network in memory, and its training. With ``true`` PQK's own teacher joins it in phase 2.
    """
    settings = run.settings
    name = settings.teacher or None
    teacher = run.network(name, pretrained=settings.teacher_pretrained if name else None, draw=1 if name else 0)
    if settings.teacher_steps:
        run.fit("teacher", teacher, steps=settings.teacher_steps)
        run.extra_steps += settings.teacher_steps
    run.facts["teacher_validation_accuracy"] = run.accuracy(teacher.eval())
    trainee = Distillation(
        run.prepare(run.network()),
        FloatTeacher(
            teacher,
            run.example_inputs,
            autocast=torch.bfloat16 if settings.teacher_autocast == "bf16" else None,
        ),
        kd_weight=settings.kd_weight,
        ce_weight=settings.ce_weight,
        temperature=settings.temperature,
    )
    run.fit("student", trainee)
    return {"kd": trainee.student}
