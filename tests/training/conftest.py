"""A small training problem, and child processes that may be killed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pqk_ext.training import FitResult, fit

Problem = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


@pytest.fixture(scope="session")
def problem() -> Problem:
    """Training and validation tensors: 256 and 96 images of 2 classes."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(352, 1, 6, 6, generator=generator)
    y = (x.mean((1, 2, 3)) > 0).long()
    return (x[:256], y[:256]), (x[256:], y[256:])


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * 16, 2)
    )


class Noise:
    """An augmentation; ``before`` is called with the number of the call, from 1, and may do harm."""

    def __init__(self, before: Callable[[int], Any] | None = None) -> None:
        self.calls, self.before = 0, before

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        self.calls += 1
        if self.before is not None:
            self.before(self.calls)
        return x + 0.1 * torch.randn(x.shape, generator=generator)


@pytest.fixture
def noise() -> type[Noise]:
    """The augmentation's class: to a run all of its objects are the same setting."""
    return Noise


@pytest.fixture
def train(problem: Problem) -> Callable[..., FitResult]:
    """Trains the small network on one thread; keyword arguments replace those of ``fit``."""

    def run(run_dir: Path, **changes: Any) -> FitResult:
        torch.set_num_threads(1)
        arguments: dict[str, Any] = {
            "model": small_network(),
            "train": problem[0],
            "val": problem[1],
            "config": None,
            "run_dir": run_dir,
            "epochs": 6,
            "batch_size": 32,
            "augment": Noise(),
            "log_every": 3,
            "checkpoint_steps": 20,
            "tensorboard": False,
            "progress": False,
        }
        return fit(**arguments | changes)

    return run


@pytest.fixture
def child() -> Callable[[Callable[[], Any]], multiprocessing.process.BaseProcess]:
    """Starts a function in a forked process, which has torch loaded already; its arguments need no pickling."""
    # The first optimizer imports half of torch: here, and not in every child.
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)

    def start(function: Callable[[], Any]) -> multiprocessing.process.BaseProcess:
        def run() -> None:
            torch.set_num_threads(1)  # threads of the parent do not exist here
            function()

        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        return process

    return start
