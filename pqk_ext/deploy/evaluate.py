"""The integer graph computed with torch: what a prepared model gives in evaluation mode.

Convolutions of integer-valued floats are exact while every partial sum stays below 2**24 (float32) or 2**53
(float64), whatever order the backend sums in; the bound is taken from the weights. The results therefore have the
same bits as the engine's int32 accumulators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pqk_ext.runtime.graph import Graph, Node, Value

__all__ = ["TorchGraph"]

_EXACT_FLOAT32 = 2**24


@dataclass
class _Step:
    """A node with its constants as tensors on the model's device."""

    node: Node
    sources: tuple[Value, ...]
    tensors: dict[str, Tensor]


class TorchGraph:
    """An integer graph that runs on torch tensors, codes held as float32.

    Args:
        graph: the graph.
        device: where it runs.
        native: compute conv2d and linear with the int8 ops of this package instead of float convolutions.
    """

    def __init__(self, graph: Graph, device: torch.device | str = "cpu", native: bool = False) -> None:
        self.graph = graph
        self.native = native
        # By themselves, for compilers that cannot look into the graph.
        self._sequence, self._input_shape, self._output_shape = graph.sequence, graph.input.shape, graph.output_shape
        self._steps = []
        for node in graph.nodes:
            tensors = {k: torch.from_numpy(v.copy()).to(device) for k, v in node.tensors.items()}
            self._steps.append(_Step(node, tuple(graph.value(i) for i in node.inputs), tensors))
        for step in self._steps:
            if "weight" in step.tensors and not native:
                step.tensors["weight"] = _exact_weight(step.tensors["weight"])

    @torch.no_grad()
    def __call__(self, input: Tensor) -> Tensor:
        """Output of the graph for a float32 batch.

        Raises:
            TypeError, ValueError: wrong dtype or shape, or a NaN in the input.
        """
        return self.run(input)

    def run(self, input: Tensor) -> Tensor:
        """As a call, with autograd as it is: a recorded graph then does not switch it."""
        if input.dtype != torch.float32:
            raise TypeError(f"input must be float32, got {input.dtype}")
        if tuple(input.shape[1:]) != self._input_shape:
            raise ValueError(f"input must have shape (N, *{self._input_shape}), got {tuple(input.shape)}")
        if torch.compiler.is_compiling():  # out here: raising leaves a recorded graph without switching autocast back
            torch._assert_async(~torch.isnan(input).any(), "input must not contain NaN")
        values = [input.unsqueeze(2) if self._sequence else input]
        with torch.autocast(input.device.type, enabled=False):  # in bfloat16 the sums would not be exact
            for step in self._steps:
                run = _NATIVE.get(step.node.op) if self.native else None
                values.append((run or _RUN[step.node.op])(step, *(values[i] for i in step.node.inputs)))
        return values[-1].reshape(input.shape[0], *self._output_shape)


def _exact_weight(weight: Tensor) -> Tensor:
    """Integer-valued weight in the smallest float type whose sums are exact; float64 on an accelerator.

    There, float32 convolutions may use TF32 or a Winograd transform, which are not exact.
    """
    bound = int(weight.long().abs().flatten(1).sum(1).max()) * 255 if weight.numel() else 0
    exact = bound < _EXACT_FLOAT32 and weight.device.type == "cpu"
    return weight.to(torch.float32 if exact else torch.float64)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (like.dim() - 2))


def _code(value: Tensor, attributes: dict[str, Any]) -> Tensor:
    return value.round().clamp(attributes["quant_min"], attributes["quant_max"])


def _scalar(value: Any, like: Tensor) -> Tensor:
    """A float32 number as a tensor: a Python float would let torch compute in double and round differently."""
    return torch.tensor(value, dtype=torch.float32, device=like.device)


def _zero_point(step: _Step, slot: int = 0) -> int:
    zero_point = step.sources[slot].zero_point
    assert zero_point is not None, "the graph gives this operator codes of one scale"
    return zero_point


def _quantize(step: _Step, x: Tensor) -> Tensor:
    if not torch.compiler.is_compiling() and bool(torch.isnan(x).any()):
        at = int(torch.isnan(x).flatten().nonzero()[0])
        raise ValueError(f"input must not contain NaN, found one at flat index {at}")
    scale = _scalar(step.node.value.scale, x)
    codes = (x * (1.0 / scale)).round() + _scalar(step.node.value.zero_point, x)
    return codes.clamp(step.node.attributes["quant_min"], step.node.attributes["quant_max"])


def _rescale(step: _Step, accumulator: Tensor, residual: Tensor | None) -> Tensor:
    attributes = step.node.attributes
    value = accumulator.float() * _per_channel(step.tensors["multiplier"], accumulator)
    if residual is not None:
        other = (residual - _zero_point(step, 1)) * _scalar(attributes["residual_multiplier"], residual)
        value = value + other
    value = value + _per_channel(step.tensors["bias"], accumulator)
    return value if step.node.value.dtype == "f32" else _code(value, attributes)


def _conv2d(step: _Step, x: Tensor, residual: Tensor | None = None) -> Tensor:
    a, weight = step.node.attributes, step.tensors["weight"]
    top, left, bottom, right = a["padding"]
    centred = F.pad(x - _zero_point(step), [left, right, top, bottom]).to(weight.dtype)
    accumulator = F.conv2d(centred, weight, None, a["stride"], 0, a["dilation"], a["groups"])
    return _rescale(step, accumulator, residual)


def _linear(step: _Step, x: Tensor, residual: Tensor | None = None) -> Tensor:
    weight = step.tensors["weight"]
    return _rescale(step, F.linear((x - _zero_point(step)).to(weight.dtype), weight), residual)


def _native_arguments(step: _Step, x: Tensor, residual: Tensor | None) -> dict[str, Any]:
    a = step.node.attributes
    arguments: dict[str, Any] = {
        "input": x.to(torch.uint8),
        "weight": step.tensors["weight"],
        "multiplier": step.tensors["multiplier"],
        "bias": step.tensors["bias"],
        "input_zero_point": _zero_point(step),
        "float_output": step.node.value.dtype == "f32",
    }
    if step.node.value.dtype == "u8":
        arguments |= {"quant_min": a["quant_min"], "quant_max": a["quant_max"]}
    if residual is not None:
        arguments |= {
            "residual": residual.to(torch.uint8),
            "residual_multiplier": a["residual_multiplier"],
            "residual_zero_point": _zero_point(step, 1),
        }
    return arguments


def _native_conv2d(step: _Step, x: Tensor, residual: Tensor | None = None) -> Tensor:
    from pqk_ext.ops.int8_conv2d import int8_conv2d

    geometry = {name: step.node.attributes[name] for name in ("stride", "padding", "dilation", "groups")}
    return int8_conv2d(**_native_arguments(step, x, residual), **geometry).float()


def _native_linear(step: _Step, x: Tensor, residual: Tensor | None = None) -> Tensor:
    from pqk_ext.ops.int8_linear import int8_linear

    return int8_linear(**_native_arguments(step, x, residual)).float()


def _add(step: _Step, a: Tensor, b: Tensor) -> Tensor:
    attributes = step.node.attributes
    first = (a - _zero_point(step)) * _scalar(attributes["multiplier_a"], a)
    second = (b - _zero_point(step, 1)) * _scalar(attributes["multiplier_b"], b)
    return _code((first + second) + _scalar(attributes["bias"], a), attributes)


def _affine(step: _Step, x: Tensor) -> Tensor:
    t = {name: _per_channel(tensor, x) for name, tensor in step.tensors.items()}
    return _code((x - t["zero_point"]) * t["multiplier"] + t["bias"], step.node.attributes)


def _lookup(step: _Step, x: Tensor) -> Tensor:
    return step.tensors["table"][x.long()].float()


def _max_pool(step: _Step, x: Tensor) -> Tensor:
    a = step.node.attributes
    top, left, bottom, right = a["padding"]
    padded = F.pad(x, [left, right, top, bottom], value=-1.0)
    return F.max_pool2d(padded, a["kernel"], a["stride"], 0, a["dilation"])


def _averaged(step: _Step, total: Tensor, count: Tensor) -> Tensor:
    a = step.node.attributes
    multiplier = _scalar(a["multiplier"], total) / count
    return _code(total.float() * multiplier + _scalar(a["bias"], total), a)


def _avg_pool(step: _Step, x: Tensor) -> Tensor:
    a = step.node.attributes
    top, left, bottom, right = a["padding"]
    padded = F.pad(x - _zero_point(step), [left, right, top, bottom]).double()
    total = F.avg_pool2d(padded, a["kernel"], a["stride"], divisor_override=1)
    if a["count_include_pad"]:
        return _averaged(step, total, _scalar(float(a["kernel"][0] * a["kernel"][1]), x))
    inside = F.pad(torch.ones_like(x[:1, :1]), [left, right, top, bottom]).double()
    return _averaged(step, total, F.avg_pool2d(inside, a["kernel"], a["stride"], divisor_override=1).float())


def _adaptive_avg_pool(step: _Step, x: Tensor) -> Tensor:
    centred = (x - _zero_point(step)).double()
    goal = step.node.attributes["output_size"]
    bounds = [
        [(i * size // n, -(-(i + 1) * size // n)) for i in range(n)] for size, n in zip(x.shape[2:], goal, strict=True)
    ]
    rows = []
    for top, bottom in bounds[0]:
        cells = [centred[:, :, top:bottom, left:right].sum((2, 3)) for left, right in bounds[1]]
        rows.append(torch.stack(cells, -1))
    counts = [[float((b - t) * (right - left)) for left, right in bounds[1]] for t, b in bounds[0]]
    return _averaged(step, torch.stack(rows, -2), _scalar(counts, x))


def _slice(step: _Step, x: Tensor) -> Tensor:
    a = step.node.attributes
    return x[(slice(None), *(slice(*t) for t in zip(a["start"], a["stop"], a["step"], strict=True)))]


def _pad(step: _Step, x: Tensor) -> Tensor:
    (front, top, left), (back, bottom, right) = step.node.attributes["before"], step.node.attributes["after"]
    return F.pad(x, [left, right, top, bottom, front, back], value=float(_zero_point(step)))


def _dilate(step: _Step, x: Tensor) -> Tensor:
    rows, columns = step.node.attributes["dilation"]
    result = torch.full((len(x), *step.node.value.shape), float(_zero_point(step)), device=x.device)
    result[:, :, ::rows, ::columns] = x
    return result


def _dequantize(step: _Step, x: Tensor) -> Tensor:
    return (x - _zero_point(step)) * _scalar(step.sources[0].scale, x)


def exp_nonpositive(x: Tensor) -> Tensor:
    """exp(x) for x <= 0 in the float32 steps of ``csrc/core/numerics.h``."""
    inside = x.clamp_min(-87.0)
    n = (inside * _scalar(1.44269504, x)).round()
    r = (inside - n * _scalar(0.693359375, x)) - n * _scalar(-2.12194440e-4, x)
    p = torch.full_like(r, 1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + _scalar(coefficient, x)
    p = p * (r * r) + r + 1.0
    return torch.where(x >= -87.0, torch.ldexp(p, n.int()), 0.0)


def _softmax(step: _Step, x: Tensor) -> Tensor:
    e = exp_nonpositive(x - x.amax(1, keepdim=True))
    total = torch.zeros_like(e[:, 0])
    for channel in e.unbind(1):  # in channel order: float sums depend on it
        total = total + channel
    return e / total[:, None]


_RUN: dict[str, Callable[..., Tensor]] = {
    "quantize": _quantize,
    "conv2d": _conv2d,
    "linear": _linear,
    "add": _add,
    "concat": lambda step, *inputs: torch.cat(inputs, 1),
    "affine": _affine,
    "lookup": _lookup,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "flatten": lambda step, x: x.flatten(1),
    "slice": _slice,
    "pad": _pad,
    "dilate": _dilate,
    "dequantize": _dequantize,
    "softmax": _softmax,
}
_NATIVE: dict[str, Callable[..., Tensor]] = {"conv2d": _native_conv2d, "linear": _native_linear}
