"""The two controllers' way through a network: what each sees, and what its actions mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pqk_ext.methods._allocation import Allocation, Space, part_sizes

__all__ = ["CHANNEL_FEATURES", "LAYER_FEATURES", "Trajectory", "bits_of_action", "choose", "retrace"]

LAYER_FEATURES = 11
CHANNEL_FEATURES = 14
Act = Callable[[Tensor], float]


@dataclasses.dataclass
class Trajectory:
    """What one controller saw and did in an episode; actions in [0, 1]."""

    states: list[Tensor] = dataclasses.field(default_factory=list)
    actions: list[float] = dataclasses.field(default_factory=list)

    def add(self, state: list[float], action: float) -> None:
        self.states.append(torch.tensor(state))
        self.actions.append(action)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """States ``(steps, features)`` and actions ``(steps,)``, float32."""
        return torch.stack(self.states), torch.tensor(self.actions)


def bits_of_action(action: float, bits: tuple[int, int]) -> int:
    """HAQ's mapping: an equal share of [0, 1] for each number of bits."""
    low, high = bits
    return min(high, max(low, round(low - 0.5 + action * (high - low + 1))))


def action_of_bits(chosen: int, bits: tuple[int, int]) -> float:
    """The middle of the actions that mean ``chosen`` bits."""
    return (chosen - bits[0] + 0.5) / (bits[1] - bits[0] + 1)


def keep_of_action(action: float, count: int) -> int:
    """How many of ``count`` channels the share ``action`` is: at least one."""
    return max(1, math.ceil(action * count - 1e-9))


class _Walk:
    """One episode: layers in order, for each first its share of channels (once for tied layers), then its bits."""

    def __init__(self, space: Space, budget: int) -> None:
        self.space, self.budget = space, budget
        self.keep: dict[int, int] = {}
        self.of_layers, self.of_channels = Trajectory(), Trajectory()
        values = torch.tensor([layer.features for layer in space.layers])
        low, high = values.amin(0), values.amax(0)
        self.static: list[list[float]] = ((values - low) / (high - low).clamp_min(1e-9)).tolist()
        self.dense = self._weights(0, space.most)
        self.last_share = self.last_bits = 1.0
        self.chosen_bits = self.chosen_weights = 0

    def _index(self, place: int) -> float:
        return place / max(1, len(self.space.layers) - 1)

    def _weights(self, first: int, keep: tuple[int, ...]) -> int:
        return sum(layer.kernels(keep) * layer.kernel_weights(keep) for layer in self.space.layers[first:])

    def present(self) -> tuple[int, ...]:
        """The keep as far as it was decided; the other sets keep everything."""
        return tuple(self.keep.get(i, count) for i, count in enumerate(self.space.most))

    def layer_state(self, place: int) -> list[float]:
        """AMC's: index, kind, widths, stride, kernel, weights, weights saved, weights to come, previous action."""
        saved = 1 - self._weights(0, self.present()) / self.dense
        rest = self._weights(place, self.present()) / self.dense
        return [self._index(place), *self.static[place][:7], saved, rest, self.last_share]

    def channel_state(self, place: int, part: int) -> list[float]:
        """HAQ's, and of the part: rank, importance, its layer's share of channels, mean bits so far, budget left."""
        layer, keep = self.space.layers[place], self.present()
        static = self.static[place]
        share = 1.0 if layer.tied is None else keep[layer.tied] / len(self.space.tied[layer.tied].order)
        ordered = layer.importance.sort(descending=True).values
        importances = ordered[: layer.kernels(keep)].split(part_sizes(layer.kernels(keep), self.space.parts))
        own = float(importances[part].mean() / ordered[0]) if len(importances[part]) else 0.0
        highest = self.space.bits[1]
        mean_bits = self.chosen_bits / max(1, self.chosen_weights) / highest
        left = max(0.0, 1 - self.chosen_bits / self.budget)
        rank = part / max(1, self.space.parts - 1)
        seen = [static[0], *static[2:], self._index(place), self.last_bits / highest]
        return [*seen, rank, own, share, mean_bits, left]

    def visit(self, place: int, act_layer: Act, act_channels: Act) -> tuple[int, ...]:
        """Bits of a layer's parts, and before, if it is the first of its set, the set's keep."""
        layer, space = self.space.layers[place], self.space
        if layer.tied is not None and layer.first:
            state, tied = self.layer_state(place), space.tied[layer.tied]
            count = len(tied.order)
            wanted = max(tied.least, keep_of_action(act_layer(torch.tensor(state)), count))
            kept = min(wanted, space.largest_keep(layer.tied, self.keep, self.budget))
            self.keep[layer.tied] = kept
            self.last_share = kept / count
            self.of_layers.add(state, self.last_share)
        keep = self.present()
        sizes, weights = part_sizes(layer.kernels(keep), space.parts), layer.kernel_weights(keep)
        bits = []
        for part, size in enumerate(sizes):
            state = self.channel_state(place, part)
            chosen = bits_of_action(act_channels(torch.tensor(state)), space.bits)
            self.of_channels.add(state, action_of_bits(chosen, space.bits))
            bits.append(chosen)
            self.last_bits = chosen
            self.chosen_bits += chosen * size * weights
            self.chosen_weights += size * weights
        return tuple(bits)


def choose(space: Space, budget: int, act_layer: Act, act_channels: Act, *, monotone: bool = False) -> Allocation:
    """An allocation within a budget, chosen by two controllers.

    Args:
        space: of allocations.
        budget: bits.
        act_layer: the layer controller: state ``(LAYER_FEATURES,)`` to the share of a set's channels that stays. It is
            cut such that the cheapest choice of everything else meets the budget.
        act_channels: the channel controller: state ``(CHANNEL_FEATURES,)`` to bits of a part, as an action in [0, 1].
            Afterwards bits are lowered until the budget is met.
        monotone: less important parts of a layer get no more bits than more important ones.
    """
    walk = _Walk(space, budget)
    bits = tuple(walk.visit(place, act_layer, act_channels) for place in range(len(space.layers)))
    if monotone:
        bits = tuple(tuple(min(own[: i + 1]) for i in range(len(own))) for own in bits)
    return space.lowered(Allocation(walk.present(), bits), budget)


def retrace(space: Space, budget: int, allocation: Allocation) -> tuple[Trajectory, Trajectory]:
    """Both controllers' states and actions on the way to an allocation: what was carried out, not what they wanted."""
    walk = _Walk(space, budget)
    wanted = iter([bits for own in allocation.bits for bits in own])
    keeps = iter(
        allocation.keep[layer.tied] / len(space.tied[layer.tied].order)
        for layer in space.layers
        if layer.tied is not None and layer.first
    )
    for place in range(len(space.layers)):
        walk.visit(place, lambda state: next(keeps), lambda state: action_of_bits(next(wanted), space.bits))
    assert walk.present() == allocation.keep
    return walk.of_layers, walk.of_channels
