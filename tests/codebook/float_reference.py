"""A float graph computed by torch in float64, written from the formulas of ``FORMAT.md``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pqk_ext.runtime.graph import Graph, Node

MAPS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
}


def evaluate(graph: Graph, x: Tensor) -> Tensor:
    values = [x.double()]
    for node in graph.nodes:
        value = _compute(node, [values[i] for i in node.inputs])
        if "clamp_min" in node.attributes:
            value = value.clamp_min(node.attributes["clamp_min"])
        if "clamp_max" in node.attributes:
            value = value.clamp_max(node.attributes["clamp_max"])
        assert tuple(value.shape[1:]) == node.value.shape, node
        assert node.value.dtype == "f32"
        values.append(value)
    return values[-1]


def _padded(x: Tensor, padding: list[int], value: float = 0.0) -> Tensor:
    top, left, bottom, right = padding
    return F.pad(x, [left, right, top, bottom], value=value)


def _channels(node: Node, name: str, like: Tensor) -> Tensor:
    return torch.from_numpy(node.tensors[name]).double().view(1, -1, *[1] * (like.dim() - 2))


def _compute(node: Node, inputs: list[Tensor]) -> Tensor:
    x, a = inputs[0], node.attributes
    if node.op in ("float_conv2d", "float_linear"):
        codes = torch.from_numpy(node.tensors["weight"])
        weight = torch.from_numpy(node.tensors["codebook"]).double()[codes.long() + a["zero"]]
        if node.op == "float_linear":
            acc = x @ weight.T
        else:
            acc = F.conv2d(_padded(x, a["padding"]), weight, None, a["stride"], 0, a["dilation"], a["groups"])
        acc = acc * _channels(node, "multiplier", acc)
        return sum(inputs[1:], acc) + _channels(node, "bias", acc)
    if node.op == "float_affine":
        return x * _channels(node, "multiplier", x) + _channels(node, "bias", x)
    if node.op in ("float_avg_pool2d", "float_adaptive_avg_pool2d"):
        return _average(a, x)
    return {
        "float_add": lambda: x + inputs[1],
        "float_max_pool2d": lambda: F.max_pool2d(
            _padded(x, a["padding"], -torch.inf), a["kernel"], a["stride"], 0, a["dilation"]
        ),
        "float_map": lambda: MAPS[a["function"]](x),
        "concat": lambda: torch.cat(inputs, 1),
        "flatten": lambda: x.flatten(1),
        "softmax": lambda: torch.softmax(x, 1),
        "slice": lambda: x[(slice(None), *(slice(*t) for t in zip(a["start"], a["stop"], a["step"], strict=True)))],
        "pad": lambda: F.pad(x, [p for pair in zip(a["before"][::-1], a["after"][::-1], strict=True) for p in pair]),
    }[node.op]()


def _average(a: dict[str, Any], x: Tensor) -> Tensor:
    if "output_size" in a:
        return F.adaptive_avg_pool2d(x, a["output_size"])
    total = F.avg_pool2d(_padded(x, a["padding"]), a["kernel"], a["stride"], divisor_override=1)
    if a["count_include_pad"]:
        return total / (a["kernel"][0] * a["kernel"][1])
    inside = _padded(torch.ones_like(x), a["padding"])
    return total / F.avg_pool2d(inside, a["kernel"], a["stride"], divisor_override=1)
