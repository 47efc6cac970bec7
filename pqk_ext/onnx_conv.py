"""Convolutions of integer and float graphs in ONNX, where transposed ones have an operator of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pqk_ext.runtime.graph import Node

if TYPE_CHECKING:
    from pqk_ext.onnx_graph import _Builder

__all__ = ["convolve", "turned", "write_dilate"]

_Array = NDArray[Any]


def _reach(node: Node) -> list[int]:
    """How far the kernel goes beyond a position."""
    sizes = node.tensors["weight"].shape[2:]
    return [step * (size - 1) for step, size in zip(node.attributes["dilation"], sizes, strict=True)]


def _spread_source(b: _Builder, node: Node) -> Node | None:
    """The ``dilate`` that a convolution reads, if ONNX has one operator for both."""
    a, index = node.attributes, node.inputs[0]
    source = b.graph.nodes[index - 1] if index else None
    if source is None or source.op != "dilate" or a["stride"] != [1, 1]:
        return None
    steps = source.attributes["dilation"]
    sides = zip(a["padding"][:2], a["padding"][2:], _reach(node), steps, a["dilation"], strict=True)
    fits = all(before <= reach and after - reach < max(own, step) for before, after, reach, own, step in sides)
    return source if fits else None


def turned(b: _Builder, node: Node, weight: _Array) -> _Array:
    """A convolution's weight, by output channel, as :func:`convolve` wants it."""
    return weight if _spread_source(b, node) is None else weight[:, :, ::-1, ::-1]


def convolve(b: _Builder, node: Node, x: str, weight: str, bias: str) -> str:
    """Conv, or ConvTranspose for one whose input is spread."""
    a = node.attributes
    shape = [int(size) for size in node.tensors["weight"].shape]
    common = {"dilations": a["dilation"], "group": a["groups"], "kernel_shape": shape[2:]}
    source = _spread_source(b, node)
    if source is None:
        return b.call("Conv", [x, weight, bias], strides=a["stride"], pads=a["padding"], **common)
    if a["groups"] == 1:
        weight = b.call("Transpose", [weight], perm=[1, 0, 2, 3])
    else:
        grouped = [a["groups"], shape[0] // a["groups"], *shape[1:]]
        weight = b.call("Reshape", [weight, b.constant(np.asarray(grouped, np.int64))])
        weight = b.call("Transpose", [weight], perm=[0, 2, 1, 3, 4])
        flat = [grouped[0] * grouped[2], grouped[1], *shape[2:]]
        weight = b.call("Reshape", [weight, b.constant(np.asarray(flat, np.int64))])
    left = [reach - padding for reach, padding in zip(_reach(node) * 2, a["padding"], strict=True)]
    geometry = {
        "strides": source.attributes["dilation"],
        "pads": [max(0, cut) for cut in left],
        "output_padding": [max(0, -cut) for cut in left[2:]],
    }
    return b.call("ConvTranspose", [b.values[source.inputs[0]], weight, bias], **geometry, **common)


def write_dilate(b: _Builder, node: Node, x: str) -> str:
    """By itself, as a transposed convolution of each channel with a single 1."""
    channels = b.source(node).shape[0]
    ones = b.real(np.ones((channels, 1, 1, 1), np.float32))
    return b.call("ConvTranspose", [x, ones], group=channels, kernel_shape=[1, 1], strides=node.attributes["dilation"])
