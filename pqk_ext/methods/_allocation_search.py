"""Ways to look for a good allocation, each asking for one accuracy a proposal, and a search that can be resumed."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pqk_ext.methods._allocation import Allocation, Space
from pqk_ext.methods._allocation_walk import (
    CHANNEL_FEATURES,
    LAYER_FEATURES,
    action_of_bits,
    choose,
    retrace,
)
from pqk_ext.methods._ddpg import Agent, AgentSettings, Baseline
from pqk_ext.training.data import derived_seed
from pqk_ext.training.durable import write_durably
from pqk_ext.training.metrics import ProgressBar

__all__ = ["Controllers", "LocalSearch", "Outcome", "Strategy", "Uniform", "search"]

_REWARD = 10.0  # HAQ: a tenth of the points of accuracy lost
_FEWER = 16  # a greedy move removes this part of a set's channels


class Strategy(Protocol):
    """Proposes allocations within the budget, and is told what came of each."""

    def propose(self) -> Allocation: ...

    def learn(self, allocation: Allocation, accuracy: float) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Controllers:
    """The layer controller and the channel controller, one agent each.

    They learn in turn, an episode each, since each is part of the other's surroundings; they share the reward and its
    baseline. Where all bits are equal the channel controller has nothing to do, where the channels are given the
    layer controller has not.

    Args:
        space: of allocations.
        budget: bits.
        agents: exploration and memory; the capacity is that for one transition an episode.
        seed: of both agents.
        reference: accuracy of the network as it is.
        keep: the channels that stay, if that was decided before.
        monotone: see :func:`pqk_ext.methods._allocation_walk.choose`.
    """

    def __init__(
        self,
        space: Space,
        budget: int,
        agents: AgentSettings,
        seed: int,
        reference: float,
        *,
        keep: tuple[int, ...] | None = None,
        monotone: bool = False,
    ) -> None:
        space.check(budget)
        self._space, self._budget, self._reference, self._monotone = space, budget, reference, monotone
        self._keep = keep
        self._baseline = Baseline()
        self._active = (keep is None and bool(space.tied), space.bits[0] < space.bits[1])
        steps = (max(1, len(space.tied)), len(space.layers) * space.parts)
        self._agents = tuple(
            Agent(features, dataclasses.replace(agents, capacity=agents.capacity * length), derived_seed(seed, index))
            for index, (features, length) in enumerate(zip((LAYER_FEATURES, CHANNEL_FEATURES), steps, strict=True))
        )
        self._episode = 0

    def propose(self) -> Allocation:
        act_layer: Callable[[Tensor], float] = self._agents[0].act
        if self._keep is not None:
            shares = iter(_shares(self._space, self._keep))
            act_layer = lambda state: next(shares)  # noqa: E731
        act_channels = self._agents[1].act if self._active[1] else lambda state: 0.5
        return choose(self._space, self._budget, act_layer, act_channels, monotone=self._monotone)

    def learn(self, allocation: Allocation, accuracy: float) -> None:
        reward = _REWARD * (accuracy - self._reference)
        turns = [index for index in range(2) if self._active[index]]
        trajectories = retrace(self._space, self._budget, allocation)
        for index in turns:
            states, actions = trajectories[index].tensors()
            self._agents[index].remember(states, actions, reward)
        if turns:
            index = turns[self._episode % len(turns)]
            self._agents[index].learn(len(trajectories[index].actions), self._baseline)
        self._episode += 1

    def state_dict(self) -> dict[str, Any]:
        agents = [agent.state_dict() for agent in self._agents]
        return {"agents": agents, "baseline": self._baseline.value, "episode": self._episode}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for agent, own in zip(self._agents, state["agents"], strict=True):
            agent.load_state_dict(own)
        self._baseline.value, self._episode = state["baseline"], state["episode"]


def _shares(space: Space, keep: tuple[int, ...]) -> list[float]:
    """What the layer controller would have to say, in its order, for a keep."""
    tied = [layer.tied for layer in space.layers if layer.tied is not None and layer.first]
    return [keep[index] / len(space.tied[index].order) for index in tied]


class LocalSearch:
    """Greedy: what costs least importance for each bit saved, until the budget is met; then changes that help stay.

    A kernel's loss is its importance (each layer has 1 in all) times ``4**(1 - bits)``, the decline of a rounding
    error's energy; all of it when removed.

    Args:
        space: of allocations.
        budget: bits.
        seed: of the changes.
    """

    def __init__(self, space: Space, budget: int, seed: int) -> None:
        space.check(budget)
        self._space, self._budget = space, budget
        self._generator = torch.Generator().manual_seed(seed)
        self._best: Allocation | None = None
        self._accuracy = -1.0

    def propose(self) -> Allocation:
        return self._greedy() if self._best is None else self._changed(self._best)

    def learn(self, allocation: Allocation, accuracy: float) -> None:
        if accuracy >= self._accuracy:
            self._best, self._accuracy = allocation, accuracy

    def _loss(self, keep: tuple[int, ...], bits: tuple[tuple[int, ...], ...]) -> float:
        total = 0.0
        for layer, of_parts in zip(self._space.layers, bits, strict=True):
            total += layer.loss(layer.kernels(keep), of_parts)
        return total

    def _greedy(self) -> Allocation:
        space = self._space
        now = Allocation(space.most, space.all_bits(space.bits[1]))
        while (cost := space.cost(now.keep, now.bits)) > self._budget:
            loss = self._loss(now.keep, now.bits)
            moves = []
            for move in self._moves(now):
                saved = cost - space.cost(move.keep, move.bits)
                if saved > 0:
                    moves.append(((self._loss(move.keep, move.bits) - loss) / saved, move))
            now = min(moves, key=lambda rated: rated[0])[1]
        return now

    def _moves(self, now: Allocation) -> list[Allocation]:
        moves = []
        for index, tied in enumerate(self._space.tied):
            fewer = max(tied.least, now.keep[index] - max(1, len(tied.order) // _FEWER))
            if fewer < now.keep[index]:
                moves.append(Allocation((*now.keep[:index], fewer, *now.keep[index + 1 :]), now.bits))
        for index, own in enumerate(now.bits):
            for part, bits in enumerate(own):
                if bits > self._space.bits[0]:
                    changed = (*own[:part], bits - 1, *own[part + 1 :])
                    moves.append(Allocation(now.keep, (*now.bits[:index], changed, *now.bits[index + 1 :])))
        return moves

    def _draw(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return int(torch.randint(low, high + 1, (), generator=self._generator))

    def _changed(self, start: Allocation) -> Allocation:
        space = self._space
        keep, bits = list(start.keep), [list(own) for own in start.bits]
        if keep and (self._draw(0, 1) or space.bits[0] == space.bits[1]):
            index = self._draw(0, len(keep) - 1)
            tied = space.tied[index]
            reach = max(1, len(tied.order) // 4)
            keep[index] = min(len(tied.order), max(tied.least, keep[index] + self._draw(-reach, reach)))
        for _ in range(self._draw(1, 3)):
            index, part = self._draw(0, len(bits) - 1), self._draw(0, space.parts - 1)
            bits[index][part] = min(space.bits[1], max(space.bits[0], bits[index][part] + self._draw(-1, 2)))
        shares = iter(_shares(space, tuple(keep)))
        actions = iter([action_of_bits(own, space.bits) for of_parts in bits for own in of_parts])
        return choose(space, self._budget, lambda state: next(shares), lambda state: next(actions))

    def state_dict(self) -> dict[str, Any]:
        best = None if self._best is None else dataclasses.astuple(self._best)
        return {"generator": self._generator.get_state(), "best": best, "accuracy": self._accuracy}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(state["generator"])
        self._best = None if state["best"] is None else Allocation(*state["best"])
        self._accuracy = state["accuracy"]


class Uniform:
    """One allocation: the most bits that all kernels can have, or, where bits are given, the largest equal share kept.

    Raises:
        ValueError: the budget is smaller than that of the fewest bits.
    """

    def __init__(self, space: Space, budget: int) -> None:
        low, high = space.bits
        fits = [b for b in range(low, high + 1) if space.cost(space.most, space.all_bits(b)) <= budget]
        if low < high:
            if not fits:
                least = space.cost(space.most, space.all_bits(low)) / space.reference()
                raise ValueError(f"budget: {low} bits everywhere take {least:.4f} of the 8-bit network")
            self._allocation = Allocation(space.most, space.all_bits(fits[-1]))
            return
        space.check(budget)
        keep = space.least
        for share in range(1, 257):
            more = tuple(max(tied.least, len(tied.order) * share // 256) for tied in space.tied)
            keep = more if space.cost(more, space.all_bits(low)) <= budget else keep
        self._allocation = Allocation(keep, space.all_bits(low))

    def propose(self) -> Allocation:
        return self._allocation

    def learn(self, allocation: Allocation, accuracy: float) -> None:
        """Nothing to learn: there is one proposal."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""


@dataclasses.dataclass
class Outcome:
    """What a search found.

    Attributes:
        best: the allocation of the highest accuracy, the first of equal ones.
        accuracy: its accuracy.
        accuracies: of all proposals in turn.
        costs: bits of all proposals.
    """

    best: Allocation | None = None
    accuracy: float = -1.0
    accuracies: list[float] = dataclasses.field(default_factory=list)
    costs: list[int] = dataclasses.field(default_factory=list)


def search(
    strategy: Strategy,
    space: Space,
    budget: int,
    evaluate: Callable[[Allocation], float],
    episodes: int,
    path: Path,
    *,
    save_interval: int = 20,
    progress: bool = True,
) -> Outcome:
    """Runs a strategy; goes on where a former call with the same arguments stopped, to the same end.

    Args:
        strategy: what proposes.
        space: of allocations.
        budget: bits; a proposal above it is an error of the strategy.
        evaluate: accuracy of an allocation.
        episodes: proposals.
        path: file of the search's state, replaced as a whole every ``save_interval`` episodes.
        save_interval: episodes.
        progress: show a bar if stderr is a terminal.

    Raises:
        AssertionError: a proposal above the budget.
        OSError: the state cannot be written.
    """
    outcome = Outcome()
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{path.name}.*.tmp"):
        left.unlink()
    if path.exists():
        state = torch.load(path, weights_only=True)
        strategy.load_state_dict(state["strategy"])
        outcome = Outcome(Allocation(*state["best"]), *state["outcome"])
    bar = ProgressBar(episodes, len(outcome.accuracies), enabled=progress)
    try:
        for episode in range(len(outcome.accuracies), episodes):
            allocation = strategy.propose()
            cost = space.cost(allocation.keep, allocation.bits)
            if cost > budget:
                raise AssertionError(f"episode {episode}: {cost} bits proposed, {budget} allowed")
            accuracy = evaluate(allocation)
            strategy.learn(allocation, accuracy)
            outcome.accuracies.append(accuracy)
            outcome.costs.append(cost)
            if accuracy > outcome.accuracy:
                outcome.best, outcome.accuracy = allocation, accuracy
            if (episode + 1) % save_interval == 0 or episode + 1 == episodes:
                _save(path, strategy, outcome)
            bar.update(episode + 1, f"search, best {100 * outcome.accuracy:.1f} %")
    finally:
        bar.close()
    return outcome


def _save(path: Path, strategy: Strategy, outcome: Outcome) -> None:
    assert outcome.best is not None
    values = [outcome.accuracy, outcome.accuracies, outcome.costs]
    state = {"strategy": strategy.state_dict(), "best": dataclasses.astuple(outcome.best), "outcome": values}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_durably(path, buffer.getvalue())
