"""Distillation along the route that the teacher took, easy targets first (route-constrained optimization)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pqk_ext.distill.adapters import Adapters
from pqk_ext.distill.feature_mse import feature_mse
from pqk_ext.fields import Checked, choice, integer, integers, number, text
from pqk_ext.methods._anchors import Congruence, arranged, equal_interval, next_anchor
from pqk_ext.methods._registry import method
from pqk_ext.methods.distillation import Distillation, FeatureTerm
from pqk_ext.methods.run import Run
from pqk_ext.preparation import PreparedModel, find_taps
from pqk_ext.teachers.route import Route, RouteTeacher, RouteTraining, equal_parts
from pqk_ext.training.data import derived_seed

__all__ = ["GreedyDistillation", "RCOSettings", "mimicking", "rco"]

_TEACHER, _ADAPTERS = 1, 2  # draws of random numbers other than the student's


@dataclasses.dataclass(frozen=True, kw_only=True)
class RCOSettings(Checked):
    """What only this method has.

    Attributes:
        strategy: anchors at equal intervals of the teacher's run (``equal``), or each chosen by what the student has
            learnt (``greedy``).
        anchors: snapshots that the student follows one after the other (``equal``). 1 is ordinary distillation from
            the converged teacher, 0 no teacher.
        delta: how much harder the next anchor may be (``greedy``): the ratio of the student's divergence from the
            present anchor to that from the next one is at least this. 0 goes to the converged teacher at once, 1 to
            the very next snapshot, unless a later one is no harder.
        order: of the anchors: along the ``route``; controls: ``reversed``, ``shuffled`` (never in order), or the
            converged teacher (``last``) in every stage.
        schedule: the learning rate's: one ``global`` schedule over all stages, the optimizer kept, or a full one in
            each stage, with a new optimizer (``restart``). Both have the recipe's number of steps in all.
        variant: what is matched: ``logits``, a map inside (``hint``), or the mean over the map before the last layer
            (``mimicking``).
        temperature: of the logits.
        kd_weight: of the divergence from the teacher's logits (``logits``).
        feature_weight: of the squared difference of features (``hint``, ``mimicking``).
        ce_weight: of the cross-entropy.
        tap: module of the student after which the feature is taken.
        teacher_tap: the teacher's.
        teacher: its network in the zoo.
        teacher_width: its option ``width``; 0: none is given.
        teacher_channels: its option ``stage_channels``; empty: none is given.
        teacher_steps: length of its training.
        teacher_lr: its learning rate; 0: the recipe's.
        snapshots: kept along its training, at equal intervals.
        last: the snapshot that counts as the converged teacher; 0: the last one.
    """

    strategy: Literal["equal", "greedy"] = choice("equal", "greedy")
    anchors: int = integer(4, 0)
    delta: float = number(0.8, 0, 1)
    order: Literal["route", "reversed", "shuffled", "last"] = choice("route", "reversed", "shuffled", "last")
    schedule: Literal["global", "restart"] = choice("global", "restart")
    variant: Literal["logits", "hint", "mimicking"] = choice("logits", "hint", "mimicking")
    temperature: float = number(4.0, 0, open_low=True)
    kd_weight: float = number(1.0, 0)
    feature_weight: float = number(1.0, 0)
    ce_weight: float = number(1.0, 0)
    tap: str = text("layers")
    teacher_tap: str = text("layers")
    teacher: str = text("ds_cnn")
    teacher_width: int = integer(0, 0)
    teacher_channels: tuple[int, ...] = integers((), 1)
    teacher_steps: int = integer(920, 1)
    teacher_lr: float = number(0.0, 0)
    snapshots: int = integer(20, 1)
    last: int = integer(0, 0)

    def check_together(self) -> None:
        """Raises ValueError where the route is too short for what is asked of it."""
        if self.snapshots > self.teacher_steps:
            raise ValueError(f"snapshots: expected at most teacher_steps = {self.teacher_steps}, got {self.snapshots}")
        if self.last > self.snapshots:
            raise ValueError(f"last: expected at most snapshots = {self.snapshots}, got {self.last}")
        if self.anchors > self.route_length:
            raise ValueError(f"anchors: expected at most the route's {self.route_length} snapshots, got {self.anchors}")
        if self.anchors == 0 and self.schedule == "restart":
            raise ValueError(
                "anchors: expected 1 or more with the schedule 'restart', which has a stage for each, got 0"
            )
        if self.strategy == "greedy" and self.order != "route":
            raise ValueError(f"order: expected 'route' with the strategy 'greedy', got {self.order!r}")

    @property
    def teacher_options(self) -> dict[str, Any]:
        """Of the teacher's function in the zoo."""
        width = {"width": self.teacher_width} if self.teacher_width else {}
        return width | ({"stage_channels": self.teacher_channels} if self.teacher_channels else {})

    @property
    def stages(self) -> int:
        """Parts of the student's training, each with one anchor."""
        return self.route_length if self.strategy == "greedy" else self.anchors

    @property
    def route_length(self) -> int:
        """Snapshots up to the one that counts as the converged teacher."""
        return self.last or self.snapshots


def mimicking(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Squared distance of the embeddings, ``||e_S - e_T||^2``, mean over the batch, summed over the features.

    An embedding is the mean over a map's places: what global pooling hands to the last layer.

    Args:
        student_features: each (batch, channels, ...).
        teacher_features: as many, of as many channels; detached.
    """
    pairs = zip(student_features, teacher_features, strict=True)
    differences = [s.flatten(2).mean(2) - t.detach().flatten(2).mean(2) for s, t in pairs]
    return torch.stack([d.square().sum(1).mean() for d in differences]).sum()


class GreedyDistillation(Distillation):
    """Distillation whose anchor is chosen at the beginning of each stage, by what the student has learnt.

    The choices are part of the state.

    Args:
        student: the prepared network.
        route: the snapshots.
        edges: the student's steps between which the stages lie.
        choose: (student, number of the anchor so far, 0 at first) -> number of the next one.
        losses: see :class:`Distillation`.
    """

    chosen: Tensor

    def __init__(
        self,
        student: PreparedModel,
        route: Route,
        edges: Sequence[int],
        choose: Callable[[PreparedModel, int], int],
        **losses: Any,
    ) -> None:
        self._along = RouteTeacher(route, lambda stage: int(self.chosen[stage]), edges)
        self._choose = choose
        super().__init__(student, self._along, **losses)
        self.register_buffer("chosen", torch.zeros(len(edges) - 1, dtype=torch.int64))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of this step; the first one of a stage chooses the stage's anchor."""
        stage = self._along.stage(self.step_count)
        if int(self.chosen[stage]) == 0:
            self.chosen[stage] = self._choose(self.student, int(self.chosen[stage - 1]) if stage else 0)
        return super().loss(x, y)


class _Experiment:
    """The student's side of a run: what it is told, stage by stage."""

    def __init__(self, run: Run, route: Route) -> None:
        self.run, self.route, self.settings = run, route, run.settings
        self.length: int = self.settings.route_length
        self.greedy = self.settings.strategy == "greedy"
        inputs = run.data.validation[0]
        self.congruence = Congruence(route, self.length, inputs, self.settings.temperature)
        stages = self.settings.stages
        self.edges = equal_parts(run.recipe.training.steps, stages)
        self.fixed = arranged(equal_interval(self.length, stages), self.settings.order, run.seed)

    def choose(self, student: PreparedModel, current: int) -> int:
        """The anchor after ``current``; once that is the converged teacher, it stays."""
        if current == self.length:
            return current
        return next_anchor(self.congruence(student), current, self.settings.delta)

    def global_schedule(self) -> tuple[PreparedModel, list[int]]:
        """All stages in one run of the optimizer; the student, and the anchors that it followed."""
        student = self.run.prepare(self.run.network())
        if self.greedy:
            trainee = GreedyDistillation(student, self.route, self.edges, self.choose, **self.losses(student))
            chosen = self.run.fit("student", trainee).chosen.tolist()
            return student, chosen
        teacher = RouteTeacher(self.route, self.fixed, self.edges)
        self.run.fit("student", Distillation(student, teacher, **self.losses(student)))
        return student, list(self.fixed)

    def restarts(self) -> tuple[PreparedModel, list[int]]:
        """A run of the optimizer for each stage. The greedy search ends with one stage for all that is left."""
        student, adapters, anchors, done = self.run.prepare(self.run.network()), None, list[int](), 0
        while done < self.edges[-1]:
            stage = len(anchors)
            anchor = self.choose(student, anchors[-1] if anchors else 0) if self.greedy else self.fixed[stage]
            end = self.edges[-1] if self.greedy and anchor == self.length else self.edges[stage + 1]
            student = self.begin_stage(student if anchors else None, end - done)
            losses = self.losses(student, adapters)
            adapters = losses["feature_terms"][0].adapters if losses["feature_terms"] else None
            trainee = Distillation(student, self.route.teacher(anchor), **losses)
            self.run.fit(f"student{stage + 1}", trainee, draw=3 + stage if stage else 0)
            anchors.append(anchor)
            done = end
        return student, anchors

    def begin_stage(self, previous: PreparedModel | None, steps: int) -> PreparedModel:
        """A student for ``steps``: a new one, or the previous stage's, pruned and quantized from the first step on."""
        if previous is None:
            return self.run.prepare(self.run.network(), steps=steps)
        phase1 = self.run.recipe.config(steps).phase1_steps
        student = self.run.prepare(self.run.network(), steps=steps, warmup_fraction=0.0, ramp_end=0.5 / phase1)
        state = previous.state_dict()
        state["pqk.step_count"] = torch.zeros_like(state["pqk.step_count"])
        student.load_state_dict(state)
        return student

    def losses(self, student: PreparedModel, adapters: nn.Module | None = None) -> dict[str, Any]:
        """Arguments of :class:`Distillation` for the variant; the adapters are new unless some are given."""
        s = self.settings
        logits = s.variant == "logits"
        losses = {"ce_weight": s.ce_weight, "kd_weight": s.kd_weight if logits else 0.0, "temperature": s.temperature}
        if logits:
            return losses | {"taps": (), "feature_terms": ()}
        taps = find_taps(student, (s.tap,))
        own, its = student.plan[taps[0].block].shape, self.route.teacher(self.length).feature_shapes[0]
        hint = s.variant == "hint"
        if len(own) != 3 or len(its) != 3 or (hint and own[1:] != its[1:]):
            raise ValueError(
                f"settings.tap, settings.teacher_tap: expected maps{' of one height and width' if hint else ''}, got "
                f"{s.tap!r} of shape {own} and {s.teacher_tap!r} of shape {its}"
            )
        torch.manual_seed(derived_seed(self.run.seed, _ADAPTERS))
        adapters = adapters or Adapters(own[:1], its[:1], batch_norm=False, bias=True, only_different=not hint)
        return losses | {
            "taps": taps,
            "feature_terms": (FeatureTerm(feature_mse if hint else mimicking, s.feature_weight, adapters),),
        }

    def report(self, student: PreparedModel, anchors: Sequence[int]) -> dict[str, Any]:
        """What is known of the run besides the network."""
        logits = self.congruence.student_logits(student)
        return {
            "anchors": list(anchors),
            "anchor_steps": [self.route.points[anchor] for anchor in anchors],
            "congruence": self.congruence.divergence(logits, self.length, 1.0),
            "congruence_softened": self.congruence.divergence(logits, self.length),
            "congruence_of_last_anchor": self.congruence.divergence(logits, anchors[-1], 1.0),
        }


def _teach(run: Run) -> Route:
    """Trains the teacher, and keeps its route."""
    s = run.settings
    points = equal_parts(s.teacher_steps, s.snapshots)
    directory = run.directory / "route"
    network = run.network(s.teacher, pretrained=False, draw=_TEACHER, **s.teacher_options)
    changes = {"lr": s.teacher_lr} if s.teacher_lr else {}
    trainee = RouteTraining(network, directory, points)
    run.fit("teacher", trainee, steps=s.teacher_steps, draw=_TEACHER, **changes)
    run.extra_steps += s.teacher_steps
    run.facts["teacher_accuracy"] = run.accuracy(network, "validation")
    taps = () if s.variant == "logits" else (s.teacher_tap,)
    return Route(directory, network, points, run.example_inputs, taps=taps)


@method(RCOSettings)
def rco(run: Run) -> dict[str, nn.Module]:
    """Jin et al., "Knowledge Distillation via Route Constrained Optimization", ICCV 2019 (arXiv 1904.09149).

    Certain: snapshots along the teacher's training are the anchors; the student follows them in order, each stage from
    the weights that the last one ended with, the converged teacher at the end; it works with logits, hints and
    embeddings; anchors lie at equal intervals of epochs, or are found by a greedy search with a threshold on a ratio of
    divergences. Reconstructed: that ratio and its held-out data (here the validation split), the weights of the losses,
    the temperature, the lengths of stages, whether the learning rate restarts. The search begins at the untrained
    teacher and decides once in each of as many equal stages as there are snapshots, so that a threshold of 0 is
    ordinary distillation, step for step, and one that lets only the next snapshot through is every snapshot in turn.

    Every arm takes the recipe's number of steps: what more of them would do is no merit of the route. Control of the
    restarts: ``order: last`` with ``schedule: restart``. Each snapshot has its own running statistics, and is evaluated
    with them. A stage after the first begins pruned and quantized; its schedule of sparsity is over.

    Facts: ``anchors`` (numbers of snapshots), ``anchor_steps``, ``teacher_accuracy`` and ``congruence``: mean
    KL(converged teacher || deployed student) on the validation split; also at the settings' temperature
    (``congruence_softened``), and from the last anchor (``congruence_of_last_anchor``).
    """
    stages, steps = run.settings.stages, run.recipe.training.steps
    if stages == 0:
        return {"rco": run.fit("student", run.prepare(run.network()))}
    if stages > steps:
        raise ValueError(f"training.steps: expected at least 1 for each of {stages} stages, got {steps}")
    experiment = _Experiment(run, _teach(run))
    restart = run.settings.schedule == "restart"
    student, anchors = experiment.restarts() if restart else experiment.global_schedule()
    run.facts |= experiment.report(student, anchors)
    return {"rco": student}
