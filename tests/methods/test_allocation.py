"""Allocations of bits: what they cost, the action wall, and rewards."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pqk_ext import models
from pqk_ext.methods._allocation import IMPORTANCE, Allocation, Space, part_sizes
from pqk_ext.methods._allocation_reward import Evaluator, fake_quantized
from pqk_ext.methods._allocation_walk import action_of_bits, bits_of_action, choose, keep_of_action, retrace
from pqk_ext.thin import thin


class Small(nn.Module):
    """Four layers: a chain with a depthwise one in it, and a residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.an = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.bn = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.c, self.cn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.d = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.an(self.a(x)))
        x = torch.relu(x + self.cn(self.c(torch.relu(self.bn(self.b(x))))))
        out: Tensor = self.d(x.mean((2, 3)))
        return out


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 10, 3), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.d(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))
        return out


EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def chain_space(**options: Any) -> Space:
    torch.manual_seed(0)
    return Space(Chain(), EXAMPLE, **options)


def randomly(generator: random.Random) -> Callable[[Tensor], float]:
    return lambda state: generator.random()


def random_allocation(space: Space, generator: random.Random) -> Allocation:
    keep = tuple(generator.randint(tied.least, len(tied.order)) for tied in space.tied)
    bits = tuple(tuple(generator.randint(*space.bits) for _ in range(space.parts)) for _ in space.layers)
    return Allocation(keep, bits)


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ds_cnn", "resnet8", "resnet8_mlperf", "small"])
def test_cost_is_that_of_the_thinned_network(name: str) -> None:
    torch.manual_seed(0)
    model = Small() if name == "small" else models.create(name)
    x = EXAMPLE if name == "small" else torch.randn(1, *models.input_shape(name))
    space = Space(model, x)
    generator = random.Random(1)
    for _ in range(2):
        allocation = random_allocation(space, generator)
        bits = space.channel_bits(allocation)
        thinned = thin(model, {layer: own > 0 for layer, own in bits.items()}, example_inputs=x)
        total = 0
        for layer, own in bits.items():
            weight = thinned.get_submodule(layer).weight
            kept = own[own > 0]
            assert len(kept) == len(weight)
            total += sum(weight[0].numel() * b + 64 + 4 for b in kept.tolist())
        assert space.cost(allocation.keep, allocation.bits) == total
    layers = [own for own in model.modules() if isinstance(own, nn.Conv2d | nn.Linear)]
    assert space.reference() == sum(own.weight.numel() * 8 + 64 * len(own.weight) for own in layers)


def test_fixed_precision_needs_no_field_for_bits() -> None:
    space = chain_space(bits=(4, 4))
    weights, kernels = 12 * 9 + 10 * 12 * 9 + 3 * 10, 12 + 10 + 3
    assert space.cost(space.most, space.all_bits(4)) == 4 * weights + 64 * kernels
    assert space.reference() == 8 * weights + 64 * kernels


def test_parts_are_equal_but_for_one() -> None:
    assert part_sizes(10, 4) == [3, 3, 2, 2]
    assert part_sizes(2, 4) == [1, 1, 0, 0]


def test_the_least_important_kernels_go_and_the_most_important_get_the_first_bits() -> None:
    model = Chain()
    with torch.no_grad():
        for layer in (model.a, model.b):
            order = torch.randperm(len(layer.weight), generator=torch.Generator().manual_seed(3)).float() + 1
            layer.weight.copy_(torch.sign(layer.weight) * order.view(-1, 1, 1, 1))
    space = Space(model, EXAMPLE)
    bits = space.channel_bits(Allocation((6, 10), ((8, 6, 4, 2), (8, 8, 8, 8), (5, 5, 5, 5))))
    rank = model.a.weight.abs().mean((1, 2, 3))
    assert bits["a"][rank.argsort(descending=True)].tolist() == [8, 8, 6, 6, 4, 2] + [0] * 6
    assert bits["b"].tolist() == [8] * 10


@pytest.mark.parametrize("name", IMPORTANCE)
def test_importance_is_measured_as_named(name: str) -> None:
    torch.manual_seed(0)
    model = Small()
    nn.init.uniform_(model.an.weight, -1, 1)
    rows, gamma = model.a.weight.detach().flatten(1), model.an.weight.detach().abs()
    expected = {
        "l1": rows.abs().sum(1),
        "l1_gamma": rows.abs().sum(1) * gamma,
        "l2": (rows**2).sum(1) ** 0.5,
        "gamma": gamma,
        "distance": torch.stack([sum((row - other).norm() for other in rows) for row in rows]),  # type: ignore[misc]
    }[name]
    got = Space(model, EXAMPLE, channel_importance=name).layers[0].importance
    torch.testing.assert_close(got, (expected / expected.mean()).double(), rtol=1e-5, atol=1e-6)


# --- actions ---------------------------------------------------------------------------------------------------------


def test_each_number_of_bits_has_an_equal_share_of_the_actions() -> None:
    actions = [(i + 0.5) / 7000 for i in range(7000)]
    counts = np.bincount([bits_of_action(a, (2, 8)) for a in actions], minlength=9)
    assert counts.tolist() == [0, 0] + [1000] * 7
    assert [bits_of_action(a, (2, 8)) for a in (0.0, 1.0)] == [2, 8]
    assert [bits_of_action(action_of_bits(b, (2, 8)), (2, 8)) for b in range(2, 9)] == list(range(2, 9))
    assert bits_of_action(0.7, (4, 4)) == 4


def test_shares_of_channels_round_up_and_come_back() -> None:
    assert [keep_of_action(a, 10) for a in (0.0, 0.01, 0.1, 0.11, 1.0)] == [1, 1, 1, 2, 10]
    assert all(keep_of_action(n / count, count) == n for count in range(1, 200) for n in range(1, count + 1))


@pytest.mark.parametrize("name", ["ds_cnn", "resnet8"])
def test_every_episode_meets_the_budget_and_is_retraced(name: str) -> None:
    torch.manual_seed(0)
    model, x = models.create(name), torch.randn(1, *models.input_shape(name))
    space, generator = Space(model, x), random.Random(0)
    cheapest = space.cost(space.least, space.all_bits(2))
    actors: list[Callable[[Tensor], float]] = [randomly(generator)] * 12 + [lambda s: 1.0, lambda s: 0.0]
    for budget in (cheapest, int(0.3 * space.reference()), space.reference()):
        space.check(budget)
        for act in actors:
            chosen = choose(space, budget, act, act)
            assert space.cost(chosen.keep, chosen.bits) <= budget
            layers, channels = retrace(space, budget, chosen)
            states, actions = channels.tensors()
            assert bool(states.isfinite().all())
            assert 0 <= float(states.min()) <= float(states.max()) <= 1
            assert 0 <= float(layers.tensors()[0].min()) <= float(layers.tensors()[0].max()) <= 1
            replayed, shares = iter(actions.tolist()), iter(layers.actions)
            again = choose(space, budget, lambda s, i=shares: next(i), lambda s, i=replayed: next(i))  # type: ignore[misc]
            assert again == chosen
    assert choose(space, cheapest, lambda s: 1.0, lambda s: 1.0).keep == space.least
    with pytest.raises(ValueError, match="budget: expected at least"):
        space.check(cheapest - 1)


def test_the_wall_takes_bits_from_the_least_important_parts_first() -> None:
    space = chain_space()
    start = Allocation(space.most, space.all_bits(8))
    cost = space.cost(start.keep, start.bits)
    sizes = [part_sizes(layer.kernels(start.keep), 4) for layer in space.layers]
    assert sizes[2] == [1, 1, 1, 0]
    layer, part = next((i, part) for i, part in space.by_importance if sizes[i][part])
    once = space.lowered(start, cost - 1)
    expected = [[8] * 4 for _ in space.layers]
    expected[layer][part] = 7
    assert [list(own) for own in once.bits] == expected
    # A round over all parts, one bit each, before any loses a second one.
    all_sevens = space.cost(start.keep, space.all_bits(7))
    assert space.lowered(start, all_sevens).bits == (*space.all_bits(7)[:2], (7, 7, 7, 8))
    with pytest.raises(ValueError, match="fewer than"):
        space.lowered(start, space.cost(start.keep, space.all_bits(2)) - 1)


def test_monotone_bits_do_not_grow_with_rank() -> None:
    space, generator = chain_space(), random.Random(2)
    for _ in range(20):
        chosen = choose(space, space.reference(), randomly(generator), randomly(generator), monotone=True)
        assert all(list(own) == sorted(own, reverse=True) for own in chosen.bits)


# --- rewards ---------------------------------------------------------------------------------------------------------


def test_fake_quantized_rounds_with_the_best_of_its_scales() -> None:
    torch.manual_seed(0)
    rows, bits = torch.randn(6, 40), torch.tensor([0, 2, 3, 4, 8, 2])
    rows[5] = 0
    got = fake_quantized(rows, bits)
    for row, values, b in zip(rows, got, bits.tolist(), strict=True):
        assert len(values.unique()) <= max(1, 2**b - 1)
        if b:
            limit = 2 ** (b - 1) - 1
            tried = [max(float(row.abs().max()) / limit * (1 - i / 20), 1e-8) for i in range(17)]
            errors = [float(((row / s).round().clamp(-limit, limit) * s - row).square().sum()) for s in tried]
            assert float((values - row).square().sum()) == pytest.approx(min(errors), rel=1e-4, abs=1e-12)
        else:
            assert not values.any()


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_the_evaluated_network_is_the_thinned_one(batch_statistics: bool) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    for norm in (model.an, model.bn, model.cn):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.3, 1.0)  # type: ignore[arg-type]
    x = torch.randn(100, 1, 8, 8)
    space = Space(model, x[:1])
    bits = space.channel_bits(Allocation((5,), ((8, 5, 4, 3), (6, 6, 6, 6), (5, 4, 3, 2), (8, 8, 8, 8))))
    state = copy.deepcopy(model.state_dict())
    smaller = thin(model, {layer: own > 0 for layer, own in bits.items()}, example_inputs=x[:1])
    assert smaller.a.out_channels == smaller.b.groups == smaller.c.in_channels == 5
    with torch.no_grad():
        for name, own in bits.items():
            weight = smaller.get_submodule(name).weight
            weight.copy_(fake_quantized(weight.flatten(1), own[own > 0]).view(weight.shape))
        for module in smaller.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(batch_statistics)
        middle = smaller(x).mean(0)
        for network in (model, smaller):
            network.d.bias -= middle
        state["d.bias"] -= middle
        labels = smaller(x).argmax(1)
    assert len(labels.unique()) > 1
    wrong = (labels + (torch.arange(100) < 30)) % 3
    evaluator = Evaluator(model, space, (x, wrong), batch_statistics=batch_statistics)
    assert [evaluator(bits) for _ in range(2)] == pytest.approx([0.7, 0.7], abs=0.011)  # ties of float sums
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
