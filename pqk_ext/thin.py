"""Physical removal of output channels, and of what later layers read of them.

Which channels hang together is read from the traced plan, the same that training, evaluation and export share: the
operands of a residual addition have one set of channels, a depthwise convolution has those of its input, a
concatenation lines up those of its parts, flattening repeats each of them. Removing a channel removes it everywhere.
(Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, for chains; couplings as in Fang et al., "DepGraph",
CVPR 2023, here from a closed list of operators.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pqk_ext.nn.channels import by_channel, from_channels
from pqk_ext.preparation import PreparedModel
from pqk_ext.preparation.blocks import Block, Plan
from pqk_ext.preparation.fuse import build_plan
from pqk_ext.preparation.tracing import check_example_inputs, trace

__all__ = ["ChannelGroup", "ChannelMap", "LayerChannels", "channel_map", "thin"]

_POOLS = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
_SAME_CHANNELS = ("affine", "lookup", "dropout", "softmax", "dequantize", *_POOLS)


@dataclass(frozen=True)
class LayerChannels:
    """The channels of one convolution or linear layer. Numbers are those of the network's channels.

    Attributes:
        name: path of the layer.
        outputs: int64 ``(out_channels,)``, the channel that each output is.
        inputs: int64 ``(in_channels,)``, the channel that each input is.
        kernel_size: weights between one output and one input.
        groups: of a grouped convolution.
        norm: path of the batch norm that its output goes through at once, or None.
        shape: of its input without the batch dimension.
    """

    name: str
    outputs: Tensor
    inputs: Tensor
    kernel_size: int
    groups: int
    norm: str | None
    shape: tuple[int, ...]

    def kernel_weights(self, kept: Tensor) -> int:
        """Weights of one output channel when the channels ``kept`` (bool, by number) are there."""
        if self.groups > 1:
            return len(self.inputs) // self.groups * self.kernel_size
        return int(kept[self.inputs].sum()) * self.kernel_size


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that have output channels in common, and so are thinned together.

    Attributes:
        layers: their paths, in the order they are computed.
        channels: int64, the channels that they write, ascending.
        removable: int64, those of them that can be removed.
    """

    layers: tuple[str, ...]
    channels: Tensor
    removable: Tensor


@dataclass(frozen=True)
class ChannelMap:
    """All channels of a network.

    Attributes:
        count: number of channels; they are numbered from 0.
        layers: by path, in the order they are computed.
        norms: channel numbers of each batch norm, by path.
        groups: every layer is in one of them.
        fixed: why a channel cannot be removed, for those that cannot.
    """

    count: int
    layers: Mapping[str, LayerChannels]
    norms: Mapping[str, Tensor]
    groups: tuple[ChannelGroup, ...]
    fixed: Mapping[int, str]

    def kept(self, keep: Mapping[str, Tensor | Sequence[bool]]) -> Tensor:
        """The channels that stay when layers keep some of their outputs: bool ``(count,)``.

        Args:
            keep: as for :func:`thin`.

        Raises:
            ValueError: as for :func:`thin`.
        """
        kept = torch.ones(self.count, dtype=torch.bool)
        asked: dict[int, str] = {}  # channel -> the layer that keeps it
        for name, mask in keep.items():
            if name not in self.layers:
                raise ValueError(f"keep: {name!r} is not a layer of the model; its layers are {list(self.layers)}")
            outputs = self.layers[name].outputs
            chosen = torch.as_tensor(mask).cpu()
            if chosen.dtype != torch.bool or chosen.shape != outputs.shape:
                raise ValueError(
                    f"keep[{name!r}]: expected a bool for each of {len(outputs)} output channels, got {chosen.dtype} "
                    f"{tuple(chosen.shape)}"
                )
            kept[outputs[~chosen]] = False
            asked |= dict.fromkeys(outputs[chosen].tolist(), name)
        self._check(kept, asked)
        return kept

    def _check(self, kept: Tensor, asked: Mapping[int, str]) -> None:
        for channel in (~kept).nonzero().flatten().tolist():
            layer = next(own for own in self.layers.values() if channel in own.outputs)
            place = f"{layer.name!r}, output channel {layer.outputs.tolist().index(channel)}"
            if channel in self.fixed:
                raise ValueError(f"keep: {place} cannot be removed: {self.fixed[channel]}")
            if channel in asked:
                raise ValueError(
                    f"keep: {place} is removed, but the channel that it is tied to in {asked[channel]!r} is kept; give "
                    "both layers the same choice, or only one of them"
                )
        for name, layer in self.layers.items():
            if len(layer.outputs) and not kept[layer.outputs].any():
                raise ValueError(f"keep: {name!r} would lose all of its {len(layer.outputs)} output channels")


class _Walk:
    """Gives each channel of each value a number, and makes numbers equal where the plan ties channels together."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.reason: dict[int, str] = {}
        self.values: list[list[int]] = []
        self.shapes: list[tuple[int, ...]] = []
        self.layers: dict[str, tuple[list[int], list[int], Block]] = {}
        self.norms: dict[str, list[int]] = {}
        self.by_weight: dict[int, str] = {}

    def new(self, count: int) -> list[int]:
        first = len(self.parent)
        self.parent += range(first, first + count)
        return list(range(first, first + count))

    def find(self, channel: int) -> int:
        while self.parent[channel] != channel:
            self.parent[channel] = self.parent[self.parent[channel]]
            channel = self.parent[channel]
        return channel

    def tie(self, left: Sequence[int], right: Sequence[int]) -> None:
        for a, b in zip(left, right, strict=True):
            first, second = sorted((self.find(a), self.find(b)))
            self.parent[second] = first

    def fix(self, channels: Iterable[int], reason: str) -> None:
        for channel in channels:
            self.reason.setdefault(channel, reason)

    def visit(self, block: Block, model: nn.Module) -> None:
        inputs = [self.values[i] for i in block.inputs]
        if block.op == "input":
            value = self.new(block.shape[0])
            self.fix(value, "it is a channel of the network's input")
        elif block.op in ("conv2d", "linear"):
            value = self._layer(block, inputs[0], model)
        elif block.op == "concat":
            value = [channel for part in inputs for channel in part]
        elif block.op == "flatten":
            repeats = block.shape[0] // max(1, len(inputs[0]))
            value = [channel for channel in inputs[0] for _ in range(repeats)]
        elif block.op == "slice":
            value = self._slice(block, inputs[0])
        elif block.op == "pad":
            value = self._pad(block, inputs[0])
        elif block.op == "add" or block.op in _SAME_CHANNELS:
            value = inputs[0]
        else:
            raise ValueError(f"block {block.name!r}: channels of {block.op!r} cannot be followed")
        if len(inputs) == 2 and block.op in ("conv2d", "linear", "add"):
            self.tie(value, inputs[1])
        if block.batch_norm is not None:
            if block.batch_norm in self.norms:
                self.tie(self.norms[block.batch_norm], value)
            self.norms[block.batch_norm] = value
        self.values.append(value)
        self.shapes.append(block.shape)

    def _layer(self, block: Block, read: list[int], model: nn.Module) -> list[int]:
        path = str(block.module)
        layer = model.get_submodule(path)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        rows = by_channel(layer, weight)
        groups = int(getattr(layer, "groups", 1))
        written = self._outputs(block.name, len(rows), read, groups)
        # Layers called twice, or that share a weight, have one set of channels at each end.
        first = self.by_weight.setdefault(id(weight), path)
        if first in self.layers:
            self.tie(self.layers[first][0], written)
            self.tie(self.layers[first][1], read)
        self.layers[path] = (written, read, block)
        return written

    def _outputs(self, name: str, count: int, read: list[int], groups: int) -> list[int]:
        if groups == 1:
            return self.new(count)
        if groups == len(read):  # depthwise: each output reads one input, and goes with it
            return [channel for channel in read for _ in range(count // groups)]
        written = self.new(count)
        reason = f"the grouped convolution {name!r} ({groups} groups of {len(read) // groups} inputs) "
        self.fix(read, f"{reason}reads it, and groups must stay of one size")
        self.fix(written, f"{reason}writes it, and groups must stay of one size")
        return written

    def _slice(self, block: Block, read: list[int]) -> list[int]:
        index = slice(block.attributes["start"][0], block.attributes["stop"][0], block.attributes["step"][0])
        value = read[index]
        if value != read:
            self.fix(read, f"{block.name!r} in the model's forward cuts channels out by their position")
        return value

    def _pad(self, block: Block, read: list[int]) -> list[int]:
        before, after = self.new(block.attributes["before"][0]), self.new(block.attributes["after"][0])
        self.fix((*before, *after), f"{block.name!r} in the model's forward puts a fixed number of zero channels there")
        return [*before, *read, *after]

    def result(self, model: nn.Module) -> ChannelMap:
        self.fix(self.values[-1], "it is an output of the network")
        roots = sorted({self.find(channel) for channel in range(len(self.parent))})
        number = {root: index for index, root in enumerate(roots)}

        def numbers(channels: Iterable[int]) -> Tensor:
            return torch.tensor([number[self.find(channel)] for channel in channels], dtype=torch.int64)

        layers = {}
        for name, (outputs, inputs, block) in self.layers.items():
            layer = model.get_submodule(name)
            assert isinstance(layer.weight, Tensor)
            kernel_size = layer.weight[0, 0].numel() if len(outputs) and len(inputs) else 0
            shape, groups = self.shapes[block.inputs[0]], int(getattr(layer, "groups", 1))
            own = (numbers(outputs), numbers(inputs), kernel_size, groups, block.batch_norm, shape)
            layers[name] = LayerChannels(name, *own)
        fixed = {number[self.find(channel)]: reason for channel, reason in self.reason.items()}
        norms = {name: numbers(channels) for name, channels in self.norms.items()}
        return ChannelMap(len(roots), layers, norms, _groups(layers, fixed), fixed)


def _groups(layers: Mapping[str, LayerChannels], fixed: Mapping[int, str]) -> tuple[ChannelGroup, ...]:
    found: list[tuple[list[str], set[int]]] = []
    for name, layer in layers.items():
        own = set(layer.outputs.tolist())
        touched = [group for group in found if group[1] & own]
        merged = ([n for group in touched for n in group[0]] + [name], own.union(*(group[1] for group in touched)))
        place = found.index(touched[0]) if touched else len(found)
        found = [group for group in found if group not in touched]
        found.insert(place, merged)
    groups = []
    for names, channels in found:
        removable = [channel for channel in sorted(channels) if channel not in fixed]
        paths = tuple(sorted(names, key=list(layers).index))
        groups.append(ChannelGroup(paths, torch.tensor(sorted(channels)), torch.tensor(removable, dtype=torch.int64)))
    return tuple(groups)


def _plan(model: nn.Module, example_inputs: Tensor, leaf_modules: Sequence[type[nn.Module]]) -> Plan:
    check_example_inputs(example_inputs)
    if isinstance(model, PreparedModel):
        raise TypeError("model is prepared already; thin the float network first, then prepare the result")
    return build_plan(trace(model, example_inputs, leaf_modules), model)


def channel_map(model: nn.Module, example_inputs: Tensor, leaf_modules: Sequence[type[nn.Module]] = ()) -> ChannelMap:
    """Which channels a float network has, and which layers write and read them.

    Args:
        model: the network, not changed.
        example_inputs: a float32 batch.
        leaf_modules: module types that tracing treats as one operation.

    Raises:
        UnsupportedOperator: the model holds something outside the operators that :func:`pqk_ext.prepare` knows.
    """
    walk = _Walk()
    for block in _plan(model, example_inputs, leaf_modules):
        walk.visit(block, model)
    return walk.result(model)


def thin(
    model: nn.Module,
    keep: Mapping[str, Tensor | Sequence[bool]],
    *,
    example_inputs: Tensor,
    leaf_modules: Sequence[type[nn.Module]] = (),
) -> nn.Module:
    """A smaller copy of a network, without some output channels of some layers.

    It computes what the original computes when every value of those channels is set to zero where it is read (after
    batch norm, residual addition and activation); only the order of float sums differs. Parameters keep their names.

    Args:
        model: the float network, not changed.
        keep: for layers by path, a bool for each output channel: whether it stays. Layers that are not named keep
            what they have, unless a named one is tied to them; naming one of tied layers is enough.
        example_inputs: a float32 batch, to trace the network and to try the result.
        leaf_modules: module types that tracing treats as one operation.

    Returns:
        The thinned network, in the original's training mode.

    Raises:
        UnsupportedOperator: as :func:`channel_map`.
        ValueError: an unknown layer; a mask of another length; a channel that cannot be removed (inputs and outputs of
            the network, grouped convolutions, channels that ``forward`` itself slices or pads) or that a tied layer
            keeps; no channel left; a ``forward`` that counts on the old number of channels.
    """
    channels = channel_map(model, example_inputs, leaf_modules)
    kept = channels.kept(keep)
    result = copy.deepcopy(model)
    smaller: dict[int, nn.Parameter] = {}  # parameters that were shared stay so
    for layer in channels.layers.values():
        _thin_layer(result.get_submodule(layer.name), layer, kept, smaller)
    for path, numbers in channels.norms.items():
        norm = result.get_submodule(path)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        _thin_norm(norm, kept[numbers], smaller)
    _try(model, result, example_inputs)
    return result


def _cut(module: nn.Module, name: str, value: Tensor, smaller: dict[int, nn.Parameter]) -> None:
    """Puts ``value`` in place of a parameter or buffer, or what another module made of the same parameter."""
    old = getattr(module, name)
    if not isinstance(old, nn.Parameter):
        setattr(module, name, value)
        return
    if id(old) not in smaller:
        made = nn.Parameter(value.detach().clone(), requires_grad=old.requires_grad)
        smaller[id(old)] = made
    setattr(module, name, smaller[id(old)])


def _thin_layer(layer: nn.Module, channels: LayerChannels, kept: Tensor, smaller: dict[int, nn.Parameter]) -> None:
    outputs, inputs = kept[channels.outputs], kept[channels.inputs]
    if outputs.all() and inputs.all():
        return
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    rows = by_channel(layer, weight)[outputs.to(weight.device)]
    counts = int(outputs.sum()), int(inputs.sum())
    if channels.groups == 1:
        rows = rows[:, inputs.to(weight.device)]
    else:
        assert isinstance(layer, nn.modules.conv._ConvNd)
        layer.groups = counts[1]  # depthwise: others keep all their channels
    names = ("out_features", "in_features") if isinstance(layer, nn.Linear) else ("out_channels", "in_channels")
    for name, count in zip(names, counts, strict=True):
        setattr(layer, name, count)
    _cut(layer, "weight", from_channels(layer, rows).contiguous(), smaller)
    if isinstance(bias, Tensor):
        _cut(layer, "bias", bias[outputs.to(bias.device)], smaller)


def _thin_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, kept: Tensor, smaller: dict[int, nn.Parameter]) -> None:
    if kept.all():
        return
    norm.num_features = int(kept.sum())
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(norm, name)
        if isinstance(value, Tensor):
            _cut(norm, name, value[kept.to(value.device)], smaller)


def _try(model: nn.Module, thinned: nn.Module, example_inputs: Tensor) -> None:
    """Runs both once: a forward may count on numbers of channels that tracing does not show."""
    training = [module.training for module in thinned.modules()]
    reference = copy.deepcopy(model).eval()
    try:
        with torch.no_grad():
            expected, got = reference(example_inputs).shape, thinned.eval()(example_inputs).shape
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"keep: the forward of {type(model).__name__} needs its old number of channels: {error}"
        ) from error
    finally:
        for module, mode in zip(thinned.modules(), training, strict=True):
            module.training = mode
    if expected != got:
        raise ValueError(
            f"keep: the forward of {type(model).__name__} needs its old number of channels: its output is {tuple(got)} "
            f"after thinning, not {tuple(expected)}"
        )
