"""Accelerate gives the bits of the bare loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import pqk_ext

from .conftest import STEPS, TinyProblem

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: pip install .[integrations]")
from pqk_ext.integrations.accelerate import prepare  # noqa: E402

SameBits = Callable[[nn.Module, nn.Module], None]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training(accumulate: int, problem: TinyProblem, assert_same_bits: SameBits) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = problem.model(STEPS // accumulate)
    objective, optimizer, loader = prepare(accelerator, model, problem.optimizer(model), problem.loader())
    for _ in range(problem.epochs):
        for x, y in loader:
            with accelerator.accumulate(objective):
                accelerator.backward(objective(x, y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(objective.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
    assert pqk_ext.unwrap(objective) is model
    assert_same_bits(
        objective, problem.bare_loop(accumulate, clip=lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.5))
    )


def test_state_is_saved_and_loaded(problem: TinyProblem, assert_same_bits: SameBits, tmp_path: Path) -> None:
    def run(epochs: int, load: bool) -> nn.Module:
        accelerator = accelerate.Accelerator(cpu=True)
        model = problem.model()
        objective, optimizer, loader = prepare(accelerator, model, problem.optimizer(model), problem.loader())
        if load:
            accelerator.load_state(str(tmp_path / "state"))
        for _ in range(epochs):
            for x, y in loader:
                accelerator.backward(objective(x, y))
                optimizer.step()
                optimizer.zero_grad()
        if not load:
            accelerator.save_state(str(tmp_path / "state"))
        return objective

    assert pqk_ext.controller(run(3, load=False)).global_step == 18
    assert_same_bits(run(1, load=True), problem.bare_loop())


def test_other_criteria_and_loaders_pass_through(problem: TinyProblem) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = problem.model()
    optimizer = problem.optimizer(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    objective, *others = prepare(
        accelerator, model, optimizer, problem.loader(), scheduler, criterion=lambda logits, y: logits.square().mean()
    )
    assert len(others) == 3
    x, y = problem.tensors()
    assert float(objective(x, y).detach()) == float(model.pqk.metrics()["loss"]) < 1
