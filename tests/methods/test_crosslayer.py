"""Gramians of all pairs and an offline ensemble: stages, adapters, the chain of bottlenecks, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pqk_ext import PQKConfig, models, prepare
from pqk_ext.distill.adapters import Adapters
from pqk_ext.distill.crosslayer import crosslayer as crosslayer_loss
from pqk_ext.methods import load_recipe, run
from pqk_ext.methods._bottleneck import TaughtFloat, narrowed
from pqk_ext.methods.crosslayer import CrosslayerSettings, Initialization
from pqk_ext.methods.distillation import FeatureTerm
from pqk_ext.models import count_macs, count_parameters
from pqk_ext.nn import Role
from pqk_ext.preparation import PreparedModel, find_taps
from pqk_ext.teachers import FloatTeacher
from pqk_ext.training import TrainingInterrupted
from pqk_ext.training.signals import stop_after_step

STAGES = ("bn1", "layer1", "layer2", "layer3")
SHORT = {"training.steps": 14, "training.batch_size": 8, "settings.init_fraction": 0.5, "settings.teacher_steps": 2}


def _network(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return models.create("keyword_resnet8", width=width)


def _batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 1, 49, 10, generator=generator), torch.randint(0, 12, (8,), generator=generator)


# --- the recipe ------------------------------------------------------------------------------------------------------


def test_a_stopped_run_ends_with_the_same_file(tmp_path: Path) -> None:
    recipe = load_recipe("crosslayer", SHORT | {"settings.teachers": 2})
    results = []
    for name in ("whole", "stopped"):
        if name == "stopped":
            token = stop_after_step.set(5)  # once in the first stage, and once in the second; both have 7 steps
            try:
                for stage in ("initialization", "student"):
                    with pytest.raises(TrainingInterrupted):
                        run(recipe, tmp_path / name, seed=2, progress=False)
                    assert (tmp_path / name / stage).exists()
            finally:
                stop_after_step.reset(token)
        results.append(run(recipe, tmp_path / name, seed=2, progress=False))
        del results[-1]["seconds"]
    assert (tmp_path / "whole/crosslayer.pqk").read_bytes() == (tmp_path / "stopped/crosslayer.pqk").read_bytes()
    assert results[0] == results[1]
    network, facts = results[0]["networks"]["crosslayer"], results[0]["facts"]
    assert network["parity"] == {"samples": 980, "different": 0}
    assert results[0]["extra_steps"] == 4
    assert facts["init_steps"] == 7
    assert facts["gramian_weight"] > 0
    # Both started from trained weights; their own two steps are of other batches.
    assert min(facts["teacher_accuracy"]) > 0.85
    metrics = [json.loads(line) for line in (tmp_path / "whole/student/metrics.jsonl").read_text().splitlines()]
    assert any({"teacher_kd", "features_0"} <= line.keys() for line in metrics)


def test_the_chain_of_bottlenecks_and_neighbours_in_one_stage(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "settings.schedule": "B",
        "settings.teachers": 1,
        "settings.teacher_steps": 0,
        "settings.bottleneck_steps": 2,
        "settings.init_fraction": 0.0,
        "settings.pairs": "neighbours",
        "settings.balanced": False,
        "settings.gramian_weight": 2.0,
        "training.steps": 3,
        "pqk.sparsity": 0.5,
        "pqk.warmup_fraction": 0.0,
    }
    result = run(load_recipe("crosslayer", SHORT | changes), tmp_path, progress=False)
    assert result["networks"]["crosslayer"]["parity"] == {"samples": 980, "different": 0}
    assert 0.35 < result["networks"]["crosslayer"]["sparsity"] < 0.6
    assert result["extra_steps"] == 2
    assert result["facts"]["gramian_weight"] == 2.0
    assert len(result["facts"]["narrow_accuracy"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["narrow-0", "student"]


def test_without_teachers_it_is_plain_training(tmp_path: Path) -> None:
    result = run(load_recipe("crosslayer", SHORT | {"settings.teachers": 0}), tmp_path, progress=False)
    assert result["extra_steps"] == 0
    assert result["facts"] == {}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["student"]


def test_published_settings_are_those_of_the_networks() -> None:
    recipe = load_recipe("crosslayer-published")
    student, teacher = (models.create(name, num_classes=100) for name in (recipe.model, recipe.settings.teacher))
    x = torch.zeros(1, 3, 32, 32)
    shapes = [
        FloatTeacher(network, x, taps=stages).feature_shapes
        for network, stages in ((student, recipe.settings.student_stages), (teacher, recipe.settings.teacher_stages))
    ]
    assert shapes[0] == shapes[1] == ((16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8))
    # The paper says 6.11 times the parameters and 5.27 times the computation, whatever it counts.
    assert count_parameters(teacher) / count_parameters(student) == pytest.approx(6.11, rel=0.06)
    assert count_macs(teacher, (3, 32, 32)) / count_macs(student, (3, 32, 32)) == pytest.approx(5.27, rel=0.08)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": "some"}, "pairs: expected one of all, neighbours, none, got 'some'"),
        ({"schedule": "C"}, "schedule: expected one of A, B, got 'C'"),
        ({"average": "median"}, "average: expected one of subset, weights, mean"),
        ({"gramians_from": "all"}, "gramians_from: expected one of drawn, first"),
        ({"adapters": "none"}, "adapters: expected one of trained, frozen"),
        ({"teachers": -1}, "teachers: expected an integer from 0 to 62, got -1"),
        ({"teacher_steps": 1.5}, "teacher_steps: expected an integer of at least 0, got 1.5"),
        ({"kl_weight": -1.0}, r"kl_weight: expected a number in \[0, inf\), got -1.0"),
        ({"temperature": 0}, "temperature: expected a number in"),
        ({"init_fraction": 1.0}, r"init_fraction: expected a number in \[0, 0.95\], got 1.0"),
        ({"balanced": 1}, "balanced: expected true or false, got 1"),
        ({"student_stages": ("bn1", "layer1")}, "student_stages: expected as many as teacher_stages, 4, got 2"),
        ({"teacher_stages": ("bn1",)}, "teacher_stages: expected a list of at least 2 names, got"),
        ({"pairs": "none"}, "pairs: expected all or neighbours beside init_fraction above 0"),
        ({"pairs": "none", "init_fraction": 0, "schedule": "B"}, "or schedule B, got none"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrosslayerSettings(**changes)


# --- the first stage -------------------------------------------------------------------------------------------------


def _initialization(kl_weight: float, frozen: bool = False) -> tuple[PreparedModel, Initialization, FloatTeacher]:
    x, _ = _batch()
    teacher = FloatTeacher(_network(6, seed=1), x[:1], taps=STAGES)
    config = PQKConfig(sparsity=0.0, teacher=False, phase1_fraction=1.0, total_steps=30)
    student = prepare(_network(4, seed=2), config, example_inputs=x[:1])
    widths = [shape[0] for shape in teacher.feature_shapes]
    adapters = Adapters([4, 4, 8, 16], widths, frozen=frozen, only_different=True)
    term = FeatureTerm(crosslayer_loss, 1.0, adapters)
    taps = find_taps(student, STAGES)
    return student, Initialization(student, teacher, taps=taps, kd_weight=kl_weight, feature_terms=[term]), teacher


@pytest.mark.parametrize("frozen", [False, True])
def test_the_first_stage_learns_gramians_and_leaves_the_head_alone(frozen: bool) -> None:
    student, trainee, _ = _initialization(0.0, frozen)
    before = {name: tensor.clone() for name, tensor in trainee.state_dict().items()}
    groups = trainee.parameter_groups(0.02, 0.1)
    optimizer = torch.optim.AdamW(groups)
    x, y = _batch()
    losses = []
    trainee.train()
    for _ in range(20):
        loss = trainee.loss(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trainee.step()
        losses.append(float(loss.detach()))
    assert trainee.step_count == 20
    assert losses[-1] < 0.8 * losses[0]
    after = trainee.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert "student.conv1.weight" in moved
    assert "student.layer3.0.conv2.weight" in moved
    assert not {"student.linear.weight", "student.linear.bias"} & moved
    assert any("running_mean" in name for name in moved)  # batch norm follows the new weights
    adapters = {name for name in moved if name.startswith("adapters.") and name.endswith(".weight")}
    assert bool(adapters) is not frozen
    assert student.pqk.sparsity == 0


def test_predictions_in_the_first_stage_move_the_head() -> None:
    student, trainee, _ = _initialization(1.0)
    x, y = _batch()
    trainee.train().loss(x, y).backward()
    head = student.get_parameter("linear.weight")
    assert head.grad is not None
    assert head.grad.abs().sum() > 0


# --- the chain -------------------------------------------------------------------------------------------------------


def test_bottlenecks_give_the_students_widths_and_the_network_goes_on_as_wide_as_before() -> None:
    x, _ = _batch()
    network = _network(6, seed=1)
    copy, places = narrowed(network, STAGES, [6, 6, 12, 24], [4, 6, 8, 16])
    assert places == ("bn1.narrow", "layer1", "layer2.narrow", "layer3.narrow")
    teacher = FloatTeacher(copy, x[:1], taps=places)
    assert teacher.feature_shapes == ((4, 25, 5), (6, 25, 5), (8, 13, 3), (16, 7, 2))
    told = teacher(x)
    assert all(float(feature.min()) >= 0 for feature in told.features)  # after a ReLU, as a student's stages
    torch.testing.assert_close(told.logits, copy.eval()(x))
    # The stages themselves are the trained ones, and the original is untouched.
    own = dict(network.named_parameters())
    assert torch.equal(copy.get_parameter("layer2.stage.0.conv1.weight"), own["layer2.0.conv1.weight"])
    assert len(list(network.parameters())) < len(list(copy.parameters()))


def test_nothing_is_inserted_where_widths_agree() -> None:
    x, _ = _batch()
    network = _network(4, seed=1).eval()
    copy, places = narrowed(network, STAGES, [4, 4, 8, 16], [4, 4, 8, 16])
    assert places == STAGES
    assert torch.equal(copy(x), network(x))


def test_a_float_network_learns_from_a_teacher() -> None:
    x, y = _batch()
    teacher = FloatTeacher(_network(6, seed=1), x[:1])
    trainee = TaughtFloat(_network(4, seed=2), teacher, kl_weight=3.0, temperature=2.0).train()
    loss = trainee.loss(x, y)
    logits, told = trainee.student(x).detach(), teacher(x).logits
    p, q = (told / 2).softmax(1), (logits / 2).log_softmax(1)
    kl = 4 * (p * (p.log() - q)).sum(1).mean()
    expected = -logits.log_softmax(1)[torch.arange(8), y].mean() + 3 * kl
    torch.testing.assert_close(loss.detach(), expected)
    assert not any("teacher" in name for name in trainee.state_dict())


def test_features_are_those_of_the_integer_student() -> None:
    x, _ = _batch()
    student = prepare(_network(4, seed=2), PQKConfig(teacher=False), example_inputs=x)
    taps = find_taps(student, STAGES)
    student.run(x, Role.FLOAT, True, taps=taps)
    features = student.run(x, Role.STUDENT, taps=taps).features
    assert [feature.unique().numel() <= 256 for feature in features] == [True] * 4
