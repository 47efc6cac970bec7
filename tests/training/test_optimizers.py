"""SGD and Adam as one optimizer: the steps of both, one state, rates that stay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pqk_ext.training.optimizers import SGDAndAdam, sgd


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(n, generator=generator)) for n in (4, 3, 2)]


def groups(values: list[nn.Parameter]) -> list[dict[str, Any]]:
    first, second, third = values
    return [
        {"params": [first], "lr": 0.1, "weight_decay": 0.01},
        {"params": [third], "lr": 0.02, "weight_decay": 0.0, "adam": True, "scheduled": False},
        {"params": [second], "lr": 0.05, "weight_decay": 0.0},
    ]


def gradients(step: int) -> list[Tensor]:
    return [p.detach() * (step + 1) for p in parameters(100 + step)]


def train(optimizers: list[torch.optim.Optimizer], values: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for value, gradient in zip(values, gradients(step), strict=True):
            value.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_steps_are_those_of_two_optimizers() -> None:
    ours, theirs = parameters(), parameters()
    optimizer = sgd(groups(ours), 0.9)
    assert isinstance(optimizer, SGDAndAdam)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.02, 0.05]
    plain = [group for group in groups(theirs) if not group.get("adam")]
    separate = [
        torch.optim.SGD(plain, momentum=0.9, nesterov=True),
        torch.optim.Adam([theirs[2]], lr=0.02),
    ]
    train([optimizer], ours, range(5))
    train(separate, theirs, range(5))
    optimizer.param_groups[0]["lr"] = separate[0].param_groups[0]["lr"] = 0.01  # as a schedule does
    optimizer.param_groups[1]["lr"] = separate[1].param_groups[0]["lr"] = 0.5
    train([optimizer], ours, range(5, 8))
    train(separate, theirs, range(5, 8))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_loaded_state_goes_on_with_the_same_bits() -> None:
    whole, values = parameters(), parameters()
    train([sgd(groups(whole), 0.9)], whole, range(8))
    first = sgd(groups(values), 0.9)
    train([first], values, range(4))
    state = copy.deepcopy(first.state_dict())
    again = [nn.Parameter(value.detach().clone()) for value in values]
    second = sgd(groups(again), 0.9)
    second.load_state_dict(state)
    assert [bool(group.get("adam")) for group in second.param_groups] == [False, True, False]
    train([second], again, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_without_a_marked_group_it_is_plain_sgd() -> None:
    values = parameters()
    assert type(sgd(groups(values)[:1], 0.9)) is torch.optim.SGD
    with pytest.raises(ValueError, match="groups: expected some with and some without adam=True"):
        SGDAndAdam(groups(values)[:1], 0.9)


def test_adamw_without_decay_is_adam() -> None:
    """What a trainee's bits get where weights are trained by AdamW."""
    ours, theirs = parameters(), parameters()
    train([torch.optim.AdamW([{"params": [ours[2]], "lr": 0.1, "weight_decay": 0.0, "adam": True}])], ours, range(6))
    train([torch.optim.Adam([theirs[2]], lr=0.1)], theirs, range(6))
    assert torch.equal(ours[2], theirs[2])
