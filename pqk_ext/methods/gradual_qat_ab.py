"""Gradual pruning, quantization-aware training and distillation of activation boundaries, one after the other."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from pqk_ext.deploy.exporter import calibrate
from pqk_ext.distill.activation_boundary import activation_boundary, activation_similarity
from pqk_ext.distill.adapters import Adapters
from pqk_ext.fields import Checked, choice, flag, integer, names, number, text, text_or_flag
from pqk_ext.methods._registry import method
from pqk_ext.methods.distillation import Distillation, FeatureTerm
from pqk_ext.methods.run import Run
from pqk_ext.nn import Role
from pqk_ext.nn.batch_norm import RoleBatchNorm
from pqk_ext.preparation import PreparedModel, Tap, find_taps, stage_outputs
from pqk_ext.teachers import FloatTeacher
from pqk_ext.training.data import derived_seed

__all__ = ["GradualQatAbSettings", "gradual_qat_ab", "mask_and_codes_bytes"]

_CALIBRATION = 3  # keeps the draw of the calibration batches apart from other seeds
_COMPARED = 256  # validation samples whose activations are compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradualQatAbSettings(Checked):
    """Settings of :func:`gradual_qat_ab`.

    Attributes:
        teacher: network of the zoo; empty: the recipe's.
        teacher_pretrained: as ``pretrained`` of a recipe, for another network than the recipe's.
        teacher_steps: steps for which it is trained first; 0 takes it as it is.
        student: begin with a copy of the trained ``teacher``, or with the network that the ``recipe`` names.
        ab_init_fraction: share of the steps, before all pruning, on activation boundaries alone, without labels: the
            first phase of Heo et al.
        pruning: along the cubic schedule (``gradual``), or all at once before the first step (``one_shot``).
        quantization: ``qat``, or ``ptq``: calibration alone, and pruning takes all steps.
        qat_fraction: share of the steps that is trained quantized.
        qat_lr_factor: learning rate of that part, as a multiple of the recipe's.
        qat_batch_norm: in that part batch norms ``train`` on, or ``freeze`` their running statistics and use them.
        calibration_batches: batches of training samples, as they are, from which activation ranges come.
        points: modules before whose activations boundaries are compared, in the order of the network; empty: the last
            of each spatial resolution.
        teacher_points: the same of the teacher; empty: the student's.
        ab_weight: of the loss of activation boundaries; 0 leaves it out.
        margin: of that loss.
        per_element: take its mean over the elements of each stage, or (false) the published sum.
        ce_weight: of the cross-entropy.
        kd_weight: of the loss of logits; 0 leaves it out.
        temperature: softening of both logits.
    """

    teacher: str = text()
    teacher_pretrained: bool | str = text_or_flag(False)
    teacher_steps: int = integer(920, 0)
    student: str = choice("teacher", "recipe")
    ab_init_fraction: float = number(0.0, 0, 1, open_high=True)
    pruning: str = choice("gradual", "one_shot")
    quantization: str = choice("qat", "ptq")
    qat_fraction: float = number(0.1, 0, 1, open_high=True)
    qat_lr_factor: float = number(0.01, 0)
    qat_batch_norm: str = choice("train", "freeze")
    calibration_batches: int = integer(8, 1)
    points: tuple[str, ...] = names()
    teacher_points: tuple[str, ...] = names()
    ab_weight: float = number(1.0, 0)
    margin: float = number(1.0, 0, open_low=True)
    per_element: bool = flag(True)
    ce_weight: float = number(1.0, 0)
    kd_weight: float = number(1.0, 0)
    temperature: float = number(3.0, 0, open_low=True)

    def check_together(self) -> None:
        if self.ab_init_fraction + self.qat_fraction >= 1:
            raise ValueError(
                "qat_fraction: expected a sum with ab_init_fraction below 1, to prune in, got "
                f"{self.ab_init_fraction} + {self.qat_fraction}"
            )
        if self.student == "teacher" and self.teacher:
            raise ValueError("student: expected 'recipe' beside a teacher of another network, got 'teacher'")


@method(GradualQatAbSettings)
def gradual_qat_ab(run: Run) -> dict[str, nn.Module]:
    """Shin and Oh, "Neural Network Model Compression Algorithms for Image Classification in Embedded Systems", 2022.

    (J. Korea Robotics Society 17(2), 133-141.) A dense float teacher; a copy of it is pruned gradually, in float; then
    it is calibrated and trained on with fake quantization, its masks frozen; both parts learn from labels, from the
    teacher's logits and from its activation boundaries.

    Certain, from the abstract: gradual pruning, quantization-aware training and activation boundaries are integrated,
    for DenseNet-201 on CIFAR-10. Each is well known by itself: the cubic schedule (Zhu and Gupta, 2017), integer
    training (Wu et al., 2020) and the boundaries (Heo et al., 2019, :func:`pqk_ext.distill.activation_boundary`), whose
    points here are the batch norms before the ReLUs of the transitions and after the last block. Reconstructed: their
    order, all sparsities, excluded layers, weights and lengths. No figure of the paper is known to compare with.

    Otherwise than in the recipes cited: activations have unsigned affine codes; ranges are those of least squared
    error, and step sizes learn slowly unless ``pqk.step_size_lr_factor`` is 0. The teacher stays in evaluation mode,
    where the authors of the boundaries let its running statistics drift; their loss is taken per element, because a sum
    depends on resolution (``per_element: false`` with ``ab_weight: 0.003`` is theirs).

    ``training.steps`` are those of the student, all parts together.
    """
    settings: GradualQatAbSettings = run.settings
    teacher_network = _train_teacher(run)
    network = copy.deepcopy(teacher_network) if settings.student == "teacher" else run.network(draw=1)
    distil = _Distil(run, network, teacher_network)
    steps = _lengths(settings, run.recipe.training.steps)
    if steps["ab_init"]:
        student = run.prepare(network, steps=steps["ab_init"], **{**_FLOAT, "sparsity": 0.0, "layers": {}})
        run.fit("ab_init", distil.boundaries_alone(student), steps=steps["ab_init"])
        distil.look("ab_init", student, Role.PRUNED)
        network.load_state_dict(student.float_state_dict())
    network = _prune(run, network, distil, steps["prune"])
    quantized = run.prepare(network, steps=steps["qat"] or 1, **_QUANTIZED)
    calibrate(quantized, _calibration(run))
    run.facts["ptq_validation_accuracy"] = run.accuracy(quantized.eval())
    if steps["qat"]:
        rate = run.recipe.training.lr * settings.qat_lr_factor
        run.fit("qat", distil(quantized, frozen=settings.qat_batch_norm == "freeze"), steps=steps["qat"], lr=rate)
        distil.look("qat", quantized, Role.STUDENT)
    weights = [layer.weight for layer in quantized.pqk.layers()]
    kept = sum(int(layer.weight_mask.sum()) for layer in quantized.pqk.layers())
    run.facts["mask_and_codes_bytes"] = mask_and_codes_bytes(
        sum(weight.numel() for weight in weights), kept, quantized.pqk.config.weight_bits
    )
    return {"gradual_qat_ab": quantized}


# One phase without PQK's teacher: pruned while float; then with the masks that it has come to.
_FLOAT: dict[str, Any] = {"teacher": False, "phase1_fraction": 1.0, "float_fraction": 1.0}
_QUANTIZED: dict[str, Any] = {**_FLOAT, "float_fraction": 0.0, "warmup_fraction": 0.0, "ranking": "fixed"}


def mask_and_codes_bytes(weights: int, kept: int, bits: int) -> float:
    """Bytes of a mask bit for every weight and a code of ``bits`` for each kept one: a plain sparse file's weights."""
    return (weights + kept * bits) / 8


def _lengths(settings: GradualQatAbSettings, total: int) -> dict[str, int]:
    """Steps of each part; those of the boundaries alone and of quantized training are rounded, pruning has the rest."""
    ab_init = round(total * settings.ab_init_fraction)
    qat = round(total * settings.qat_fraction) if settings.quantization == "qat" else 0
    return {"ab_init": ab_init, "prune": total - ab_init - qat, "qat": qat}


def _train_teacher(run: Run) -> nn.Module:
    settings: GradualQatAbSettings = run.settings
    name = settings.teacher or None
    teacher = run.network(name, pretrained=settings.teacher_pretrained if name else None)
    if settings.teacher_steps:
        run.fit("teacher", teacher, steps=settings.teacher_steps)
        run.extra_steps += settings.teacher_steps
    run.facts["teacher_validation_accuracy"] = run.accuracy(teacher.eval())
    return teacher


def _prune(run: Run, network: nn.Module, distil: _Distil, steps: int) -> nn.Module:
    """The float network with zeros."""
    changes = dict(_FLOAT)
    if run.settings.pruning == "one_shot":
        at_once = run.prepare(network, steps=steps, **changes)
        at_once.pqk.update_masks(final=True)
        network.load_state_dict(at_once.float_state_dict())
        changes["ranking"] = "fixed"
    student = run.prepare(network, steps=steps, **changes)
    run.fit("prune", distil(student), steps=steps)
    network.load_state_dict(student.float_state_dict())
    run.facts["pruned_validation_accuracy"] = run.accuracy(network.eval())
    distil.look("prune", student, Role.PRUNED)
    return network


def _calibration(run: Run) -> list[Tensor]:
    x = run.data.train[0]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(derived_seed(run.seed, _CALIBRATION)))
    return [x[chosen] for chosen in order.split(run.recipe.training.batch_size)[: run.settings.calibration_batches]]


class _Distil:
    """Makes the trainee of each part: one teacher, and one set of connectors that goes on from part to part."""

    def __init__(self, run: Run, network: nn.Module, teacher: nn.Module) -> None:
        self.run, self.settings = run, run.settings
        probe = run.prepare(network, teacher=False)
        points = self.settings.teacher_points or self.settings.points or _names_of_stages(run.prepare(teacher))
        self.teacher = FloatTeacher(teacher, run.example_inputs, taps=points, before_activation=True)
        widths = [probe.plan[tap.block].shape[0] for tap in self._taps(probe)]
        wanted = [shape[0] for shape in self.teacher.feature_shapes]
        self.connectors = _connectors(widths, wanted, run.seed) if widths != wanted else None

    def _taps(self, student: PreparedModel) -> tuple[Tap, ...]:
        return find_taps(student, self.settings.points or _names_of_stages(student), before_activation=True)

    def __call__(self, student: PreparedModel, *, frozen: bool = False) -> Distillation:
        kind = _FrozenStatistics if frozen else Distillation
        s = self.settings
        return self._make(kind, student, s.ab_weight, s.ce_weight, s.kd_weight)

    def boundaries_alone(self, student: PreparedModel) -> Distillation:
        """Without labels and logits."""
        return self._make(Distillation, student, self.settings.ab_weight or 1.0, 0.0, 0.0)

    def _make(
        self, kind: type[Distillation], student: PreparedModel, ab_weight: float, ce_weight: float, kd_weight: float
    ) -> Distillation:
        s = self.settings
        loss = functools.partial(activation_boundary, margin=s.margin, per_element=s.per_element)
        terms = [FeatureTerm(loss, ab_weight, self.connectors)] if ab_weight else []
        taps = self._taps(student) if terms else ()
        return kind(
            student,
            self.teacher,
            taps=taps,
            ce_weight=ce_weight,
            kd_weight=kd_weight,
            temperature=s.temperature,
            feature_terms=terms,
        )

    @torch.no_grad()
    def look(self, part: str, student: PreparedModel, role: Role) -> None:
        """Notes which share of the activations lies on the teacher's side, point by point."""
        x = self.run.data.validation[0][:_COMPARED]
        student.eval()
        features = student.run(x, role, taps=self._taps(student)).features
        if self.connectors is not None:
            features = tuple(self.connectors.eval()(features))
        similarity = activation_similarity(features, self.teacher(x).features)
        self.run.facts[f"{part}_activation_similarity"] = [round(share, 4) for share in similarity]


class _FrozenStatistics(Distillation):
    """Whose student's batch norms use their running statistics in training, and leave them as they are."""

    def train(self, mode: bool = True) -> _FrozenStatistics:
        super().train(mode)
        for module in self.student.modules():
            if isinstance(module, RoleBatchNorm):
                module.eval()
        return self


def _names_of_stages(model: PreparedModel) -> tuple[str, ...]:
    """The last layer or batch norm of each spatial resolution."""
    blocks = [model.plan[tap.block] for tap in stage_outputs(model)]
    return tuple(name for block in blocks if (name := block.batch_norm or block.module) is not None)


def _connectors(widths: list[int], wanted: list[int], seed: int) -> Adapters:
    """1x1 convolutions with batch norm where widths differ, with the initialization of Heo et al."""
    torch.manual_seed(seed)
    adapters = Adapters(widths, wanted, only_different=True)
    for module in adapters.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / module.out_channels))
    return adapters
