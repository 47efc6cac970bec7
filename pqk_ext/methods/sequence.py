"""Pruning, quantization and distillation: each alone, together, or one after the other in any order."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from pqk_ext.config import PQKConfig
from pqk_ext.deploy import calibrate, quantize_post_training
from pqk_ext.fields import Checked, choice, field, integer, text
from pqk_ext.methods._registry import method
from pqk_ext.methods.distillation import Distillation
from pqk_ext.methods.run import Run
from pqk_ext.nn import PQKLayer
from pqk_ext.preparation import PreparedModel
from pqk_ext.teachers import FloatTeacher

__all__ = ["ACTIONS", "SequenceSettings", "sequence"]

ACTIONS = ("prune", "quantize", "distill")
_CALIBRATION = 512  # samples


def _parse(stage: str) -> frozenset[str]:
    """``"prune+quantize"`` as a set; ``"train"`` is the empty one."""
    return frozenset() if stage == "train" else frozenset(stage.split("+"))


def _check_stages(value: object) -> str | None:
    words = f"a list of stages, each train or {', '.join(ACTIONS)} joined by +"
    if not isinstance(value, tuple | list) or not value:
        return words
    for stage in value:
        parts = stage.split("+") if isinstance(stage, str) else [""]
        if stage != "train" and (set(parts) - set(ACTIONS) or len(set(parts)) != len(parts)):
            return words
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceSettings(Checked):
    """What is done, and in what order.

    Attributes:
        stages: what each stage does: ``prune``, ``quantize``, ``distill``, several of them joined by ``+``, or
            ``train``, which is none of them. The steps are shared out equally. A pruned network keeps its masks in
            later stages, a quantized one stays quantized; distillation lasts as long as its stage.
        teacher: ``start``: the float network from which the student starts, frozen. ``network``: another float
            network, trained beforehand. ``inside``: PQK's own, where a stage prunes, quantizes and distills at once.
        start_steps: steps that train the float network from which everything starts. 0: it is pretrained.
        teacher_model: name of the other network; default: the recipe's, from another initialization.
        teacher_steps: steps that train it.
    """

    stages: tuple[str, ...] = field(_check_stages, ("prune+quantize+distill",))
    teacher: str = choice("start", "network", "inside")
    start_steps: int = integer(0, 0)
    teacher_model: str = text()
    teacher_steps: int = integer(0, 0)

    def check_together(self) -> None:
        """What is done once only, and what teachers need."""
        for action in ("prune", "quantize"):
            if sum(action in _parse(stage) for stage in self.stages) > 1:
                raise ValueError(f"stages: expected {action} in one stage at most, got {list(self.stages)}")
        taught = [_parse(stage) for stage in self.stages if "distill" in _parse(stage)]
        if self.teacher == "inside" and any(len(stage) < len(ACTIONS) for stage in taught):
            raise ValueError("teacher: expected start or network where a stage does not prune, quantize and distill")
        if taught and self.teacher == "network" and self.teacher_steps == 0:
            raise ValueError("teacher_steps: expected at least 1 for a teacher of its own, got 0")


@method(SequenceSettings)
def sequence(run: Run) -> dict[str, nn.Module]:
    """What pruning, quantization and distillation bring, alone and together, in one stage or in any order.

    The parts are those of PQK (Kim, Chang and Kwak, 2021): gradual magnitude pruning, learned step sizes, distillation
    of logits (Hinton, Vinyals and Dean, 2015). Its claim is that they belong together; the orders have not been
    compared at equal numbers of steps, so that the rest is ours: a stage gets an equal part of the steps and a schedule
    of the learning rate of its own; a network that is pruned or quantized stays so; pruning and quantization together
    are phases 1 and 2 of ``PQKConfig``, without its teacher unless ``teacher: inside``.

    Every network ends in a file. One that no stage has quantized is quantized after training, to 8 bits; what its float
    form reaches, and what it reaches quantized after training to the recipe's bits, stands in ``facts``: the difference
    is what quantization alone costs.

    Returns:
        ``network``.
    """
    settings = run.settings
    start = _start(run)
    teacher = _teacher(run, start)
    names = list(settings.stages)
    steps = run.recipe.training.steps
    current: PreparedModel | None = None
    done: frozenset[str] = frozenset()
    run.facts |= {"start": _accuracies(run, start), "stages": []}
    for index, name in enumerate(names):
        length = steps * (index + 1) // len(names) - steps * index // len(names)
        actions = _parse(name)
        student = _student(run, start, current, done, actions, length)
        taught = "distill" in actions and settings.teacher != "inside"
        config = run.recipe.config()
        trainee = (
            Distillation(
                student,
                teacher,
                ce_weight=config.ce_weight,
                kd_weight=config.kd_weight,
                temperature=config.temperature,
            )
            if taught and teacher is not None
            else student
        )
        run.fit(f"{index}-{name}", trainee, draw=index)
        current, done = student.eval(), done | (actions - {"distill"})
        run.facts["stages"].append({"stage": name, "steps": length, **_of_stage(run, current, done)})
    assert current is not None
    if "quantize" in done:
        return {"network": current}
    return {"network": _quantized_after_training(run, current)}


def _start(run: Run) -> nn.Module:
    settings = run.settings
    network = run.network()
    if settings.start_steps:
        run.fit("start", network, steps=settings.start_steps, draw=101)
        run.extra_steps += settings.start_steps
    elif not run.recipe.pretrained:
        raise ValueError("settings.start_steps: expected at least 1 for a network that is not pretrained, got 0")
    return network.eval()


def _teacher(run: Run, start: nn.Module) -> FloatTeacher | None:
    """The frozen teacher, if any stage needs one."""
    settings = run.settings
    if settings.teacher == "inside" or not any("distill" in _parse(stage) for stage in settings.stages):
        return None
    network = start
    if settings.teacher == "network":
        network = run.network(settings.teacher_model or None, pretrained=False, draw=102)
        run.fit("teacher", network, steps=settings.teacher_steps, draw=102)
        run.extra_steps += settings.teacher_steps
        run.facts["teacher"] = _accuracies(run, network)
    return FloatTeacher(network, run.example_inputs)


def _student(
    run: Run, start: nn.Module, before: PreparedModel | None, done: frozenset[str], actions: frozenset[str], steps: int
) -> PreparedModel:
    """The network of a stage, as the stage before has left it."""
    changes = _schedule(run.recipe.config(steps), done, actions)
    changes["teacher"] = run.settings.teacher == "inside" and actions == {*ACTIONS}
    if not changes["teacher"]:
        changes["ce_weight"] = 1.0  # a teacher from outside brings this weight itself
    student = run.prepare(start, steps=steps, **changes)
    if before is None:
        if not {"prune", "quantize"} <= actions:  # these have a warm-up of their own
            calibrate(student, _calibration(run))
        return student
    # Only the teacher's own batch norms and head are not in the state; they are copied when it is made.
    state = {name: value for name, value in before.state_dict().items() if name != "pqk.step_count"}
    for name, layer in before.named_modules():
        if isinstance(layer, PQKLayer):
            state[f"{name}.weight"] = layer.weight * layer.weight_mask
    student.load_state_dict(state, strict=False)
    return student


def _schedule(config: PQKConfig, done: frozenset[str], actions: frozenset[str]) -> dict[str, Any]:
    """Fields of the config by which a stage does what it shall, and keeps what was done before."""
    joint = {"prune", "quantize"} <= actions
    if joint:
        return {}
    quantized = "quantize" in done | actions
    # One phase: pruning of a float network is for phase 1. The ramp takes as many steps as in two.
    changes: dict[str, Any] = {"phase1_fraction": 1.0, "teacher_start": 1.0}
    changes["float_fraction"] = 0.0 if quantized else 1.0
    changes["ramp_end"] = config.ramp_end * config.phase1_fraction
    if "prune" in actions:
        changes["warmup_fraction"] = 0.0 if quantized else config.warmup_fraction * config.phase1_fraction
        return changes
    changes["warmup_fraction"] = 0.0
    changes["mask_update_interval"] = config.total_steps + 1  # the masks stay
    if "prune" not in done:
        changes |= {"sparsity": 0.0, "layers": _dense(config)}
    return changes


def _dense(config: PQKConfig) -> dict[str, dict[str, Any]]:
    """The settings of single layers without their sparsities."""
    return {
        pattern: {name: value for name, value in own.items() if name != "sparsity"}
        for pattern, own in config.layers.items()
    }


def _calibration(run: Run) -> Tensor:
    x = run.data.train[0]
    return x[:: max(1, len(x) // _CALIBRATION)]


def _accuracies(run: Run, network: nn.Module) -> dict[str, float]:
    return {split: run.accuracy(network, split) for split in ("validation", "test")}


def _as_float(run: Run, prepared: PreparedModel) -> nn.Module:
    """The pruned network before quantization."""
    network = run.network()
    network.load_state_dict(prepared.float_state_dict())
    return network.eval()


def _of_stage(run: Run, network: PreparedModel, done: frozenset[str]) -> dict[str, Any]:
    """What the network is after a stage: accuracy as it stands, float unless it is quantized."""
    form = network if "quantize" in done else _as_float(run, network)
    return {"quantized": "quantize" in done, "sparsity": network.pqk.sparsity, **_accuracies(run, form)}


def _quantized_after_training(run: Run, network: PreparedModel) -> PreparedModel:
    plain, sample = _as_float(run, network), _calibration(run)
    config = run.recipe.config()
    run.facts["float"] = _accuracies(run, plain)
    few = quantize_post_training(
        plain,
        example_inputs=sample[:1],
        calibration=sample,
        config=dataclasses.replace(config, sparsity=0.0, layers=_dense(config), teacher=False),
    )
    run.facts["post_training"] = {"weight_bits": config.weight_bits, "act_bits": config.act_bits}
    run.facts["post_training"] |= _accuracies(run, few)
    return quantize_post_training(plain, example_inputs=sample[:1], calibration=sample)
