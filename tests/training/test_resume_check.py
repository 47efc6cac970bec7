"""``assert_resume`` passes what resumes exactly and names what does not."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pqk_ext
from pqk_ext.config import PQKConfig
from pqk_ext.training import assert_resume

CONFIG = PQKConfig(sparsity=0.5, total_steps=10, warmup_fraction=0.2, mask_update_interval=1, phase1_fraction=0.6)


def _batch(index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(index)
    x = torch.randn(8, 1, 6, 6, generator=generator)
    return x, (x.mean((1, 2, 3)) > 0).long()


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 2)
    )


def _prepared() -> Any:
    model = pqk_ext.prepare(_network(), CONFIG, example_inputs=_batch(0)[0])
    optimizer = torch.optim.AdamW(model.pqk.parameter_groups(lr=0.01))
    return model, optimizer


def _step(model: Any, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    loss: Tensor = model.pqk.loss(x, y)
    loss.backward()
    optimizer.step()
    model.pqk.step()
    optimizer.zero_grad()
    return loss


def test_a_prepared_model_passes_in_both_phases() -> None:
    def make() -> Any:
        model, optimizer = _prepared()
        return {"model": model, "optimizer": optimizer}, lambda i: _step(model, optimizer, *_batch(i))

    state = torch.get_rng_state()
    pqk_ext.assert_resume(make, steps=10, stops=[0, 2, 5, 6, 8])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_scheduler_and_python_and_numpy_numbers_are_part_of_it() -> None:
    def make() -> Any:
        model, optimizer = _prepared()
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=10)

        def step(index: int) -> Any:
            x, y = _batch(index)
            loss = _step(model, optimizer, x * (1 + random.random()) + float(np.random.rand()), y)
            scheduler.step()
            return {"loss": loss, "rates": scheduler.get_last_lr()}

        return {"model": model, "optimizer": optimizer, "scheduler": scheduler}, step

    assert_resume(make, steps=10)


class _Momentum:
    """An optimizer with a state that it does not tell."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.velocity = [torch.zeros_like(p) for p in model.parameters()]

    @torch.no_grad()
    def step(self) -> None:
        for p, v in zip(self.model.parameters(), self.velocity, strict=True):
            if p.grad is not None:
                v.mul_(0.9).add_(p.grad)
                p.sub_(0.01 * v)
                p.grad = None


class _OwnNoise(nn.Module):
    """A layer with a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=self.generator)


def _plain(body: Callable[[], nn.Module], hidden: bool = False, lost: str = "") -> Callable[[], Any]:
    """A loop with a plain model, some of whose state may be hidden or left out."""

    def make() -> Any:
        model = nn.Sequential(nn.Flatten(), body(), nn.Linear(36, 2))
        optimizer: Any = _Momentum(model) if hidden else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(index: int) -> Tensor:
            x, y = _batch(index)
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            model.zero_grad()
            return loss

        objects = {"model": model} if hidden else {"model": model, "optimizer": optimizer}
        return {name: item for name, item in objects.items() if name != lost}, step

    return make


def test_plain_models_pass_too() -> None:
    assert_resume(_plain(nn.Identity), steps=4)


def test_a_hidden_optimizer_state_is_found_and_the_first_tensor_is_named() -> None:
    expected = (
        r"stopped after step 1 and resumed, the run differs after step 2 \(something .* in no state_dict\): "
        r"model\.2\.weight differs in \d+ of 72 elements, first at \[\d, \d+\]: \S+ instead of \S+"
    )
    with pytest.raises(AssertionError, match=expected):
        assert_resume(_plain(nn.Identity, hidden=True), steps=4)


def test_a_generator_outside_the_state_is_found() -> None:
    with pytest.raises(AssertionError, match=r"stopped after step 2 .* after step 3 .*: what the step returned"):
        assert_resume(_plain(_OwnNoise), steps=4, stops=[2])


def test_what_is_not_among_the_objects_is_found() -> None:
    with pytest.raises(AssertionError, match="the run differs after step 2"):
        assert_resume(_plain(nn.Identity, lost="optimizer"), steps=3, stops=[1])
    with pytest.raises(AssertionError, match=r"after step 2 .*what the step returned differs in 1 of 1 elements"):
        assert_resume(_plain(nn.Identity, lost="model"), steps=3, stops=[1])


def test_a_state_that_is_not_taken_back_is_found() -> None:
    class Forgetful(nn.Linear):
        def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
            state_dict[prefix + "bias"] = torch.zeros(36)
            super()._load_from_state_dict(state_dict, prefix, *rest)

    expected = r"what was saved after step 1 is not what was loaded: model\.1\.bias differs"
    with pytest.raises(AssertionError, match=expected):
        assert_resume(_plain(lambda: Forgetful(36, 36)), steps=3)


def test_a_loop_that_does_not_repeat_is_told_apart() -> None:
    calls = itertools.count()

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + next(calls)

    with pytest.raises(AssertionError, match="two uninterrupted runs from the same seeds differ after step 1"):
        assert_resume(_plain(Counting), steps=3)


def test_fit_passes_and_a_broken_model_does_not(problem: Any) -> None:
    def arguments(layer: Callable[[], nn.Module]) -> Callable[[], dict[str, Any]]:
        return lambda: {
            "model": nn.Sequential(nn.Flatten(), layer(), nn.Linear(36, 2)),
            "train": problem[0],
            "val": problem[1],
            "config": None,
            "epochs": 2,
            "batch_size": 64,
        }

    assert_resume(arguments(nn.Dropout))
    with pytest.raises(
        AssertionError, match=r"stopped after step 4 and resumed, .* other bits: model\.2\.weight differs"
    ):
        assert_resume(arguments(_OwnNoise), stops=[4])
    with pytest.raises(ValueError, match="stops: expected steps from 0 to 7"):
        assert_resume(arguments(nn.Dropout), stops=[8])


def test_fit_with_both_phases(problem: Any) -> None:
    assert_resume(
        lambda: {
            "model": _network(),
            "train": problem[0],
            "val": problem[1],
            "config": PQKConfig.from_dict(CONFIG.to_dict() | {"total_steps": 16}),
            "batch_size": 32,
            "optimizer": torch.optim.AdamW,
            "lr": 0.01,
        },
        stops=[7, 12],
    )


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"make: expected .* got Linear"):
        assert_resume(lambda: nn.Linear(1, 1))  # type: ignore[arg-type,return-value]
    for stops in ([], [3], [-1]):
        with pytest.raises(ValueError, match="stops: expected steps from 0 to 2"):
            assert_resume(_plain(nn.Identity), steps=3, stops=stops)
    with pytest.raises(ValueError, match="steps"):
        assert_resume(_plain(nn.Identity), steps=0)
