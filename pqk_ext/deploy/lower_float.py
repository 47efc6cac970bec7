"""From a plain network with few different weights to the float graph: codes into codebooks, float activations.

The same tracing and the same blocks as for the integer graph; what quantization alone needs falls away.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pqk_ext.deploy.lower import batch_norm_affine, image_weight, to_float32, to_float64
from pqk_ext.deploy.transposed import spread_input
from pqk_ext.nn.channels import by_channel
from pqk_ext.preparation.fuse import build_plan
from pqk_ext.preparation.tracing import UnsupportedOperator, check_example_inputs, trace
from pqk_ext.runtime.graph import Graph, Node, Value

if TYPE_CHECKING:
    from pqk_ext.preparation.blocks import Block, Plan

__all__ = ["codes_and_codebook", "lower_float"]

_LARGEST_CODEBOOK = 256
_LOWEST_CODE, _HIGHEST_CODE = -128, 127

# Functions of a lookup block, by what float_map calls them.
_MAPS = {
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "silu": "silu",
    "hardswish": "hard_swish",
    "hardsigmoid": "hard_sigmoid",
}
_CLAMPS: dict[str | None, dict[str, float]] = {
    None: {},
    "relu": {"clamp_min": 0.0},
    "relu6": {"clamp_min": 0.0, "clamp_max": 6.0},
}


def codes_and_codebook(weight: Tensor, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32], int]:
    """A weight as what the file holds: ``weight == codebook[codes + zero]``.

    The codebook is ascending and holds each value once. Code 0 stands for the value 0 where the weight has zeros; only
    if that would push other codes out of int8 (more than 128 values on one side of 0) it stands for another.

    Args:
        weight: floating-point, of at most 256 different values.
        name: of the layer, for errors.

    Raises:
        ValueError: a weight is not finite, or there are more different values.
    """
    # Adding 0.0 turns -0.0 into 0.0.
    values = weight.detach().cpu().float().numpy() + np.float32(0)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: the deployed weights must be finite, got NaN or infinity")
    codebook, index = np.unique(values, return_inverse=True)
    if len(codebook) > _LARGEST_CODEBOOK:
        raise ValueError(
            f"{name}: its weight holds {len(codebook)} different values, a codebook at most {_LARGEST_CODEBOOK}: "
            "give this layer to share_weights too"
        )
    zeros = np.flatnonzero(codebook == 0)
    zero = int(zeros[0]) if len(zeros) else len(codebook) // 2
    zero = max(len(codebook) - 1 - _HIGHEST_CODE, min(zero, -_LOWEST_CODE))
    codes = (index.reshape(values.shape) - zero).astype(np.int8)
    return codes, codebook.astype(np.float32), zero


class _FloatLowering:
    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.model = model
        self.plan = plan
        self.nodes: list[Node] = []
        self.index: list[int] = []  # value in the graph, by block

    def run(self) -> Graph:
        for block in self.plan:
            inputs = tuple(self.index[i] for i in block.inputs)
            _LOWER[block.op](self, block, inputs)
        if self.index[-1] != len(self.nodes):
            raise UnsupportedOperator("the output must be the last value computed")
        if not self.nodes:
            raise UnsupportedOperator("the model computes nothing: its output is its input")
        return Graph(self.input, tuple(self.nodes))

    def add(
        self,
        block: Block,
        op: str,
        inputs: tuple[int, ...],
        attributes: dict[str, Any] | None = None,
        tensors: dict[str, Any] | None = None,
    ) -> None:
        self.nodes.append(
            Node(op, block.name, inputs, Value(block.shape, "f32"), dict(attributes or {}), tensors or {})
        )

    def done(self) -> None:
        """The newest node gives the value of the block."""
        self.index.append(len(self.nodes))

    def input_block(self, block: Block, inputs: tuple[int, ...]) -> None:
        self.input = Value(block.shape, "f32")
        self.index.append(0)

    def same_value(self, block: Block, inputs: tuple[int, ...]) -> None:
        self.index.append(inputs[0])

    def weighted(self, block: Block, inputs: tuple[int, ...]) -> None:
        layer = self.model.get_submodule(block.module or "")
        assert isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)
        codes, codebook, zero = codes_and_codebook(by_channel(layer, layer.weight), str(block.module))
        if block.op == "conv2d":
            codes = image_weight(codes, block)
        gain, shift = batch_norm_affine(self.model, block.batch_norm, codes.shape[0])
        if layer.bias is not None:
            shift = shift + to_float64(layer.bias) * gain
        tensors = {
            "weight": codes,
            "codebook": codebook,
            "multiplier": to_float32(gain, block.name),
            "bias": to_float32(shift, block.name),
        }
        inputs, geometry = self._spread(block, inputs)
        attributes = {**geometry, "zero": zero, **_CLAMPS[block.activation]}
        self.add(block, f"float_{block.op}", inputs, attributes, tensors)
        self.done()

    def _spread(self, block: Block, inputs: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, Any]]:
        """Nodes that make a convolution of a transposed one; its inputs and attributes after them."""
        source = Graph(self.input, tuple(self.nodes)).value(inputs[0])
        steps, attributes = spread_input(block.attributes, source.shape)
        for op, step, shape in steps:
            self.nodes.append(Node(op, f"{block.name}_{op}", inputs[:1], Value(shape, "f32"), step))
            inputs = (len(self.nodes), *inputs[1:])
        return inputs, attributes

    def add_block(self, block: Block, inputs: tuple[int, ...]) -> None:
        self.add(block, "float_add", inputs, _CLAMPS[block.activation])
        self.done()

    def affine(self, block: Block, inputs: tuple[int, ...]) -> None:
        if block.batch_norm is None:
            self.activate(block, inputs[0])
            return
        gain, shift = batch_norm_affine(self.model, block.batch_norm, block.shape[0])
        tensors = {"multiplier": to_float32(gain, block.name), "bias": to_float32(shift, block.name)}
        self.add(block, "float_affine", inputs, _CLAMPS[block.activation], tensors)
        self.done()

    def activate(self, block: Block, value: int) -> None:
        """A ReLU of its own, or nothing: copies that only requantize are not needed among floats."""
        if block.activation is None:
            self.index.append(value)
            return
        self.add(block, "float_map", (value,), {"function": block.activation})
        self.done()

    def lookup(self, block: Block, inputs: tuple[int, ...]) -> None:
        if block.activation not in _MAPS:
            raise UnsupportedOperator(
                f"node {block.name!r}: {block.activation} is not among the float functions of the format "
                f"({', '.join(_MAPS)})"
            )
        self.add(block, "float_map", inputs, {"function": _MAPS[block.activation]})
        self.done()

    def pool(self, block: Block, inputs: tuple[int, ...]) -> None:
        self.add(block, f"float_{block.op}", inputs, block.attributes)
        self.activate(block, len(self.nodes))

    def move(self, block: Block, inputs: tuple[int, ...]) -> None:
        self.add(block, block.op, inputs, block.attributes)
        self.done()


_LOWER: dict[str, Callable[[_FloatLowering, Block, tuple[int, ...]], None]] = {
    "input": _FloatLowering.input_block,
    "conv2d": _FloatLowering.weighted,
    "linear": _FloatLowering.weighted,
    "add": _FloatLowering.add_block,
    "affine": _FloatLowering.affine,
    "lookup": _FloatLowering.lookup,
    "avg_pool2d": _FloatLowering.pool,
    "adaptive_avg_pool2d": _FloatLowering.pool,
    "max_pool2d": _FloatLowering.pool,
    "concat": _FloatLowering.move,
    "flatten": _FloatLowering.move,
    "slice": _FloatLowering.move,
    "pad": _FloatLowering.move,
    "softmax": _FloatLowering.move,
    "dropout": _FloatLowering.same_value,
    "dequantize": _FloatLowering.same_value,
}


@torch.no_grad()
def lower_float(model: nn.Module, example_inputs: Tensor) -> Graph:
    """The float graph of a plain model as it evaluates, weights as codes into codebooks.

    Batch norm goes into the multiplier and bias of each channel, computed in float64 and rounded to float32 once.

    Args:
        model: every convolution and linear layer holds at most 256 different weights, as after
            :func:`pqk_ext.share_weights`; it is not changed.
        example_inputs: float32 batch that gives the shapes.

    Raises:
        TypeError: ``example_inputs`` is not a float32 tensor.
        UnsupportedOperator: something the float graph cannot compute; names node and module.
        ValueError: a layer has more different weights, or a parameter is not finite; names it.
    """
    check_example_inputs(example_inputs)
    copied = copy.deepcopy(model).eval()
    return _FloatLowering(copied, build_plan(trace(copied, example_inputs), copied)).run()
