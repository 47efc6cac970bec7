"""What a deployed network costs: parameters, multiply-accumulates, bit operations, bytes, time.

Needs no torch for files.

>>> from pqk_ext import cost
>>> cost.measure("net.pqk").to_dict()
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pqk_ext.runtime import Graph, Model, Node
from pqk_ext.runtime.format import dumps, read
from pqk_ext.timing import interleaved

if TYPE_CHECKING:
    from pqk_ext.preparation import PreparedModel

__all__ = ["Cost", "Latency", "LayerCost", "count", "latencies", "measure"]

_WEIGHTED = ("conv2d", "linear", "float_conv2d", "float_linear")
_FLOAT_BITS = 32

Network: TypeAlias = "str | os.PathLike[str] | Graph | PreparedModel"


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """A convolution or linear layer, for one input.

    Attributes:
        name: of its node.
        weights: number of weights.
        nonzeros: how many of them are not 0.
        macs: multiply-accumulates, products with padding included.
        effective_macs: those whose weight is not 0.
        weight_bits: bits that a weight takes in a product, mean over ``effective_macs``: for each output channel the
            narrowest symmetric codes that hold its weights, a common factor of two (a coarser grid) taken out; 32 where
            weights are floats from a codebook. Never more than the bits it was trained with.
        input_bits: bits of the values that it reads; 32 for floats.
        bit_operations: over ``effective_macs``, weight bits times input bits.
    """

    name: str
    weights: int
    nonzeros: int
    macs: int
    effective_macs: int
    weight_bits: float
    input_bits: int
    bit_operations: int


@dataclasses.dataclass(frozen=True)
class Latency:
    """Time of one input, in microseconds.

    Attributes:
        least: of all rounds: what the machine can do when nothing else disturbs it.
        median: of the rounds.
    """

    least: float
    median: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """A whole network.

    Attributes:
        layers: its convolutions and linear layers, in the order of the graph.
        biases: one an output channel; a batch norm is part of it.
        nbytes: of the file.
        latency: None if it was not measured.
    """

    layers: tuple[LayerCost, ...]
    biases: int
    nbytes: int
    latency: Latency | None

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.biases + sum(layer.weights for layer in self.layers)

    @property
    def nonzeros(self) -> int:
        """Weights that are not 0."""
        return sum(layer.nonzeros for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one input, products with padding included."""
        return sum(layer.macs for layer in self.layers)

    @property
    def effective_macs(self) -> int:
        """Those whose weight is not 0."""
        return sum(layer.effective_macs for layer in self.layers)

    @property
    def bit_operations(self) -> int:
        """Effective multiply-accumulates times bits of the weight times bits of the value (BitOPs)."""
        return sum(layer.bit_operations for layer in self.layers)

    @property
    def dense_bit_operations(self) -> int:
        """The same as if no weight were 0: what hardware without use for zeros does."""
        return round(sum(layer.macs * layer.weight_bits * layer.input_bits for layer in self.layers))

    def to_dict(self) -> dict[str, Any]:
        """The sums, as JSON values; ``latency_us`` and ``latency_median_us`` only if time was measured."""
        result: dict[str, Any] = {
            "parameters": self.parameters,
            "nonzeros": self.nonzeros,
            "macs": self.macs,
            "effective_macs": self.effective_macs,
            "bit_operations": self.bit_operations,
            "dense_bit_operations": self.dense_bit_operations,
            "bytes": self.nbytes,
        }
        if self.latency is not None:
            result |= {"latency_us": self.latency.least, "latency_median_us": self.latency.median}
        return result


def measure(network: Network, *, rounds: int = 15) -> Cost:
    """Counts and times a network.

    Args:
        network: a ``.pqk`` file, a graph, or a prepared model (as it would be exported now).
        rounds: of about 20 ms for the time of one input on one thread; 0 measures none. Counts alone depend on no
            machine.

    Raises:
        FormatError: the file or the graph breaks a rule.
        OSError: the file cannot be read.
        TypeError: ``network`` is none of these.
        ValueError: negative ``rounds``, or a prepared model that cannot be exported.
    """
    if rounds < 0:
        raise ValueError(f"rounds: expected at least 0, got {rounds}")
    graph, nbytes = _graph_and_bytes(network)
    layers, biases = count(graph)
    latency = latencies([graph], rounds)[0] if rounds else None
    return Cost(layers, biases, nbytes, latency)


def latencies(networks: list[Network], rounds: int = 15) -> list[Latency]:
    """Times of one input on one thread, measured in turns, so that the machine's moods reach all networks alike.

    Args:
        networks: as for :func:`measure`.
        rounds: each of about 20 ms a network; at least 1.

    Raises:
        FormatError: a file or a graph breaks a rule.
        ValueError: ``rounds`` below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    times = interleaved([_call(_graph_and_bytes(network)[0]) for network in networks], rounds)
    return [Latency(1e6 * min(seconds), 1e6 * statistics.median(seconds)) for seconds in times]


def count(graph: Graph) -> tuple[tuple[LayerCost, ...], int]:
    """The layers of a graph with what each costs, and the number of biases.

    Multiply-accumulates follow :func:`pqk_ext.models.count.count_macs`: of a transposed convolution those with the
    zeros between its input's values are left out.
    """
    bits = [_FLOAT_BITS]  # by value
    layers, biases = [], 0
    for node in graph.nodes:
        if node.op in _WEIGHTED:
            layers.append(_layer(graph, node, bits[node.inputs[0]]))
            biases += node.value.shape[0]
        bits.append(_value_bits(node, [bits[i] for i in node.inputs]))
    return tuple(layers), biases


def _graph_and_bytes(network: Network) -> tuple[Graph, int]:
    if isinstance(network, Graph):
        return network, len(dumps(network))
    if isinstance(network, str | os.PathLike):
        return read(network), os.stat(network).st_size
    from pqk_ext.deploy import lower  # torch, which files do not need
    from pqk_ext.preparation import PreparedModel

    if not isinstance(network, PreparedModel):
        raise TypeError(f"network: expected a .pqk file, a graph or a prepared model, got {type(network).__name__}")
    graph = lower(network)
    return graph, len(dumps(graph))


def _call(graph: Graph) -> Callable[[], object]:
    model = Model.from_graph(graph)
    x = np.random.default_rng(0).standard_normal((1, *model.input_shape), np.float32)
    out = model(x)
    return lambda: model.run(x, out)


def _layer(graph: Graph, node: Node, input_bits: int) -> LayerCost:
    weight = node.tensors["weight"]
    is_float = node.op.startswith("float_")
    values = node.tensors["codebook"][weight.astype(np.int64) + node.attributes["zero"]] if is_float else weight
    positions = _positions(graph, node)
    nonzeros = np.count_nonzero(values.reshape(len(values), -1), axis=1)
    bits = np.full(len(values), _FLOAT_BITS) if is_float else _code_bits(weight)
    effective = positions * int(nonzeros.sum())
    bit_operations = positions * int((nonzeros * bits).sum()) * input_bits
    return LayerCost(
        name=node.name,
        weights=weight.size,
        nonzeros=int(nonzeros.sum()),
        macs=positions * weight.size,
        effective_macs=effective,
        weight_bits=bit_operations / (effective * input_bits) if effective else 0.0,
        input_bits=input_bits,
        bit_operations=bit_operations,
    )


def _positions(graph: Graph, node: Node) -> int:
    """How often each weight is multiplied."""
    source = node.inputs[0]
    while source > 0 and (before := graph.nodes[source - 1]).op in ("dilate", "pad", "slice"):
        source = before.inputs[0]
        if before.op == "dilate":
            return math.prod(graph.value(source).shape[1:])
    return math.prod(node.value.shape[1:])


def _code_bits(weight: NDArray[Any]) -> NDArray[np.int64]:
    """Bits of each output channel's codes, the sign included; 0 where all are zero."""
    codes = np.abs(weight.reshape(len(weight), -1).astype(np.int64))
    together = np.bitwise_or.reduce(codes, axis=1)
    factor = np.maximum(together & -together, 1)  # the lowest bit that any code has
    largest = codes.max(axis=1, initial=0) // factor
    return np.where(largest > 0, np.frexp(largest.astype(np.float64))[1] + 1, 0).astype(np.int64)


def _value_bits(node: Node, inputs: list[int]) -> int:
    """Bits that hold every code of a node's value."""
    if node.value.dtype == "f32":
        return _FLOAT_BITS
    if "quant_max" in node.attributes:
        return int(node.attributes["quant_max"]).bit_length()
    if node.op == "lookup":
        return int(node.tensors["table"].max()).bit_length()
    return max(inputs)  # codes that are moved
