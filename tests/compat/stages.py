"""A small prepared model at each stage of its training."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn

from pqk_ext.config import PQKConfig
from pqk_ext.preparation import PreparedModel, prepare

from ..networks import SmallNet, batch

CONFIG = PQKConfig(sparsity=0.75, total_steps=24, mask_update_interval=2, warmup_fraction=0.35)
assert CONFIG.warmup_steps == 4
STAGES = {"warm-up": 1, "phase 1": CONFIG.phase1_steps - 2, "phase 2": CONFIG.total_steps - 3}


def optimizer_of(model: PreparedModel) -> torch.optim.SGD:
    return torch.optim.SGD(model.pqk.parameter_groups(lr=0.05, weight_decay=5e-4), momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, size: int = 16) -> Tensor:
    loss = model.pqk.loss(*batch(step, size))
    loss.backward()
    optimizer.step()
    model.pqk.step()
    optimizer.zero_grad()
    return loss.detach()


@cache
def _trained(stage: str) -> PreparedModel:
    torch.manual_seed(0)
    model = prepare(SmallNet(), CONFIG, example_inputs=batch(0)[0])
    model.dropout.p = 0.0  # compilers draw other random numbers
    optimizer = optimizer_of(model)
    for step in range(STAGES[stage]):
        train(model, optimizer, step)
    return model


def at(stage: str) -> PreparedModel:
    """A model of its own, in training mode, without dropout."""
    return copy.deepcopy(_trained(stage))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_state(actual: nn.Module, expected: nn.Module, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    torch.testing.assert_close(dict(actual.state_dict()), dict(expected.state_dict()), rtol=rtol, atol=atol)
