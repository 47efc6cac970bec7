"""A shallow student taught by Gramians of all pairs of stages and by an offline ensemble's predictions."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.config import PQKConfig
from pqk_ext.distill import FEATURE_LOSSES
from pqk_ext.distill.adapters import Adapters
from pqk_ext.fields import Checked, choice, flag, integer, names, number, text, text_or_flag
from pqk_ext.methods._bottleneck import TaughtFloat, narrowed
from pqk_ext.methods._registry import method
from pqk_ext.methods.distillation import Distillation, FeatureTerm
from pqk_ext.methods.run import Run
from pqk_ext.nn import Role
from pqk_ext.preparation import PreparedModel, Tap, find_taps, prepare
from pqk_ext.teachers import FloatTeacher, Teacher
from pqk_ext.teachers.ensemble import EnsembleTeacher
from pqk_ext.training.data import derived_seed

__all__ = ["CrosslayerSettings", "Initialization", "crosslayer"]

_PAIRS = {"all": "crosslayer", "neighbours": "fsp"}
_OBSERVE_INTERVAL = 8
_BALANCED_ON = 256  # training samples
# Draws of initializations, samples and teachers, beside the student's 0 and the teachers' 1, 2, ...
_NARROW, _INITIAL, _FINAL, _ADAPTERS = 1001, 2001, 2002, 2003


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrosslayerSettings(Checked):
    """Settings of :func:`crosslayer`.

    Attributes:
        teacher: network of the zoo.
        teacher_pretrained: as ``pretrained`` of recipes; each teacher then starts from these weights.
        teachers: members of the ensemble, which differ in their random seed; 0: no teacher at all, plain training.
        teacher_steps: optimizer steps of each; 0: as it is.
        teacher_lr: learning rate of the teachers; 0: the recipe's.
        teacher_stages: modules whose outputs are compared (:func:`pqk_ext.preparation.find_taps`).
        student_stages: as many of the student.
        pairs: Gramians of ``all`` pairs of stages, of ``neighbours`` (FSP), or ``none``.
        schedule: ``A``: adapters bring the student to the teacher's widths. ``B``: a chain; each teacher is first
            followed by a copy with 1x1 bottlenecks of the student's widths after its stages, which teaches the student.
        bottleneck_steps: optimizer steps of such a copy.
        init_fraction: share of the student's steps in which it learns Gramians alone, in float; 0: one stage.
        init_kl_weight: of the teacher's predictions in those steps.
        init_lr: learning rate of those steps; 0: the recipe's.
        gramian_weight: of the Gramians after them.
        balanced: ``gramian_weight`` is relative: multiplied by what makes the Gramians' loss as large as cross-entropy
            when the student's main stage begins.
        kl_weight: of the teacher's predictions.
        temperature: of the predictions on both sides.
        average: of the teachers' predictions (:class:`pqk_ext.teachers.ensemble.EnsembleTeacher`): a random ``subset``,
            random ``weights``, or the fixed ``mean``.
        gramians_from: the Gramians are those of a member ``drawn`` at each step, or always of the ``first``.
        adapters: ``trained``; or ``frozen`` orthogonal maps, the control: adapters may learn in the student's place.
    """

    teacher: str = text("resnet32")
    teacher_pretrained: bool | str = text_or_flag(False)
    teachers: int = integer(3, 0, 62)
    teacher_steps: int = integer(920, 0)
    teacher_lr: float = number(0.0, 0)
    teacher_stages: tuple[str, ...] = names(("bn1", "layer1", "layer2", "layer3"), least=2)
    student_stages: tuple[str, ...] = names(("bn1", "layer1", "layer2", "layer3"), least=2)
    pairs: Literal["all", "neighbours", "none"] = choice("all", "neighbours", "none")
    schedule: Literal["A", "B"] = choice("A", "B")
    bottleneck_steps: int = integer(200, 0)
    init_fraction: float = number(0.3, 0, 0.95)
    init_kl_weight: float = number(0.0, 0)
    init_lr: float = number(0.0, 0)
    gramian_weight: float = number(0.1, 0)
    balanced: bool = flag(True)
    kl_weight: float = number(1.0, 0)
    temperature: float = number(1.0, 0, open_low=True)
    average: Literal["subset", "weights", "mean"] = choice("subset", "weights", "mean")
    gramians_from: Literal["drawn", "first"] = choice("drawn", "first")
    adapters: Literal["trained", "frozen"] = choice("trained", "frozen")

    def check_together(self) -> None:
        """Raises ValueError where settings do not go together."""
        if len(self.student_stages) != len(self.teacher_stages):
            raise ValueError(
                f"student_stages: expected as many as teacher_stages, {len(self.teacher_stages)}, "
                f"got {len(self.student_stages)}"
            )
        if self.pairs == "none" and (self.init_fraction > 0 or self.schedule == "B"):
            raise ValueError("pairs: expected all or neighbours beside init_fraction above 0 or schedule B, got none")

    @property
    def taught(self) -> bool:
        """Whether any teacher has a say."""
        return self.teachers > 0 and (self.pairs != "none" or self.kl_weight > 0)


@method(CrosslayerSettings)
def crosslayer(run: Run) -> dict[str, nn.Module]:
    """Chou, Chiu and Liao, "Cross-layer knowledge distillation with KL divergence and offline ensemble", 2021.

    Certain, from the abstracts (that article, APSIPA ASC 2020, and Chou's thesis, 2019): Gramians between stages as
    in FSP (Yim et al., CVPR 2017), also between stages that are no neighbours; the KL term of deep mutual learning,
    offline, towards fixed teachers; a random average of several of them; 1x1 convolutions where widths differ; two
    stages, so that what was transferred is not lost. The forms of FSP and of the KL term are those of published code.

    Reconstructed: the set of pairs (all) and their equal weights, the place of the 1x1 convolutions, the distribution
    of the random average (a subset, uniformly), the two readings of the two stages (``schedule``), all numbers of steps
    and weights. The main stage keeps the Gramians' loss at a small weight; FSP's own (0) is ``gramian_weight: 0``.

    Known traps: Gramians are means over positions and over entries, so that no pair outweighs the others; both sides
    are taken after the ReLU; the first stage trains batch norm as usual and does not touch the head, the second has a
    new optimizer and warms up its rate; probabilities are averaged, not logits. Teachers of different seeds have
    channels in another order. So Gramians are never averaged; but a student that meets another teacher at each
    step is in the mean pulled to the average all the same, which is what ``gramians_from: first`` avoids.

    The student's stages are those of the integer network, quantizers included; the first stage is in float.
    """
    s: CrosslayerSettings = run.settings
    network = run.network()
    if not s.taught:
        return {"crosslayer": run.fit("student", run.prepare(network))}
    shapes = _shapes(run, network, s.student_stages)
    teachers = [_teacher(run, index, [shape[0] for shape in shapes]) for index in range(s.teachers)]
    term = _gramian_term(run, shapes, teachers[0].feature_shapes)
    steps = run.recipe.training.steps
    initial = run.facts["init_steps"] = round(s.init_fraction * steps)
    if initial > 0:
        network = _initialized(run, network, initial, _ensemble(run, teachers, _INITIAL), term)
    student = run.prepare(network, steps=steps - initial)
    ensemble = _ensemble(run, teachers, _FINAL)
    taps = find_taps(student, s.student_stages) if term is not None else ()
    terms = [_weighted(run, student, taps, ensemble, term)] if term is not None else []
    trainee = Distillation(
        student, ensemble, taps=taps, kd_weight=s.kl_weight, temperature=s.temperature, feature_terms=terms
    )
    run.fit("student", trainee)
    return {"crosslayer": student}


class Initialization(Distillation):
    """The first stage: the student, in float and unpruned, learns its teacher's Gramians.

    There is no cross-entropy, and the head learns nothing unless the teacher's predictions count.
    """

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of this step, without the student's own."""
        told = self._teacher[0](x, self.step_count)
        observe = self.step_count % _OBSERVE_INTERVAL == 0
        output = self.student.run(x, Role.FLOAT, observe, taps=self._taps)
        if self.kd_weight == 0:
            output = output._replace(logits=output.logits.detach())  # not even weight decay moves the head
        return self._extra(output, told, y)


def _float_student(run: Run, network: nn.Module, steps: int) -> PreparedModel:
    config = PQKConfig(sparsity=0.0, teacher=False, phase1_fraction=1.0, total_steps=steps)
    return prepare(network, config, example_inputs=run.example_inputs)


def _shapes(run: Run, network: nn.Module, stages: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Of the features after the stages."""
    return FloatTeacher(network, run.example_inputs, taps=stages).feature_shapes


def _teacher(run: Run, index: int, widths: Sequence[int]) -> FloatTeacher:
    """A member of the ensemble; ``widths`` are the student's."""
    s: CrosslayerSettings = run.settings
    network = run.network(s.teacher, pretrained=s.teacher_pretrained, draw=index + 1)
    if s.teacher_steps > 0:
        lr = s.teacher_lr or run.recipe.training.lr
        run.fit(f"teacher-{index}", network, steps=s.teacher_steps, draw=index + 1, lr=lr)
        run.extra_steps += s.teacher_steps
    accuracies = run.facts.setdefault("teacher_accuracy", [])
    accuracies.append(run.accuracy(network.eval()))
    stages = s.teacher_stages if s.pairs != "none" else ()
    teacher = FloatTeacher(network, run.example_inputs, taps=stages)
    if s.schedule == "A":
        return teacher
    torch.manual_seed(derived_seed(run.seed, _NARROW, index))
    channels = [shape[0] for shape in teacher.feature_shapes]
    network, stages = narrowed(network, stages, channels, widths)
    if s.bottleneck_steps > 0:
        trainee = TaughtFloat(network, teacher, kl_weight=1.0, temperature=s.temperature)
        run.fit(f"narrow-{index}", trainee, steps=s.bottleneck_steps, draw=_NARROW + index)
        run.extra_steps += s.bottleneck_steps
    run.facts.setdefault("narrow_accuracy", []).append(run.accuracy(network.eval()))
    return FloatTeacher(network, run.example_inputs, taps=stages)


def _ensemble(run: Run, teachers: Sequence[Teacher], stage: int) -> EnsembleTeacher:
    s: CrosslayerSettings = run.settings
    return EnsembleTeacher(
        teachers,
        seed=derived_seed(run.seed, stage),
        average=s.average,
        features=s.gramians_from,
        temperature=s.temperature,
    )


def _gramian_term(
    run: Run, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]
) -> FeatureTerm | None:
    """The loss of Gramians and its adapters, given the shapes of the features on both sides."""
    s: CrosslayerSettings = run.settings
    if s.pairs == "none":
        return None
    torch.manual_seed(derived_seed(run.seed, _ADAPTERS))
    own, wanted = ([shape[0] for shape in shapes] for shapes in (student, teacher))
    frozen = s.adapters == "frozen"
    adapters = Adapters(own, wanted, frozen=frozen, only_different=True) if own != wanted else None
    return FeatureTerm(FEATURE_LOSSES[_PAIRS[s.pairs]], s.gramian_weight, adapters)


def _initialized(run: Run, network: nn.Module, steps: int, teacher: Teacher, term: FeatureTerm | None) -> nn.Module:
    """The first stage: the network, and the adapters of ``term``, after ``steps`` of it."""
    assert term is not None
    s: CrosslayerSettings = run.settings
    student = _float_student(run, network, steps)
    trainee = Initialization(
        student,
        teacher,
        taps=find_taps(student, s.student_stages),
        kd_weight=s.init_kl_weight,
        temperature=s.temperature,
        feature_terms=[dataclasses.replace(term, weight=1.0)],
    )
    run.fit("initialization", trainee, lr=s.init_lr or run.recipe.training.lr)
    network = copy.deepcopy(network)
    network.load_state_dict(student.float_state_dict(pruned=False))
    return network


def _weighted(
    run: Run, student: PreparedModel, taps: Sequence[Tap], teacher: Teacher, term: FeatureTerm
) -> FeatureTerm:
    """The term with the weight of the main stage, which may be relative to cross-entropy at its begin."""
    s: CrosslayerSettings = run.settings
    if s.balanced and s.gramian_weight > 0:
        x, y = (part[:: max(1, len(part) // _BALANCED_ON)][:_BALANCED_ON] for part in run.data.train)
        # A copy, since batch norm must see this batch, and must not remember it.
        student, adapters = copy.deepcopy((student.train(), term.adapters))
        with torch.no_grad():
            own, told = student.run(x, Role.FLOAT, taps=taps), teacher(x, 0)
            features = own.features if adapters is None else adapters.train()(own.features)
            ratio = float(F.cross_entropy(own.logits, y)) / max(float(term.loss(features, told.features)), 1e-12)
        term = dataclasses.replace(term, weight=ratio * s.gramian_weight)
    run.facts["gramian_weight"] = term.weight
    return term
