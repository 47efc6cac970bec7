"""Route-constrained optimization: the rules for anchors, the identities of its arms, and the recipe."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pqk_ext import models
from pqk_ext.methods import METHODS, load_recipe, run
from pqk_ext.methods._anchors import Congruence, arranged, equal_interval, next_anchor
from pqk_ext.methods.distillation import Distillation
from pqk_ext.methods.rco import RCOSettings, _Experiment, _teach, mimicking
from pqk_ext.methods.run import Run
from pqk_ext.preparation import PreparedModel
from pqk_ext.training import TrainingInterrupted
from pqk_ext.training.signals import stop_after_step

SHORT: dict[str, Any] = {
    "training.steps": 12,
    "training.batch_size": 8,
    "settings.teacher_steps": 8,
    "settings.snapshots": 4,
}


def _run(directory: Path, **settings: Any) -> Run:
    """With 128 clips to learn from and 48 to choose by."""
    directory.mkdir(parents=True, exist_ok=True)
    changes = {name if "." in name else f"settings.{name}": value for name, value in settings.items()}
    work = Run(load_recipe("rco", SHORT | changes), directory, 1, progress=False)
    train, validation = ((x[:n], y[:n]) for (x, y), n in ((work.data.train, 128), (work.data.validation, 48)))
    work.data = dataclasses.replace(work.data, train=train, validation=validation)
    return work


def _trained(directory: Path, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of the student, and the facts."""
    work = _run(directory, **settings)
    student = METHODS["rco"].train(work)["rco"]
    return dict(student.state_dict()), work.facts


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- rules ----------------------------------------------------------------------------------------------------


def test_equal_intervals_end_with_the_converged_teacher() -> None:
    assert equal_interval(60, 4) == (15, 30, 45, 60)
    assert equal_interval(60, 1) == (60,)
    assert equal_interval(5, 5) == (1, 2, 3, 4, 5)
    assert equal_interval(10, 4) == (2, 5, 7, 10)


def test_orders() -> None:
    anchors = (5, 10, 15, 20)
    assert arranged(anchors, "route", 0) == anchors
    assert arranged(anchors, "reversed", 0) == (20, 15, 10, 5)
    assert arranged(anchors, "last", 0) == (20, 20, 20, 20)
    shuffled = {arranged(anchors, "shuffled", seed) for seed in range(50)}
    assert all(sorted(order) == list(anchors) for order in shuffled)
    assert anchors not in shuffled
    assert len(shuffled) > 10
    assert arranged(anchors, "shuffled", 3) == arranged(anchors, "shuffled", 3)
    assert arranged((7,), "shuffled", 0) == (7,)


def _walk(congruence: list[float], delta: float) -> list[int]:
    """Anchors of a student that never learns: its divergences stay what they are."""
    anchors: list[int] = []
    while not anchors or anchors[-1] < len(congruence) - 1:
        anchors.append(next_anchor(congruence, anchors[-1] if anchors else 0, delta))
    return anchors


def test_the_threshold_goes_from_ordinary_distillation_to_every_snapshot() -> None:
    harder = [1.25**number for number in range(21)]
    assert _walk(harder, 0.0) == [20]
    assert _walk(harder, 1.0) == list(range(1, 21))
    assert _walk(harder, 0.81) == list(range(1, 21))
    assert _walk(harder, 0.6) == list(range(2, 21, 2))  # 0.8^2 = 0.64
    assert _walk(harder, 0.33) == [4, 8, 12, 16, 20]  # 0.8^4 = 0.41
    counts = [len(_walk(harder, delta)) for delta in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3


@given(
    st.lists(st.floats(0, 100), min_size=2, max_size=30),
    st.floats(0, 1),
    st.integers(0, 40),
)
def test_the_next_anchor_is_the_farthest_within_reach(congruence: list[float], delta: float, current: int) -> None:
    current %= len(congruence) - 1
    chosen = next_anchor(congruence, current, delta)
    assert current < chosen < len(congruence)
    assert all(congruence[j] * delta > congruence[current] for j in range(chosen + 1, len(congruence)))
    assert chosen == current + 1 or congruence[chosen] * delta <= congruence[current]


@pytest.mark.parametrize(
    ("congruence", "current", "message"),
    [
        ([1.0, 2.0], 1, "current: expected a snapshot before the last one, 1, got 1"),
        ([1.0, 2.0], -1, "current: expected a snapshot before the last one, 1, got -1"),
        ([1.0, math.nan], 0, "congruence: expected finite numbers"),
        ([math.inf, 1.0], 0, "congruence: expected finite numbers"),
    ],
)
def test_next_anchor_refuses(congruence: list[float], current: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next_anchor(congruence, current, 0.5)


def test_mimicking_is_the_squared_distance_of_the_pooled_maps() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 5, 4, size, generator=generator) for size in (2, 6))
    expected = ((student.mean((2, 3)) - teacher.mean((2, 3))) ** 2).sum() / 3
    torch.testing.assert_close(mimicking([student], [teacher]), expected)
    student.requires_grad_(), teacher.requires_grad_()
    mimicking([student], [teacher]).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert float(mimicking([teacher], [teacher.clone()]).detach()) == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "best"}, "strategy: expected one of equal, greedy, got 'best'"),
        ({"order": "random"}, "order: expected one of route, reversed, shuffled, last, got 'random'"),
        ({"delta": 1.5}, r"delta: expected a number in \[0, 1\], got 1.5"),
        ({"delta": math.nan}, r"delta: expected a number in \[0, 1\], got nan"),
        ({"temperature": 0}, r"temperature: expected a number in \(0, inf\), got 0"),
        ({"kd_weight": True}, r"kd_weight: expected a number in \[0, inf\), got True"),
        ({"anchors": 2.0}, "anchors: expected an integer of at least 0, got 2.0"),
        ({"anchors": 21}, "anchors: expected at most the route's 20 snapshots, got 21"),
        ({"anchors": 4, "last": 3}, "anchors: expected at most the route's 3 snapshots, got 4"),
        ({"last": 21}, "last: expected at most snapshots = 20, got 21"),
        ({"teacher_steps": 10}, "snapshots: expected at most teacher_steps = 10, got 20"),
        ({"anchors": 0, "schedule": "restart"}, "anchors: expected 1 or more with the schedule 'restart'"),
        ({"strategy": "greedy", "order": "last"}, "order: expected 'route' with the strategy 'greedy', got 'last'"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RCOSettings(**values)


# --- identities -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kd(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Ordinary distillation from the converged teacher."""
    return _trained(tmp_path_factory.mktemp("kd"), anchors=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "greedy", "delta": 0.0},
        {"strategy": "greedy", "delta": 0.0, "schedule": "restart"},
        {"anchors": 1, "schedule": "restart"},
        {"anchors": 3, "order": "last"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_ordinary_distillation_by_other_names(
    kd: tuple[dict[str, Tensor], dict[str, Any]], tmp_path: Path, settings: dict[str, Any]
) -> None:
    state, facts = _trained(tmp_path, **settings)
    assert _equal(state, kd[0])
    assert set(facts["anchors"]) == {4}
    assert facts["congruence"] == kd[1]["congruence"]


def test_arms_that_must_differ_do(kd: tuple[dict[str, Tensor], dict[str, Any]], tmp_path: Path) -> None:
    states = [kd[0]]
    for index, settings in enumerate(({"anchors": 2}, {"anchors": 2, "order": "reversed"}, {"anchors": 1, "last": 2})):
        states.append(_trained(tmp_path / str(index), **settings)[0])
    assert not any(_equal(states[i], states[j]) for i in range(4) for j in range(i))


def test_a_search_that_lets_only_the_next_snapshot_through_follows_every_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every, facts = _trained(tmp_path / "every", anchors=4)
    assert facts["anchors"] == [1, 2, 3, 4]
    assert facts["anchor_steps"] == [2, 4, 6, 8]
    for schedule in ("global", "restart"):
        with monkeypatch.context() as patch:
            patch.setattr(Congruence, "__call__", lambda self, student: [float(2**j) for j in range(5)])
            state, facts = _trained(tmp_path / schedule, strategy="greedy", delta=1.0, schedule=schedule)
        assert facts["anchors"] == [1, 2, 3, 4]
        assert _equal(state, every) == (schedule == "global")


def test_without_anchors_it_is_training_without_a_teacher(tmp_path: Path) -> None:
    state, facts = _trained(tmp_path / "rco", anchors=0)
    assert facts == {}
    work = _run(tmp_path / "plain")
    plain = work.fit("student", work.prepare(work.network()))
    assert _equal(state, dict(plain.state_dict()))


def test_the_greedy_choices_are_those_of_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the student really diverges by at each decision, computed here in numpy."""
    seen: list[list[float]] = []
    honest = Congruence.__call__

    def remembered(self: Congruence, student: PreparedModel) -> list[float]:
        values = honest(self, student)
        own = self.student_logits(student).double().numpy() / 4.0
        for number, value in enumerate(values):
            its = self.teacher_logits(number).double().numpy() / 4.0
            log_p, log_q = (z - np.log(np.exp(z).sum(1, keepdims=True)) for z in (its, own))
            assert value == pytest.approx(float((np.exp(log_p) * (log_p - log_q)).sum(1).mean()), rel=1e-9, abs=1e-12)
        assert student.training
        seen.append(values)
        return values

    monkeypatch.setattr(Congruence, "__call__", remembered)
    _, facts = _trained(tmp_path, strategy="greedy", delta=0.7)
    expected = []
    for values in seen:
        within = [j for j in range(1, 5) if j > max([0, *expected]) and values[max([0, *expected])] >= 0.7 * values[j]]
        expected.append(max(within, default=max([0, *expected]) + 1))
    assert facts["anchors"][: len(expected)] == expected
    assert set(facts["anchors"][len(expected) :]) <= {4}
    assert len(facts["anchors"]) == 4
    assert facts["anchors"] == sorted(facts["anchors"])


# --- stages ---------------------------------------------------------------------------------------------------


def test_a_later_stage_begins_pruned_and_stays_so(tmp_path: Path) -> None:
    work = _run(tmp_path, anchors=2, **{"pqk.mask_update_interval": 1})
    experiment = _Experiment(work, _teach(work))
    first = experiment.begin_stage(None, 6)
    work.fit("first", first)
    assert first.pqk.sparsity == pytest.approx(0.8, abs=0.01)
    second = experiment.begin_stage(first, 6)
    x = work.data.test[0][:4]
    assert torch.equal(second.eval()(x), first.eval()(x))
    assert second.pqk.global_step == 0
    assert second.pqk.quantizing
    for (name, before), after in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(before, after), name
    second.train()
    for _ in range(6):
        assert second.pqk.sparsity == pytest.approx(0.8, abs=0.01)
        second.pqk.loss(*(part[:8] for part in work.data.train)).backward()
        second.pqk.step()


def test_adapters_go_on_from_stage_to_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainees: list[Distillation] = []
    make = Distillation.__init__

    def remembered(self: Distillation, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        trainees.append(self)

    monkeypatch.setattr(Distillation, "__init__", remembered)
    _trained(tmp_path, anchors=2, schedule="restart", variant="hint")
    first, second = trainees
    assert first.adapters[0] is second.adapters[0]
    assert first.kd_weight == 0.0
    assert all(parameter.requires_grad for parameter in second.adapters.parameters())


@pytest.mark.parametrize("variant", ["hint", "mimicking"])
def test_features_draw_the_student_to_the_teacher(tmp_path: Path, variant: str) -> None:
    work = _run(tmp_path, anchors=1, variant=variant, ce_weight=0.0, teacher_channels=[48, 48, 48, 48])
    experiment = _Experiment(work, _teach(work))
    student = work.prepare(work.network())
    losses = experiment.losses(student)
    trainee = Distillation(student, experiment.route.teacher(4), **losses).train()
    x, y = (part[:16] for part in work.data.train)
    optimizer = torch.optim.AdamW(trainee.parameter_groups(0.005, 0.0))
    values = []
    for _ in range(12):
        loss = trainee.loss(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.7 * values[0]
    assert {name for name in trainee.metrics() if name.startswith(("features", "teacher"))} == {"features_0"}


def test_hints_need_maps_of_one_size(tmp_path: Path) -> None:
    work = _run(tmp_path, anchors=1, variant="hint", teacher="ds_cnn_m")
    with pytest.raises(
        ValueError, match=r"settings\.tap, settings\.teacher_tap: expected maps of one height and width"
    ):
        METHODS["rco"].train(work)
    other = _run(tmp_path / "other", anchors=1, variant="mimicking", teacher="ds_cnn_m")
    assert isinstance(METHODS["rco"].train(other)["rco"], PreparedModel)


# --- the recipe -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "lives"),
    [
        ({"anchors": 2, "schedule": "restart", "variant": "mimicking"}, 5),
        ({"strategy": "greedy", "delta": 0.8}, 3),
    ],
    ids=["restart", "greedy"],
)
def test_a_stopped_run_ends_with_the_same_bits(tmp_path: Path, settings: dict[str, Any], lives: int) -> None:
    state, facts = _trained(tmp_path / "whole", **settings)
    for life in range(lives):
        token = stop_after_step.set((5, 3)[life % 2])  # in the teacher's run, then twice in each of the student's
        try:
            with pytest.raises(TrainingInterrupted):
                _trained(tmp_path / "stopped", **settings)
        finally:
            stop_after_step.reset(token)
    again, again_facts = _trained(tmp_path / "stopped", **settings)
    assert _equal(state, again)
    assert facts == again_facts
    for path in (tmp_path / "whole/route").iterdir():
        assert path.read_bytes() == (tmp_path / "stopped/route" / path.name).read_bytes()


def test_it_ends_in_a_file_with_the_bits_of_training(tmp_path: Path) -> None:
    result = run(load_recipe("rco", SHORT), tmp_path, seed=2, progress=False)
    assert result["networks"]["rco"]["parity"] == {"samples": 980, "different": 0}
    assert (tmp_path / "rco.pqk").stat().st_size == result["networks"]["rco"]["bytes"]
    assert (result["steps"], result["extra_steps"]) == (12, 8)
    assert result["facts"]["anchors"] == [1, 2, 3, 4]
    assert result["facts"]["congruence"] > 0
    assert result["facts"] == json.loads((tmp_path / "result.json").read_text())["facts"]


def test_a_run_too_short_for_its_stages_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    work = _run(tmp_path, **{"training.steps": 3})
    with pytest.raises(ValueError, match=r"training\.steps: expected at least 1 for each of 4 stages, got 3"):
        METHODS["rco"].train(work)
    assert list(tmp_path.iterdir()) == []


def test_the_published_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("rco-published")
    epochs = recipe.training.steps * recipe.training.batch_size / 45_000
    assert epochs == pytest.approx(240, abs=0.5)
    student = models.create(recipe.model, num_classes=100)
    teacher = models.create(recipe.settings.teacher, num_classes=100, **recipe.settings.teacher_options)
    count: Callable[[Any], int] = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    assert 0.7e6 < count(student) < 0.9e6 < 5 * count(student) < count(teacher)
