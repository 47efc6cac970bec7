"""A tiny problem, and the bare loop that every adapter must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pqk_ext
from pqk_ext.preparation import PreparedModel

STEPS = 24
BATCH = 8


class TinyProblem:
    """48 samples of 3 classes; everything is made anew at each call, from the same seeds."""

    config = pqk_ext.PQKConfig(sparsity=0.6, total_steps=STEPS, mask_update_interval=2, warmup_fraction=0.25)
    epochs = 4

    def tensors(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(5)
        y = torch.randint(0, 3, (STEPS * BATCH // self.epochs,), generator=generator)
        x = torch.randn(len(y), 1, 6, 6, generator=generator) + y[:, None, None, None].float()
        return x, y

    def dataset(self) -> Dataset[Any]:
        return TensorDataset(*self.tensors())

    def loader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset(), batch_size=BATCH)

    def model(self, total_steps: int = STEPS) -> PreparedModel:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 3),
        )
        config = pqk_ext.PQKConfig(**{**self.config.to_dict(), "total_steps": total_steps})
        return pqk_ext.prepare(net, config, example_inputs=self.tensors()[0])

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = pqk_ext.controller(model).parameter_groups(0.01, 0.01, decay_norm_and_bias=False)
        return torch.optim.AdamW(groups)

    def bare_loop(self, accumulate: int = 1, clip: Callable[[Iterable[Tensor]], Any] | None = None) -> PreparedModel:
        model = self.model(STEPS // accumulate)
        optimizer = self.optimizer(model)
        for _ in range(self.epochs):
            for index, (x, y) in enumerate(self.loader()):
                (model.pqk.loss(x, y) / accumulate).backward()
                if (index + 1) % accumulate:
                    continue
                if clip is not None:
                    clip(model.parameters())
                optimizer.step()
                model.pqk.step()
                optimizer.zero_grad()
        assert model.pqk.global_step == STEPS // accumulate
        return model


@pytest.fixture
def problem() -> TinyProblem:
    return TinyProblem()


@pytest.fixture
def assert_same_bits() -> Callable[[nn.Module, nn.Module], None]:
    def check(model: nn.Module, expected: nn.Module) -> None:
        got = pqk_ext.unwrap(model).state_dict()
        for name, tensor in expected.state_dict().items():
            assert torch.equal(got[name], tensor), name

    return check
