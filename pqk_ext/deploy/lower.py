"""From a prepared network to the integer graph that the file holds and the engine runs.

Batch norm is not folded into the weights: their codes stay as trained, and its scale and shift go into the
multiplier and bias of each channel. All parameters are computed in float64 and rounded to float32 once, those of
channels then to float16 if the config says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pqk_ext.deploy.transposed import spread_input
from pqk_ext.nn import ActivationQuantizer, PQKLayer
from pqk_ext.ops.quantize import quantize
from pqk_ext.preparation.blocks import image_shape
from pqk_ext.runtime.graph import Graph, Node, Value

if TYPE_CHECKING:
    from pqk_ext.preparation.blocks import Block
    from pqk_ext.preparation.model import PreparedModel

__all__ = ["batch_norm_affine", "image_weight", "lower", "to_float32", "to_float64"]

_Float64 = NDArray[np.float64]
_LARGEST_ACCUMULATOR = 2**31 - 1
_LARGEST_HALF = float(np.finfo(np.float16).max)


def to_float64(tensor: Tensor) -> _Float64:
    result: _Float64 = tensor.detach().cpu().double().numpy()
    return result


def to_float32(array: _Float64 | float, name: str) -> NDArray[np.float32]:
    result = np.asarray(array, dtype=np.float32)
    if not np.isfinite(result).all():
        raise ValueError(f"{name}: the deployed parameters must be finite, got NaN or infinity")
    return result


def _scalar(value: float, name: str) -> float:
    return float(to_float32(value, name))


def weight_codes(layer: PQKLayer) -> NDArray[np.int8]:
    """The int8 codes of a layer's weight by output channel; 0 where the mask is False.

    Raises:
        ValueError: a weight is NaN.
    """
    weight, scale = layer.weight.detach().cpu(), layer.weight_scale.detach().cpu()
    if bool(torch.isnan(weight).any()):
        at = int(torch.isnan(weight).flatten().nonzero()[0])
        raise ValueError(f"weights must not be NaN, found one at flat index {at}")
    if layer.weight_bits is not None:
        own: NDArray[np.int8] = layer.weight_codes().cpu().to(torch.int8).contiguous().numpy()
        return own
    limit = layer.weight_quant_max
    zero_point = torch.zeros(scale.numel(), dtype=torch.int32)
    codes = quantize(layer.by_channel(weight), scale, zero_point, quant_min=-limit, quant_max=limit, axis=0)
    result: NDArray[np.int8] = (codes * layer.by_channel(layer.weight_mask.cpu())).contiguous().numpy()
    return result


def image_weight(weight: NDArray[Any], block: Block) -> NDArray[Any]:
    """A convolution's weight by output channel as the engine wants it.

    That of a sequence ``(O, I, K)`` becomes ``(O, I, 1, K)``; that of a transposed convolution is turned round.
    """
    if weight.ndim == 3:
        weight = weight[:, :, None]
    return np.ascontiguousarray(weight[:, :, ::-1, ::-1]) if "input_dilation" in block.attributes else weight


def batch_norm_affine(model: nn.Module, path: str | None, channels: int) -> tuple[_Float64, _Float64]:
    """Scale and shift of a batch norm in evaluation; identity without one."""
    if path is None:
        return np.ones(channels), np.zeros(channels)
    norm = model.get_submodule(path)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gamma = np.ones(channels) if norm.weight is None else to_float64(norm.weight)
    beta = np.zeros(channels) if norm.bias is None else to_float64(norm.bias)
    scale = gamma / np.sqrt(to_float64(norm.running_var) + norm.eps)
    return scale, beta - to_float64(norm.running_mean) * scale


def _with_half_affine(nodes: list[Node]) -> list[Node]:
    """Multipliers and biases rounded to float16, unless one is too large for that; the file then halves them all.

    A multiplier is wrong by 2^-11 of itself at most, a code by 0.06; below 2^-14 it is wrong by 2^-25, which is nothing
    beside the sums that such a channel has.
    """
    parts = [node.tensors[name] for node in nodes for name in ("multiplier", "bias") if name in node.tensors]
    if any(np.abs(part).max(initial=0.0) > _LARGEST_HALF for part in parts):
        return nodes

    def rounded(node: Node) -> Node:
        halves = {
            name: part.astype(np.float16).astype(np.float32) if name in ("multiplier", "bias") else part
            for name, part in node.tensors.items()
        }
        return replace(node, tensors=halves)

    return [rounded(node) for node in nodes]


class _Lowering:
    def __init__(self, model: PreparedModel) -> None:
        self.model = model
        self.nodes: list[Node] = []
        self.index: list[int] = []  # value in the graph, by block
        self.channel_qparams: dict[int, tuple[_Float64, NDArray[np.uint8]]] = {}  # of concatenations

    # --- quantization parameters -----------------------------------------------------------------------------

    def _quantizer(self, block: Block) -> ActivationQuantizer:
        quantizer = self.model.pqk_quantizers[str(block.quantizer)]
        assert isinstance(quantizer, ActivationQuantizer)
        return quantizer

    def _output(self, block: Block) -> tuple[Value, dict[str, Any]]:
        """Value and code range of a block with a quantizer; the activation is a clamp of the codes."""
        quantizer = self._quantizer(block)
        scale, zero_point = float(quantizer.scale.detach()), int(quantizer.zero_point)
        low, high = 0, quantizer.quant_max
        if block.activation in ("relu", "relu6"):
            low = zero_point
        if block.activation == "relu6":
            high = min(high, round(6.0 / scale) + zero_point)
        return Value(block.shape, "u8", scale, zero_point), {"quant_min": low, "quant_max": high}

    def value(self, block_index: int) -> Value:
        graph_index = self.index[block_index]
        return self.input if graph_index == 0 else self.nodes[graph_index - 1].value

    def qparams(self, block_index: int) -> tuple[float, int]:
        value = self.value(block_index)
        assert value.scale is not None
        assert value.zero_point is not None
        return value.scale, value.zero_point

    def per_channel_qparams(self, block_index: int) -> tuple[_Float64, NDArray[np.uint8]]:
        if self.index[block_index] in self.channel_qparams:
            return self.channel_qparams[self.index[block_index]]
        scale, zero_point = self.qparams(block_index)
        channels = self.value(block_index).shape[0]
        return np.full(channels, scale), np.full(channels, zero_point, np.uint8)

    # --- blocks ----------------------------------------------------------------------------------------------

    def run(self) -> Graph:
        for block in self.model.plan:
            if block.op == "dropout":
                self.index.append(self.index[block.inputs[0]])
                continue
            inputs = tuple(self.index[i] for i in block.inputs)
            _LOWER[block.op](self, block, inputs)
        if self.model.pqk.config.affine_bits == 16:
            self.nodes = _with_half_affine(self.nodes)
        return Graph(self.input, tuple(self.nodes))

    def add(
        self,
        block: Block,
        op: str,
        inputs: tuple[int, ...],
        value: Value,
        attributes: dict[str, Any] | None = None,
        tensors: dict[str, Any] | None = None,
    ) -> None:
        self.nodes.append(Node(op, block.name, inputs, value, attributes or {}, tensors or {}))
        self.index.append(len(self.nodes))

    def input_block(self, block: Block, inputs: tuple[int, ...]) -> None:
        self.input = Value(block.shape, "f32")
        value, limits = self._output(block.with_(shape=image_shape(block.shape)))
        self.add(block, "quantize", (0,), value, limits)

    def weighted(self, block: Block, inputs: tuple[int, ...]) -> None:
        layer = self.model.layer_of(block)
        codes = weight_codes(layer)
        if block.op == "conv2d":
            codes = image_weight(codes, block)
        channels = codes.shape[0]
        self._check_accumulator(block, codes)
        scale_in, _ = self.qparams(block.inputs[0])
        gain, shift = batch_norm_affine(self.model, block.batch_norm, channels)
        if layer.bias is not None:
            shift = shift + to_float64(layer.bias) * gain
        multiplier = scale_in * to_float64(layer.weight_scale) * gain
        inputs, attributes = self._spread(block, inputs)
        if block.float_output:
            value = Value(block.shape, "f32")
        else:
            value, limits = self._output(block)
            assert value.scale is not None
            assert value.zero_point is not None
            attributes |= limits
            multiplier, shift = multiplier / value.scale, shift / value.scale + value.zero_point
            if len(inputs) == 2:
                scale_residual, _ = self.qparams(block.inputs[1])
                attributes["residual_multiplier"] = _scalar(scale_residual / value.scale, block.name)
        tensors = {
            "weight": codes,
            "multiplier": to_float32(multiplier, block.name),
            "bias": to_float32(shift, block.name),
        }
        self.add(block, block.op, inputs, value, attributes, tensors)

    def _spread(self, block: Block, inputs: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, Any]]:
        """Nodes that make a convolution of a transposed one; its inputs and attributes after them."""
        source = self.value(block.inputs[0])
        steps, attributes = spread_input(block.attributes, source.shape)
        for op, step, shape in steps:
            self.nodes.append(Node(op, f"{block.name}_{op}", inputs[:1], replace(source, shape=shape), step))
            inputs = (len(self.nodes), *inputs[1:])
        return inputs, attributes

    def _check_accumulator(self, block: Block, codes: NDArray[np.int8]) -> None:
        largest = int(np.abs(codes.astype(np.int64)).reshape(codes.shape[0], -1).sum(1).max(initial=0)) * 255
        if largest > _LARGEST_ACCUMULATOR:
            raise ValueError(f"{block.name}: sums of up to {largest} do not fit the int32 accumulator")

    def add_block(self, block: Block, inputs: tuple[int, ...]) -> None:
        value, limits = self._output(block)
        assert value.scale is not None
        assert value.zero_point is not None
        scale_a, scale_b = (self.qparams(i)[0] for i in block.inputs)
        attributes = {
            "multiplier_a": _scalar(scale_a / value.scale, block.name),
            "multiplier_b": _scalar(scale_b / value.scale, block.name),
            "bias": float(value.zero_point),
            **limits,
        }
        self.add(block, "add", inputs, value, attributes)

    def affine(self, block: Block, inputs: tuple[int, ...]) -> None:
        value, limits = self._output(block)
        assert value.scale is not None
        assert value.zero_point is not None
        scale, zero_point = self.per_channel_qparams(block.inputs[0])
        gain, shift = batch_norm_affine(self.model, block.batch_norm, block.shape[0])
        tensors = {
            "zero_point": zero_point,
            "multiplier": to_float32(scale * gain / value.scale, block.name),
            "bias": to_float32(shift / value.scale + value.zero_point, block.name),
        }
        self.add(block, "affine", inputs, value, limits, tensors)

    def lookup(self, block: Block, inputs: tuple[int, ...]) -> None:
        value, _ = self._output(block)
        assert value.scale is not None
        assert value.zero_point is not None
        scale, zero_point = self.qparams(block.inputs[0])
        with torch.no_grad():
            real = (torch.arange(256, dtype=torch.float64) - zero_point) * scale
            result = self.model.lookup_function(block)(real.float())
            output = (result.double() / value.scale).round() + value.zero_point
        table = output.clamp(0, self._quantizer(block).quant_max).to(torch.uint8).numpy()
        self.add(block, "lookup", inputs, value, {}, {"table": table})

    def pool(self, block: Block, inputs: tuple[int, ...]) -> None:
        value, limits = self._output(block)
        assert value.scale is not None
        assert value.zero_point is not None
        scale, _ = self.qparams(block.inputs[0])
        attributes = {
            **block.attributes,
            "multiplier": _scalar(scale / value.scale, block.name),
            "bias": float(value.zero_point),
            **limits,
        }
        self.add(block, block.op, inputs, value, attributes)

    def concat(self, block: Block, inputs: tuple[int, ...]) -> None:
        parts = [self.per_channel_qparams(i) for i in block.inputs]
        self.add(block, "concat", inputs, Value(block.shape, "u8"))
        scales, zero_points = zip(*parts, strict=True)
        self.channel_qparams[self.index[-1]] = (np.concatenate(scales), np.concatenate(zero_points))

    def keep_codes(self, block: Block, inputs: tuple[int, ...]) -> None:
        source = self.value(block.inputs[0])
        value = Value(block.shape, source.dtype, source.scale, source.zero_point)
        self.add(block, block.op, inputs, value, dict(block.attributes))
        if inputs[0] in self.channel_qparams:
            self.channel_qparams[self.index[-1]] = self.channel_qparams[inputs[0]]

    def to_float(self, block: Block, inputs: tuple[int, ...]) -> None:
        self.add(block, block.op, inputs, Value(block.shape, "f32"))


_LOWER: dict[str, Callable[[_Lowering, Block, tuple[int, ...]], None]] = {
    "input": _Lowering.input_block,
    "conv2d": _Lowering.weighted,
    "linear": _Lowering.weighted,
    "add": _Lowering.add_block,
    "affine": _Lowering.affine,
    "lookup": _Lowering.lookup,
    "avg_pool2d": _Lowering.pool,
    "adaptive_avg_pool2d": _Lowering.pool,
    "concat": _Lowering.concat,
    "max_pool2d": _Lowering.keep_codes,
    "flatten": _Lowering.keep_codes,
    "slice": _Lowering.keep_codes,
    "pad": _Lowering.keep_codes,
    "dequantize": _Lowering.to_float,
    "softmax": _Lowering.to_float,
}


def lower(model: PreparedModel) -> Graph:
    """The integer graph of a prepared model as it stands.

    Raises:
        ValueError: a weight or parameter is not finite, or an accumulator could overflow; names the block.
    """
    return _Lowering(model).run()
