"""Weights of a loaded model that stay coded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pqk_ext import _core
from pqk_ext.runtime.graph import FLOAT_OPS, Graph, Node

__all__ = ["WEIGHTS", "CodedTensors", "Payload", "encode", "keep", "wanted"]

#: What ``load(weights=...)`` knows.
WEIGHTS = ("resident", "coded")

Payload: TypeAlias = tuple[str, bytes]
"""Codec and bytes."""


class CodedTensors(Mapping[str, NDArray[np.generic]]):
    """A node's tensors, its weight decoded anew whenever it is asked for."""

    def __init__(self, node: Node, payload: Payload) -> None:
        self._others = {name: tensor for name, tensor in node.tensors.items() if name != "weight"}
        self._shape = node.tensors["weight"].shape
        self._payload = payload

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        if name != "weight":
            return self._others[name]
        codec, data = self._payload
        count = int(np.prod(self._shape))
        return _core.decode_weight(codec, data, count, self._shape[0], "weight").reshape(self._shape)

    def __iter__(self) -> Iterator[str]:
        return iter(["weight", *self._others])

    def __len__(self) -> int:
        return 1 + len(self._others)


def wanted(graph: Graph, weights: str | Mapping[str, str]) -> list[int]:
    """Indices of the nodes whose weights shall stay coded; float operators are not among them.

    Args:
        graph: whose nodes are meant.
        weights: one of :data:`WEIGHTS`, or such a word by node name; ``"*"`` stands for all others.

    Raises:
        ValueError: an unknown word or node.
    """
    choices = {"*": weights} if isinstance(weights, str) else dict(weights)
    named = {index: node.name for index, node in enumerate(graph.nodes) if "weight" in node.tensors}
    floats = {index for index, node in enumerate(graph.nodes) if node.op in FLOAT_OPS}
    for node, choice in choices.items():
        if node not in {"*", *named.values()}:
            raise ValueError(f"weights: expected names of nodes that have weights, or '*', got {node!r}")
        if choice not in WEIGHTS:
            where = "weights" if isinstance(weights, str) else f"weights[{node!r}]"
            raise ValueError(f"{where}: expected one of {', '.join(WEIGHTS)}, got {choice!r}")
    default = choices.get("*", "resident")
    return [index for index, name in named.items() if index not in floats and choices.get(name, default) == "coded"]


def encode(weight: NDArray[np.generic]) -> Payload:
    """By the codec of fewest bytes among those whose rows can be decoded by themselves."""
    flat = np.ascontiguousarray(weight, np.int8).reshape(-1)
    payloads = ((codec, _core.encode_weight(codec, flat, len(weight))) for codec in _core.codec_names(openable=True))
    return min(payloads, key=lambda payload: len(payload[1]))


def keep(graph: Graph, payloads: Mapping[int, Payload]) -> Graph:
    """The same graph without those weights in memory."""
    nodes = list(graph.nodes)
    for index, payload in payloads.items():
        nodes[index] = replace(nodes[index], tensors=CodedTensors(nodes[index], payload))
    return Graph(graph.input, tuple(nodes))
