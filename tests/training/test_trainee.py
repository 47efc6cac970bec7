"""A network with a loss of its own under ``fit``: everything trainable is trained, saved and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pqk_ext
from pqk_ext.training import FitResult, Trainee, TrainingInterrupted
from pqk_ext.training.signals import stop_after_step
from pqk_ext.training.trainee import config_of, network_of
from tests.training.conftest import small_network

Train = Callable[..., FitResult]


class WithAdapter(Trainee):
    """Pulls the logits through an adapter besides."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__(student)
        torch.manual_seed(1)
        self.adapter = nn.Linear(2, 2)
        self.seen: list[int] = []

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.seen.append(self.step_count)
        logits = self.student(x)
        return F.cross_entropy(logits, y) + F.cross_entropy(self.adapter(logits), y)


def trainee(*, compress: bool) -> WithAdapter:
    student: nn.Module = small_network()
    if compress:
        config = pqk_ext.PQKConfig(sparsity=0.5, total_steps=16, mask_update_interval=2)
        student = pqk_ext.prepare(student, config, example_inputs=torch.randn(4, 1, 6, 6))
    return WithAdapter(student)


@pytest.mark.parametrize("compress", [False, True])
def test_a_stopped_run_ends_with_the_bits_of_an_uninterrupted_one(train: Train, tmp_path: Path, compress: bool) -> None:
    arguments: dict[str, Any] = {"config": None, "epochs": None, "steps": 16, "keep": "last"}
    whole = train(tmp_path / "whole", model=trainee(compress=compress), **arguments).model.state_dict()
    token = stop_after_step.set(7)
    try:
        with pytest.raises(TrainingInterrupted):
            train(tmp_path / "stopped", model=trainee(compress=compress), **arguments)
    finally:
        stop_after_step.reset(token)
    again = trainee(compress=compress)
    resumed = train(tmp_path / "stopped", model=again, **arguments).model.state_dict()
    assert again.seen == list(range(7, 16))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_adapters_are_trained_and_step_sizes_keep_their_own_rate(train: Train, tmp_path: Path) -> None:
    model = trainee(compress=True)
    before = model.adapter.weight.detach().clone()
    groups = model.parameter_groups(0.1, 1e-3)
    assert [group["lr"] for group in groups] == [0.1, pytest.approx(0.001)]
    assert any(p is model.adapter.weight for p in groups[0]["params"])
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    train(tmp_path, model=model, config=None, epochs=None, steps=16)
    assert not torch.equal(model.adapter.weight, before)
    assert model.student.pqk.global_step == 16
    assert int(model.steps_done) == 16


def test_the_last_weights_are_kept_if_asked_for(train: Train, tmp_path: Path) -> None:
    last = train(tmp_path / "last", keep="last", steps=16, epochs=None).model.state_dict()
    best = train(tmp_path / "best", keep="best", steps=16, epochs=None).model.state_dict()
    continued = train(tmp_path / "best", keep="last", steps=16, epochs=None).model.state_dict()
    assert all(torch.equal(last[name], continued[name]) for name in last)
    assert last.keys() == best.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": "first"}, "keep: expected 'best' or 'last', got 'first'"),
        ({"steps": 0, "epochs": None}, "steps: expected an integer of at least 1, got 0"),
        ({"steps": 4, "epochs": 2}, "steps: expected None beside epochs = 2, got 4"),
    ],
)
def test_arguments_outside_their_range_are_refused(
    train: Train, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **arguments)


def test_one_schedule_may_span_both_phases() -> None:
    from pqk_ext.training.settings import Settings

    common: dict[str, Any] = {
        "config": pqk_ext.PQKConfig(total_steps=100), "total_steps": 100, "steps_per_epoch": 10, "batch_size": 8,
        "lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "optimizer": None, "schedule": lambda progress: 1 - progress,
        "augment": None, "seed": 0, "log_every": 1, "diagnose_every": 0,
    }  # fmt: skip
    over_run = Settings(phase2_lr_factor=None, **common)
    by_phase = Settings(phase2_lr_factor=0.5, **common)
    assert [over_run.lr_factor(step) for step in (0, 50, 75)] == [1.0, 0.5, 0.25]
    assert [by_phase.lr_factor(step) for step in (0, 25, 50, 75)] == [1.0, 0.5, 0.5, 0.25]


def test_a_trainee_without_a_loss_says_so() -> None:
    bare = Trainee(small_network())
    with pytest.raises(TypeError, match="Trainee has no loss"):
        bare.loss(torch.zeros(1), torch.zeros(1))
    assert config_of(bare) is None
    assert network_of(bare) is bare.student
