"""Bits for every kernel of a network, none among them: what an allocation is, what it costs, and which ones may be.

A kernel is the weights of one output channel. With 0 bits it is removed, and with it what later layers read of it.
Kernels are ranked by importance; a *keep* is how many of the channels that can be removed stay, for each set of tied
layers; the kept kernels of a layer are split by rank into *parts* of nearly one size, which have equal bits.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pqk_ext.nn.channels import by_channel
from pqk_ext.thin import ChannelMap, LayerChannels, channel_map

__all__ = ["IMPORTANCE", "Allocation", "Space"]

_OVERHEAD_BITS = 64  # of a kernel in a file: float32 multiplier and bias
_BITS_FIELD = 4  # in which a kernel's own number of bits would be written
_REFERENCE_BITS = 8

Importance = Callable[[Tensor, Tensor], Tensor]


def _l1(rows: Tensor, gamma: Tensor) -> Tensor:
    return rows.abs().sum(1)


def _l1_gamma(rows: Tensor, gamma: Tensor) -> Tensor:
    return rows.abs().sum(1) * gamma


def _l2(rows: Tensor, gamma: Tensor) -> Tensor:
    return rows.square().sum(1).sqrt()


def _gamma(rows: Tensor, gamma: Tensor) -> Tensor:
    return gamma


def _distance(rows: Tensor, gamma: Tensor) -> Tensor:
    return torch.cdist(rows, rows).sum(1)


# Name -> importance of the kernels ``(O, weights)`` of a layer whose batch norm multiplies them by ``gamma`` (at least
# 0). ``distance`` is that of FPGM (He et al., CVPR 2019): kernels in the middle of all others can be replaced by them.
IMPORTANCE: Mapping[str, Importance] = {
    "l1": _l1,
    "l1_gamma": _l1_gamma,
    "l2": _l2,
    "gamma": _gamma,
    "distance": _distance,
}


@dataclasses.dataclass(frozen=True)
class Allocation:
    """One point of the space.

    Attributes:
        keep: for each set of tied layers, how many of its removable channels stay.
        bits: for each layer, those of its parts, most important first.
    """

    keep: tuple[int, ...]
    bits: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Tied:
    """Layers whose channels are removed together.

    Attributes:
        order: removable channels by number, most important first.
        least: how many of them stay at least.
    """

    order: Tensor
    least: int


@dataclasses.dataclass(frozen=True)
class SpaceLayer:
    """What costs need to know of a layer.

    Attributes:
        name: path.
        channels: its channels.
        tied: index of its set of tied layers; None if none of its channels can be removed.
        first: whether it is the first layer of the set.
        outputs: kernels by how many channels the set keeps.
        inputs: for each set that it reads from, its index and the inputs by how many channels that set keeps.
        constant_inputs: inputs that stay in any case.
        importance: of its kernels, of mean 1.
        features: what agents see of it: depthwise, linear, inputs, outputs, stride, kernel, weights, size of the input.
    """

    name: str
    channels: LayerChannels
    tied: int | None
    first: bool
    outputs: tuple[int, ...]
    inputs: tuple[tuple[int, tuple[int, ...]], ...]
    constant_inputs: int
    importance: Tensor
    features: tuple[float, ...]
    _sums: dict[int, list[float]] = dataclasses.field(default_factory=dict, repr=False)

    def kernel_weights(self, keep: Sequence[int]) -> int:
        """Weights of one kernel."""
        if self.channels.groups > 1:
            return len(self.channels.inputs) // self.channels.groups * self.channels.kernel_size
        read = self.constant_inputs + sum(counts[keep[tied]] for tied, counts in self.inputs)
        return read * self.channels.kernel_size

    def kernels(self, keep: Sequence[int]) -> int:
        """How many kernels stay."""
        return self.outputs[0 if self.tied is None else keep[self.tied]]

    def loss(self, kernels: int, bits: Sequence[int]) -> float:
        """Importance lost by removing all but the first ``kernels`` and rounding these to bits: at most 1."""
        if kernels not in self._sums:
            ordered = self.importance.sort(descending=True).values
            sizes = part_sizes(kernels, len(bits))
            self._sums[kernels] = [float(part.sum()) for part in ordered[:kernels].split(sizes)]
        sums, count = self._sums[kernels], len(self.importance)
        return (count - sum(sums) + sum(s * 4.0 ** (1 - b) for s, b in zip(sums, bits, strict=True))) / count


def part_sizes(count: int, parts: int) -> list[int]:
    """Sizes of ``count`` kernels in ``parts`` parts, the larger ones first."""
    return [count // parts + (part < count % parts) for part in range(parts)]


class Space:
    """The allocations of a network.

    Args:
        model: float network.
        example_inputs: a float32 batch.
        layer_importance: by which channels are removed, summed over tied layers, each of mean 1; in ``IMPORTANCE``.
        channel_importance: by which the kept kernels of a layer are split into parts.
        lowest_keep: share of each set's removable channels that stays at least; one of them always does.
        bits: fewest and most bits of a kept kernel; where they are equal, all have them.
        parts: parts of a layer.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor,
        *,
        layer_importance: str = "l1",
        channel_importance: str = "l1",
        lowest_keep: float = 0.2,
        bits: tuple[int, int] = (2, 8),
        parts: int = 4,
    ) -> None:
        self.channels: ChannelMap = channel_map(model, example_inputs)
        self.bits, self.parts = bits, parts
        scores = {n: _normalized(model, own, layer_importance) for n, own in self.channels.layers.items()}
        removable = [group for group in self.channels.groups if len(group.removable)]
        total = torch.zeros(self.channels.count, dtype=torch.float64)
        for name, own in self.channels.layers.items():
            total.index_add_(0, own.outputs, scores[name])
        self.tied = tuple(_tied(group.removable, total, lowest_keep) for group in removable)
        member = {name: index for index, group in enumerate(removable) for name in group.layers}
        firsts = {group.layers[0] for group in removable}
        self.layers = tuple(
            self._layer(model, own, member.get(name), name in firsts, channel_importance)
            for name, own in self.channels.layers.items()
        )
        # Layer and part, the least important first.
        self.by_importance = sorted(itertools.product(range(len(self.layers)), range(parts)), key=self._part_importance)

    def _layer(
        self, model: nn.Module, own: LayerChannels, tied: int | None, first: bool, importance: str
    ) -> SpaceLayer:
        outputs = (len(own.outputs),) if tied is None else _counts(own.outputs, self.tied[tied].order)
        inputs = tuple((i, _counts(own.inputs, group.order)) for i, group in enumerate(self.tied))
        inputs = tuple((i, tuple(c - counts[0] for c in counts)) for i, counts in inputs if counts[-1] > counts[0])
        constant = len(own.inputs) - sum(counts[-1] for _, counts in inputs)
        layer = model.get_submodule(own.name)
        stride = getattr(layer, "stride", (1,))
        assert isinstance(stride, tuple)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        features = (
            *(own.groups > 1, isinstance(layer, nn.Linear), len(own.inputs), len(own.outputs)),
            *(stride[0], own.kernel_size, weight.numel(), math.prod(own.shape[1:])),
        )
        scores = _normalized(model, own, importance)
        values = tuple(float(value) for value in features)
        return SpaceLayer(own.name, own, tied, first, outputs, inputs, constant, scores, values)

    # --- cost ------------------------------------------------------------------------------------------------

    def cost(self, keep: Sequence[int], bits: Sequence[Sequence[int]]) -> int:
        """Bits of all kept kernels, with what describes them: multiplier, bias and their own number of bits."""
        own = _OVERHEAD_BITS + (_BITS_FIELD if self.bits[0] < self.bits[1] else 0)
        total = 0
        for layer, of_parts in zip(self.layers, bits, strict=True):
            kernels, weights = layer.kernels(keep), layer.kernel_weights(keep)
            sizes = part_sizes(kernels, self.parts)
            total += kernels * own + weights * sum(s * b for s, b in zip(sizes, of_parts, strict=True))
        return total

    @property
    def most(self) -> tuple[int, ...]:
        """The keep that removes nothing."""
        return tuple(len(tied.order) for tied in self.tied)

    @property
    def least(self) -> tuple[int, ...]:
        """The keep that removes all that may go."""
        return tuple(tied.least for tied in self.tied)

    def all_bits(self, bits: int) -> tuple[tuple[int, ...], ...]:
        """The same bits everywhere."""
        return ((bits,) * self.parts,) * len(self.layers)

    def reference(self) -> int:
        """Bits of the network with nothing removed and 8 bits for every weight."""
        kernels = sum(layer.outputs[-1] for layer in self.layers)
        weights = sum(layer.outputs[-1] * layer.kernel_weights(self.most) for layer in self.layers)
        return kernels * _OVERHEAD_BITS + weights * _REFERENCE_BITS

    def check(self, budget: int) -> None:
        """Raises ValueError unless some allocation costs at most ``budget`` bits."""
        cheapest = self.cost(self.least, self.all_bits(self.bits[0]))
        if cheapest > budget:
            raise ValueError(
                f"budget: expected at least {cheapest / self.reference():.4f} of the 8-bit network, the cheapest "
                f"allocation, got {budget / self.reference():.4f}"
            )

    # --- the action wall -------------------------------------------------------------------------------------

    def largest_keep(self, tied: int, decided: Mapping[int, int], budget: int) -> int:
        """How many channels a set may keep, after others were decided, such that the rest can still meet the budget."""
        low, high = self.tied[tied].least, len(self.tied[tied].order)
        fewest = self.all_bits(self.bits[0])
        keep = [decided.get(i, group.least) for i, group in enumerate(self.tied)]
        while low < high:
            keep[tied] = (low + high + 1) // 2
            low, high = (keep[tied], high) if self.cost(keep, fewest) <= budget else (low, keep[tied] - 1)
        return low

    def lowered(self, allocation: Allocation, budget: int) -> Allocation:
        """The same channels with fewer bits, until the budget is met.

        In rounds from the least important part of all to the most important, one bit each.
        """
        bits = [list(of_parts) for of_parts in allocation.bits]
        keep = allocation.keep
        cost = self.cost(keep, bits)
        sizes = [part_sizes(layer.kernels(keep), self.parts) for layer in self.layers]
        while cost > budget:
            lowerable = [(i, part) for i, part in self.by_importance if sizes[i][part] and bits[i][part] > self.bits[0]]
            if not lowerable:
                raise ValueError(f"budget: {budget} bits are fewer than the {cost} of these channels with fewest bits")
            for i, part in lowerable:
                bits[i][part] -= 1
                cost -= sizes[i][part] * self.layers[i].kernel_weights(keep)
                if cost <= budget:
                    break
        return Allocation(keep, tuple(map(tuple, bits)))

    def _part_importance(self, place: tuple[int, int]) -> float:
        """Mean importance of a part's kernels when nothing is removed; layers have mean 1."""
        ordered = self.layers[place[0]].importance.sort(descending=True).values
        parts = ordered.split(part_sizes(len(ordered), self.parts))
        return float(parts[place[1]].mean()) if len(parts[place[1]]) else 0.0

    # --- to the network --------------------------------------------------------------------------------------

    def kept(self, keep: Sequence[int]) -> Tensor:
        """Which channels stay, bool by number."""
        kept = torch.ones(self.channels.count, dtype=torch.bool)
        for count, tied in zip(keep, self.tied, strict=True):
            kept[tied.order[count:]] = False
        return kept

    def channel_bits(self, allocation: Allocation) -> dict[str, Tensor]:
        """Bits of each kernel, int64 ``(O,)`` by layer; 0 where it is removed."""
        kept = self.kept(allocation.keep)
        result = {}
        for layer, of_parts in zip(self.layers, allocation.bits, strict=True):
            stays = kept[layer.channels.outputs]
            order = torch.where(stays, layer.importance, -torch.inf).sort(descending=True, stable=True).indices
            order = order[: int(stays.sum())]
            bits = torch.zeros(len(stays), dtype=torch.int64)
            sizes = torch.tensor(part_sizes(len(order), self.parts))
            bits[order] = torch.tensor(of_parts).repeat_interleave(sizes)
            result[layer.name] = bits
        return result


def _normalized(model: nn.Module, own: LayerChannels, name: str) -> Tensor:
    """Importance of a layer's kernels, float64, of mean 1; on the CPU, where the search is."""
    layer = model.get_submodule(own.name)
    assert isinstance(layer.weight, Tensor)
    rows = by_channel(layer, layer.weight).detach().cpu().flatten(1).double()
    gamma = torch.ones(len(rows), dtype=torch.float64)
    if own.norm is not None:
        scale = model.get_submodule(own.norm).weight
        gamma = gamma if scale is None else scale.detach().cpu().abs().double()  # type: ignore[operator]
    scores = IMPORTANCE[name](rows, gamma)
    mean = scores.mean()
    return scores / mean if float(mean) > 0 else torch.ones_like(scores)


def _tied(removable: Tensor, total: Tensor, lowest_keep: float) -> Tied:
    order = removable[total[removable].sort(descending=True, stable=True).indices]
    return Tied(order, max(1, math.ceil(lowest_keep * len(order))))


def _counts(channels: Tensor, order: Tensor) -> tuple[int, ...]:
    """How many of a layer's channels are there when the first 0, 1, 2 ... of ``order`` stay."""
    place = torch.full((int(max(channels.max(), order.max())) + 1,), -1)
    place[order] = torch.arange(len(order))
    places = place[channels]
    of_each = torch.bincount(places[places >= 0], minlength=len(order)).cumsum(0).tolist()
    constant = int((places < 0).sum())
    return tuple(constant + count for count in [0, *of_each])
