"""What each layer of a graph costs, by arithmetic alone, and that cost beside its measured time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pqk_ext.runtime.graph import Graph, Node, Value

__all__ = ["BLOCK", "LayerCost", "LayerTime", "block_density", "layer_costs", "layer_times"]

BLOCK = 4  # consecutive input channels of a block

_BYTES = {"u8": 1, "f32": 4}


@dataclass(frozen=True)
class LayerCost:
    """What one node does for one sample.

    Attributes:
        node: its name.
        op: its operator.
        input_shape: of its first input, without the batch.
        output_shape: of its result.
        kernel: rows and columns of a convolution's or pool's window; None for other operators.
        stride: of that window; None where there is none.
        groups: of a convolution; 1 for other operators.
        density: share of weights that are not 0; None without weights.
        block_density: share of blocks of 4 input channels that hold a weight that is not 0; None without weights.
        macs: multiply-accumulates of the layer with all its weights, padding counted as work.
        memory_bytes: inputs, result and constants, each moved once, with all weights.
    """

    node: str
    op: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel: tuple[int, int] | None
    stride: tuple[int, int] | None
    groups: int
    density: float | None
    block_density: float | None
    macs: int
    memory_bytes: int

    @property
    def intensity(self) -> float:
        """Multiply-accumulates for each byte moved."""
        return self.macs / self.memory_bytes


@dataclass(frozen=True)
class LayerTime:
    """A node's cost beside its measured time.

    Attributes:
        cost: what it does.
        kernel: what ran it.
        seconds: how long for one sample.
    """

    cost: LayerCost
    kernel: str
    seconds: float

    @property
    def macs_per_second(self) -> float:
        """Of dense-equivalent work: weights that are 0 count as if they were multiplied."""
        return self.cost.macs / self.seconds if self.seconds > 0 else 0.0


def block_density(weight: NDArray[np.generic]) -> float:
    """Share of blocks with a weight that is not 0.

    A block is 4 input channels of one filter tap, aligned at multiples of 4; the last of a row may be shorter.

    Args:
        weight: ``(out_channels, in_channels / groups, ...)``.
    """
    out_channels, channels = weight.shape[:2]
    taps = (weight != 0).reshape(out_channels, channels, -1)
    blocks = np.logical_or.reduceat(taps, range(0, channels, BLOCK), axis=1)
    return float(blocks.mean())


def layer_costs(graph: Graph) -> list[LayerCost]:
    """The costs of every node, in the order of the graph."""
    return [_cost(graph, node) for node in graph.nodes]


def layer_times(graph: Graph, steps: Iterable[tuple[str, str, float]]) -> list[LayerTime]:
    """Joins what :meth:`Model.profile <pqk_ext.runtime.Model.profile>` gives with the nodes' costs.

    Args:
        graph: the model's.
        steps: ``(node, kernel, seconds)``, in execution order.

    Returns:
        One entry per step. Nodes that have no step of their own, because they need no work or because another
        node's kernel does it, are left out; a step that is no node (putting the output in order) has no cost.
    """
    waiting: dict[str, list[LayerCost]] = {}
    for cost in layer_costs(graph):
        waiting.setdefault(cost.node, []).append(cost)
    times = []
    for name, kernel, seconds in steps:
        costs = waiting.get(name)
        times.append(LayerTime(costs.pop(0) if costs else _reordering(graph, name), kernel, seconds))
    return times


def _cost(graph: Graph, node: Node) -> LayerCost:
    inputs = [graph.value(index) for index in node.inputs]
    weight = _weight(node)
    window = (
        weight.shape[2:]
        if node.op in ("conv2d", "float_conv2d") and weight is not None
        else node.attributes.get("kernel")
    )
    moved = sum(map(_nbytes, [*inputs, node.value])) + sum(tensor.nbytes for tensor in node.tensors.values())
    return LayerCost(
        node=node.name,
        op=node.op,
        input_shape=inputs[0].shape,
        output_shape=node.value.shape,
        kernel=_pair(window),
        stride=_pair(node.attributes.get("stride")),
        groups=node.attributes.get("groups", 1),
        density=None if weight is None else np.count_nonzero(weight) / weight.size,
        block_density=None if weight is None else block_density(weight),
        # Each weight is used once at every position of the output.
        macs=0 if weight is None else weight.size * math.prod(node.value.shape[1:]),
        memory_bytes=moved,
    )


def _weight(node: Node) -> NDArray[np.generic] | None:
    """Not codes but what they stand for, where a codebook says so: zeros are to be counted."""
    weight = node.tensors.get("weight")
    if weight is None or "codebook" not in node.tensors:
        return weight
    codes: NDArray[np.int16] = weight.astype(np.int16) + node.attributes["zero"]
    return node.tensors["codebook"][codes]


def _reordering(graph: Graph, name: str) -> LayerCost:
    # Of the output, or of the input before float operators.
    value = graph.input if name == "input" else graph.nodes[-1].value
    moved = 2 * _nbytes(value)
    return LayerCost(name, "", value.shape, value.shape, None, None, 1, None, None, 0, moved)


def _nbytes(value: Value) -> int:
    return math.prod(value.shape) * _BYTES[value.dtype]


def _pair(numbers: Iterable[int] | None) -> tuple[int, int] | None:
    if numbers is None:
        return None
    rows, columns = numbers
    return rows, columns
