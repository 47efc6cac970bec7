"""Students of different widths on one base, taught by their own average."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext import models
from pqk_ext.distill.adapters import Adapters
from pqk_ext.distill.kl import kl
from pqk_ext.fields import Checked, choice, flag, integer, number
from pqk_ext.methods._registry import method
from pqk_ext.methods.run import Run
from pqk_ext.nn import NetworkOutput
from pqk_ext.preparation import PreparedModel, find_taps
from pqk_ext.preparation.sharing import share_beginning
from pqk_ext.preparation.taps import Tap
from pqk_ext.teachers.students import average_logits
from pqk_ext.training import Trainee
from pqk_ext.training.parameter_groups import parameter_groups

__all__ = ["StudentEnsemble", "StudentEnsembleSettings", "branch_widths", "student_ensemble"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentEnsembleSettings(Checked):
    """Settings of :func:`student_ensemble`; the defaults are the published ones, but for the number of students.

    Attributes:
        students: how many networks are trained at once; the paper has 5.
        base_stages: how many stages belong to the base, at full width in all students, besides what comes before the
            first. 0 is what the authors do for ResNets: the first convolution alone.
        alpha: weight of every student's own loss, cross-entropy.
        beta: weight of the feature maps' distance to those of student 1; 0 makes no adapters.
        gamma: weight of the divergence from the ensemble.
        temperature: softening T of that divergence, which is multiplied by T^2.
        adapter_lr_factor: learning rate of the adapters, as a multiple of the weights'.
        base_gradient: ``all`` branches train the base, or that of the ``first`` student only.
        alone: the control: each student by itself, with a base of its own, as many steps and no teacher.
    """

    students: int = integer(3, 2)
    base_stages: int = integer(0, 0)
    alpha: float = number(0.7, 0, open_low=True)
    beta: float = number(0.15, 0)
    gamma: float = number(0.15, 0)
    temperature: float = number(2.0, 0, open_low=True)
    adapter_lr_factor: float = number(0.5, 0)
    base_gradient: str = choice("all", "first")
    alone: bool = flag(False)


def branch_widths(stage_channels: Sequence[int], students: int) -> list[tuple[int, ...]]:
    """Channels of each student's stages: student ``j`` of S, from 0, has ``C * (S - j) / S``, cut off, not rounded.

    Raises:
        ValueError: so many students that the last has a stage without channels.
    """
    widths = [tuple(c * (students - j) // students for c in stage_channels) for j in range(students)]
    if min(widths[-1]) < 1:
        raise ValueError(f"students: expected at most {min(stage_channels)}, the channels of a stage, got {students}")
    return widths


class StudentEnsemble(Trainee):
    """What ``fit`` trains: S prepared students on one base, and the adapters that compare their feature maps.

    Loss: ``alpha * sum own + beta * sum MSE(adapter(features), features of student 1) + gamma * sum T^2 KL``, where a
    student's own loss is ``model.pqk.loss`` (cross-entropy, and in phase 2 what PQK's own teacher adds to it). Sums are
    over students, and over stages; MSE is a mean over all elements, KL over the batch.

    What is validated by ``fit`` is student 1, the one that is as wide as the original.

    Args:
        students: prepared with one config, the widest first. Afterwards they share the layers before ``stages[0]``.
        stages: paths of the branch's stages; feature maps are taken after each.
        settings: weights of the losses.

    Raises:
        ValueError: students that do not begin alike, or a stage that there is not.
    """

    def __init__(self, students: Sequence[PreparedModel], stages: Sequence[str], settings: Any) -> None:
        super().__init__(students[0])
        self._shared = share_beginning(students, stages[0])
        self.others = nn.ModuleList(students[1:])
        self.settings: StudentEnsembleSettings = settings
        self._taps = [find_taps(student, stages) for student in students]
        widths = [[s.plan[tap.block].shape[0] for tap in taps] for s, taps in zip(students, self._taps, strict=True)]
        compared = widths[1:] if settings.beta else []
        self.adapters = nn.ModuleList(Adapters(own, widths[0], batch_norm=False, bias=True) for own in compared)
        self._parts: dict[str, Tensor] = {}

    @property
    def students(self) -> tuple[PreparedModel, ...]:
        """All of them, the widest first."""
        found = (self.student, *self.others)
        return tuple(student for student in found if isinstance(student, PreparedModel))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """See the class; the base is computed once."""
        own, outputs = self.outputs(x, y)
        s = self.settings
        total = s.alpha * own
        self._parts = {"own": own.detach()}
        for name, weight, loss in (("features", s.beta, self.feature_loss), ("kd", s.gamma, self.ensemble_loss)):
            if weight:
                part = loss(outputs)
                total = total + weight * part
                self._parts[name] = part.detach()
        self._parts["loss"] = total.detach()
        return total

    def outputs(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[NetworkOutput]]:
        """The sum of the students' own losses, and what each of them says."""
        outputs: list[NetworkOutput] = []

        def collect(output: NetworkOutput) -> Tensor:
            outputs.append(output)
            return output.logits.new_zeros(())

        base_taps = tuple(Tap(index) for index in range(self._shared))
        own = self.students[0].pqk.loss(x, y, taps=base_taps + self._taps[0], extra=collect)
        base, features = outputs[0].features[: self._shared], outputs[0].features[self._shared :]
        outputs[0] = NetworkOutput(outputs[0].logits, features)
        if self.settings.base_gradient == "first":
            base = tuple(value.detach() for value in base)
        for student, taps in zip(self.students[1:], self._taps[1:], strict=True):
            with student.begins_with(base):
                own = own + student.pqk.loss(x, y, taps=taps, extra=collect)
        return own, outputs

    def feature_loss(self, outputs: Sequence[NetworkOutput]) -> Tensor:
        """``L_int``: moves the thinner students and the adapters, never student 1."""
        wanted = [feature.detach() for feature in outputs[0].features]
        terms = [
            F.mse_loss(adapted, feature)
            for adapters, output in zip(self.adapters, outputs[1:], strict=True)
            for adapted, feature in zip(adapters(output.features), wanted, strict=True)
        ]
        return torch.stack(terms).sum()

    def ensemble_loss(self, outputs: Sequence[NetworkOutput]) -> Tensor:
        """``L_KD``: moves every student towards the average of all, which is a constant."""
        average = average_logits([output.logits for output in outputs])
        return torch.stack([kl(output.logits, average, self.settings.temperature) for output in outputs]).sum()

    def step(self) -> None:
        """To be called after each ``optimizer.step()``: moves the masks and phases of all students on."""
        super().step()  # the first student's, which moves the masks of the base
        for student in self.students[1:]:
            student.pqk.step()

    def metrics(self) -> dict[str, float]:
        """Parts of the loss, and each student's sparsity."""
        parts = {name: float(value) for name, value in self._parts.items()}
        sparsity = {f"sparsity{i}": student.pqk.sparsity for i, student in enumerate(self.students, 1)}
        return {**parts, **sparsity, "phase": float(self.students[0].pqk.phase)}

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Every parameter once; the adapters at a rate of their own."""
        adapters = {r"adapters\..*": {"lr": lr * self.settings.adapter_lr_factor}} if len(self.adapters) else None
        factor = self.students[0].pqk.config.step_size_lr_factor
        return parameter_groups(self, lr, weight_decay, overrides=adapters, step_size_lr_factor=factor)


@method(StudentEnsembleSettings)
def student_ensemble(run: Run) -> dict[str, nn.Module]:
    """Walawalkar, Shen, Savvides, "Online Ensemble Model Compression using Knowledge Distillation", ECCV 2020.

    One run makes S networks of falling width for S budgets: ``student1`` (as wide as the recipe's model) to
    ``studentS``. They share the base (everything before the first stage), have branches of equal depth, and are taught
    by the average of their logits, which needs no training beforehand.

    Certain, from the paper and the authors' program: widths (their table of sizes is a test), the three losses and
    their weights, T = 2, the average without weights, adapters of one 1x1 convolution with bias at half the rate. From
    the program where the paper is silent: T^2, means over the batch and over elements. Chosen here: all branches train
    the base (the program's switch looks inverted), adapters exist from the first step and keep their optimizer state
    (the program makes them in the first pass and adds them after an epoch). The students are pruned and quantized from
    the beginning, each with PQK's masks and step sizes, the base with one set of them.

    One run takes about as long as S runs do (1.0 to 1.1 times on a CPU, 0.8 times without the adapters): what the base,
    computed once, saves, the adapters cost, which are as wide as student 1. Results are those after the last step; the
    paper reports the best test accuracy of each run.

    Raises:
        ValueError: a model without stages or with too few, trained weights to start from, or too many students.
    """
    settings: StudentEnsembleSettings = run.settings
    networks, stages = _networks(run, settings)
    students = {f"student{number}": run.prepare(network) for number, network in enumerate(networks, 1)}
    sizes = [models.count_parameters(network) for network in networks]
    run.facts["students"] = {
        name: {"stage_channels": list(network.stage_channels), "parameters": size, "relative_size": size / sizes[0]}  # type: ignore[arg-type]
        for name, network, size in zip(students, networks, sizes, strict=True)
    }
    if settings.alone:
        for name, student in students.items():
            run.fit(name, student)
    else:
        run.fit("ensemble", StudentEnsemble(list(students.values()), stages, settings))
    scores = {
        split: _accuracies(list(students.values()), *getattr(run.data, split)) for split in ("test", "validation")
    }
    run.facts["accuracies"] = {
        name: {f"{split}_accuracy": score[name] for split, score in scores.items()} for name in ("average", "mean")
    }
    return dict(students)


def _networks(run: Run, settings: StudentEnsembleSettings) -> tuple[list[nn.Module], tuple[str, ...]]:
    """The float networks, the widest first, and the stages of which their branches consist."""
    if run.recipe.pretrained:
        raise ValueError("pretrained: expected false: there are no trained weights for thinner branches")
    plain, shared = run.network(), settings.base_stages
    if not hasattr(plain, "stage_channels") or not hasattr(plain, "stage_names"):
        raise ValueError(f"model: expected one with the option stage_channels, got {run.recipe.model!r}")
    channels: tuple[int, ...] = plain.stage_channels  # type: ignore[assignment]
    names: tuple[str, ...] = plain.stage_names  # type: ignore[assignment]
    if shared >= len(names):
        raise ValueError(f"base_stages: expected fewer than the {len(names)} stages of the model, got {shared}")
    widths = branch_widths(channels[shared:], settings.students)
    return [run.network(stage_channels=channels[:shared] + width) for width in widths], names[shared:]


@torch.no_grad()
def _accuracies(students: Sequence[nn.Module], x: Tensor, y: Tensor, batch_size: int = 256) -> dict[str, float]:
    """Share of samples that the average of the logits has right, and the mean of what each student has right."""
    right = torch.zeros(len(students) + 1, dtype=torch.int64, device=x.device)
    for inputs, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        logits = [student(inputs) for student in students]
        right += torch.stack([(o.argmax(1) == labels).sum() for o in (average_logits(logits), *logits)])
    average, *own = (right.double() / len(x)).tolist()
    return {"average": average, "mean": sum(own) / len(own)}
