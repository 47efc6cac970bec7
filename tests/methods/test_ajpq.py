"""Searches for allocations, which can be resumed, and AJPQ from nothing to its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pqk_ext import runtime
from pqk_ext.methods import load_recipe, run
from pqk_ext.methods._allocation import Allocation, Space
from pqk_ext.methods._allocation_search import Controllers, LocalSearch, Outcome, Strategy, Uniform, search
from pqk_ext.methods._ddpg import AgentSettings
from pqk_ext.methods.ajpq import AJPQSettings, _Search, prepared_with_bits
from pqk_ext.methods.run import Run
from pqk_ext.training import TrainingInterrupted
from pqk_ext.training.signals import stop_after_step


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 10, 3), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.d(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))
        return out


def chain_space(**options: Any) -> Space:
    torch.manual_seed(0)
    return Space(Chain(), torch.randn(2, 1, 8, 8), **options)


# --- searches --------------------------------------------------------------------------------------------------------

AGENTS = AgentSettings(warmup=6, sigma=0.5, sigma_decay=0.95, capacity=32)


def strategies(space: Space, budget: int, seed: int) -> dict[str, Strategy]:
    return {
        "rl": Controllers(space, budget, AGENTS, seed, 0.9),
        "channels": Controllers(space, budget, AGENTS, seed, 0.9, keep=space.least),
        "greedy": LocalSearch(space, budget, seed),
    }


def made_up(space: Space) -> Callable[[Allocation], float]:
    """Best: the second layer thin and of many bits, the first one wide and of few."""

    def accuracy(allocation: Allocation) -> float:
        shares = [kept / most for kept, most in zip(allocation.keep, space.most, strict=True)]
        means = [sum(own) / len(own) for own in allocation.bits]
        return 1 - 0.25 * ((shares[0] - 0.9) ** 2 + (shares[1] - 0.3) ** 2) - 0.01 * (means[0] - 3) ** 2

    return accuracy


@pytest.mark.parametrize("name", ["rl", "channels", "greedy"])
def test_a_resumed_search_ends_as_one_that_was_not_stopped(tmp_path: Path, name: str) -> None:
    space = chain_space(parts=2)
    budget = int(0.5 * space.reference())

    def go(path: Path, stop: int, seed: int = 0) -> Outcome:
        asked = 0

        def evaluate(allocation: Allocation) -> float:
            nonlocal asked
            asked += 1
            if asked > stop:
                raise KeyboardInterrupt
            return made_up(space)(allocation)

        strategy = strategies(space, budget, seed)[name]
        return search(strategy, space, budget, evaluate, 14, path, save_interval=4, progress=False)

    whole = go(tmp_path / "whole.pt", 100)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "parts.pt", 6)
    assert go(tmp_path / "parts.pt", 100) == whole
    assert go(tmp_path / "parts.pt", 0) == whole  # done: nothing is asked again
    assert len(whole.accuracies) == 14
    assert whole.accuracy == max(whole.accuracies)
    assert max(whole.costs) <= budget
    assert go(tmp_path / "other.pt", 100, seed=1) != whole


def test_agents_learn_what_pays() -> None:
    torch.manual_seed(0)
    space = chain_space(parts=1)
    budget = space.reference()
    strategy = Controllers(space, budget, AgentSettings(30, 0.5, 0.95, 128), 0, 1.0)
    accuracies = []
    for _ in range(110):
        allocation = strategy.propose()
        accuracies.append(made_up(space)(allocation))
        strategy.learn(allocation, accuracies[-1])
    random_mean, last = sum(accuracies[:30]) / 30, sum(accuracies[-20:]) / 20
    assert 1 - last < 0.5 * (1 - random_mean), (random_mean, last)


def test_greedy_begins_with_the_least_important_and_never_gets_worse() -> None:
    space = chain_space()
    budget = int(0.4 * space.reference())
    strategy = LocalSearch(space, budget, 0)
    first = strategy.propose()
    assert space.cost(first.keep, first.bits) <= budget
    assert strategy.propose() == first
    best = -1.0
    for _ in range(40):
        allocation = strategy.propose()
        assert space.cost(allocation.keep, allocation.bits) <= budget
        accuracy = made_up(space)(allocation)
        strategy.learn(allocation, accuracy)
        best = max(best, accuracy)
    assert best > made_up(space)(first)
    for layer, own in zip(space.layers, first.bits, strict=True):
        filled = list(own[: layer.kernels(first.keep)])
        assert filled == sorted(filled, reverse=True), layer.name


def test_uniform_takes_what_fits() -> None:
    space = chain_space()
    budget = space.cost(space.most, space.all_bits(5))
    assert Uniform(space, budget).propose() == Allocation(space.most, space.all_bits(5))
    assert Uniform(space, budget - 1).propose() == Allocation(space.most, space.all_bits(4))
    with pytest.raises(ValueError, match="2 bits everywhere take"):
        Uniform(space, space.cost(space.most, space.all_bits(2)) - 1)
    fixed = chain_space(bits=(4, 4))
    chosen = Uniform(fixed, int(0.3 * fixed.reference())).propose()
    shares = [kept / most for kept, most in zip(chosen.keep, fixed.most, strict=True)]
    assert fixed.cost(chosen.keep, chosen.bits) <= 0.3 * fixed.reference()
    assert max(shares) - min(shares) < 0.1
    more = tuple(kept + 1 for kept in chosen.keep)
    assert fixed.cost(more, chosen.bits) > 0.3 * fixed.reference()


# --- the method ------------------------------------------------------------------------------------------------------

SHORT: dict[str, Any] = {
    "training.steps": 12,
    "training.batch_size": 16,
    "settings.episodes": 6,
    "settings.warmup": 3,
    "settings.float_steps": 2,
    "settings.reward_samples": 60,
}


def test_it_ends_in_a_file_without_the_removed_channels(tmp_path: Path) -> None:
    result = run(load_recipe("ajpq", SHORT), tmp_path / "whole", seed=3, progress=False)
    network, facts = result["networks"]["ajpq"], result["facts"]
    assert network["parity"] == {"samples": 980, "different": 0}
    assert facts["evaluated"] == 6
    assert facts["cost_bits"] <= facts["largest_cost_bits"] <= facts["budget_bits"]
    assert result["extra_steps"] == 2
    graph = runtime.load(tmp_path / "whole" / network["file"], tune=False).graph
    weights = [node.tensors["weight"] for node in graph.nodes if "weight" in node.tensors]
    assert len(weights) == len(facts["bits"]) == 10
    total = 0
    for codes, counts in zip(weights, facts["bits"].values(), strict=True):
        assert len(codes) == sum(counts[1:])
        assert counts[1] == 0
        # No kernel has codes beyond its bits: sorted, the largest codes are at most the sorted limits.
        largest = np.sort(np.abs(codes.astype(np.int64)).reshape(len(codes), -1).max(1))
        limits = np.sort(np.concatenate([np.full(n, 2 ** (b - 1) - 1) for b, n in enumerate(counts) if b and n]))
        assert (largest <= limits).all()
        total += sum(n * (b * codes[0].size + 68) for b, n in enumerate(counts) if b)
    assert total == facts["cost_bits"]
    assert sum(counts[0] for counts in facts["bits"].values()) > 0
    token = stop_after_step.set(5)
    try:
        with pytest.raises(TrainingInterrupted):
            run(load_recipe("ajpq", SHORT), tmp_path / "stopped", seed=3, progress=False)
    finally:
        stop_after_step.reset(token)
    run(load_recipe("ajpq", SHORT), tmp_path / "stopped", seed=3, progress=False)
    files = [(tmp_path / name / "ajpq.pqk").read_bytes() for name in ("whole", "stopped")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"search": "random"},
        {"search": "greedy"},
        {"search": "prune_then_quantize"},
        {"search": "uniform", "budget": 0.4},
        {"search": "uniform", "mode": "fixed"},
        {"search": "rl", "mode": "fixed"},
        {"search": "rl", "reward_steps": 2, "episodes": 2},
    ],
)
def test_controls_meet_the_same_budget(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = {f"settings.{name}": value for name, value in ({"episodes": 4, "warmup": 1} | changes).items()}
    recipe = load_recipe("ajpq", SHORT | settings)
    work = Run(recipe, tmp_path, 0, progress=False)
    model = work.network().eval()
    space, outcome = _Search(work, model).result()
    assert outcome.best is not None
    assert max(outcome.costs) <= recipe.settings.budget * space.reference()
    halves = changes["search"] == "prune_then_quantize"
    assert len(outcome.accuracies) == (
        1 if changes["search"] == "uniform" else 2 if halves else recipe.settings.episodes
    )
    bits = space.channel_bits(outcome.best)
    prepared = prepared_with_bits(work, model, bits, space.bits)
    assert sum(len(own.weight) for own in prepared.modules() if hasattr(own, "weight_mask")) == sum(
        int((own > 0).sum()) for own in bits.values()
    )
    if changes.get("mode") == "fixed":
        assert {b for own in bits.values() for b in own.tolist()} <= {0, 4}
    if halves:
        assert (tmp_path / "search" / "prune.pt").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"search": "best"}, "search: expected one of rl, random, greedy, uniform, prune_then_quantize, got 'best'"),
        ({"mode": "any"}, "mode: expected one of mixed, fixed, got 'any'"),
        ({"layer_importance": "l3"}, "layer_importance: expected one of l1, .* got 'l3'"),
        ({"budget": 0.0}, r"budget: expected a number in \(0, 1\], got 0.0"),
        ({"lowest_bits": 1}, "lowest_bits: expected an integer from 2 to 8, got 1"),
        ({"lowest_bits": 5, "highest_bits": 4}, "highest_bits: expected at least lowest_bits = 5, got 4"),
        ({"episodes": 0}, "episodes: expected an integer of at least 1, got 0"),
        ({"warmup": True}, "warmup: expected an integer of at least 0, got True"),
        ({"monotone": 1}, "monotone: expected true or false, got 1"),
        ({"search": "prune_then_quantize", "mode": "fixed"}, "search: prune_then_quantize needs mode mixed"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AJPQSettings(**values)
