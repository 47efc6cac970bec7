"""The graph that a ``.pqk`` file holds, that `eval()` computes and that the engine runs.

A :class:`Graph` is a list of nodes in execution order, one value each: value 0 is the input, value ``i + 1`` is what
node ``i`` gives. Shapes leave out the batch dimension: ``(C, H, W)`` or ``(C,)``. A network over sequences has an
input of shape ``(C, L)``, which is the value ``(C, 1, L)``, and gives its result without a height. Values are uint8
codes with one ``scale`` and ``zero_point`` (real = (code - zero_point) * scale), uint8 codes with different ones per
channel (a concatenation: ``scale`` and ``zero_point`` are None), or float32 (``dtype == "f32"``).

Every formula below is float32, products and sums rounded separately, ``rint`` half to even; ``acc`` is an exact
int32 sum. ``code(v)`` is ``clamp(rint(v), quant_min, quant_max)``. See ``csrc/core/numerics.h``.

=================== ============================================================================================
op                  result
=================== ============================================================================================
quantize            clamp(rint(x * (1 / scale)) + zero_point, quant_min, quant_max), scale and zero_point of its value
conv2d              acc = sum (x - zp_x) * weight, padding with zp_x; u8: code(acc * multiplier[c] + bias[c]); f32:
                    acc * multiplier[c] + bias[c]. With a second input r (u8, the output's shape):
                    code((acc * multiplier[c] + (r - zp_r) * residual_multiplier) + bias[c])
linear              the same for a (C,) input and an (O, I) weight
add                 code(((a - zp_a) * multiplier_a + (b - zp_b) * multiplier_b) + bias)
concat              channels of the inputs one after the other, unchanged
affine              code((x - zero_point[c]) * multiplier[c] + bias[c]), per channel
lookup              table[x]
max_pool2d          largest code of the window; padding never wins
avg_pool2d          s = sum (x - zp_x) over the window; n = kernel area if count_include_pad, else positions inside;
                    code(s * (multiplier / n) + bias)
adaptive_avg_pool2d the same with torch's windows: rows floor(i * H / O) to ceil((i + 1) * H / O)
flatten             (C, H, W) -> (C * H * W,), C slowest; u8 or f32
slice               x[start:stop:step] along C, H, W
pad                 x with before/after rows of zero_point along C, H, W; of 0 around float32
dilate              x[i, j] at row i * dilation[0] and column j * dilation[1], zero_point (0 for float32) elsewhere
dequantize          (x - zp_x) * scale_x, to f32
softmax             f32 (C,): e[c] = exp_nonpositive(x[c] - max x); e[c] / sum e, summed in channel order
=================== ============================================================================================

The operators of networks with float codebooks take and give float32 values only. Their weights are int8 codes into a
float32 ``codebook``: ``w = codebook[code + zero]``, where ``zero`` is the index that code 0 stands for (a pruned
weight's, if ``codebook[zero]`` is 0). ``clamp(v)`` is ``min(max(v, clamp_min), clamp_max)``, each bound only where the
node has it. They are specified within a bound (``FORMAT.md``, "Float operators"), not to the bit, as their sums have no
fixed order; the engine's results still do not depend on threads or batch.

========================= ======================================================================================
op                        result
========================= ======================================================================================
float_conv2d              acc = sum x * w, padding with 0; clamp(acc * multiplier[c] + bias[c]). With a second
                          input r of the output's shape: clamp((acc * multiplier[c] + r) + bias[c])
float_linear              the same for a (C,) input and an (O, I) weight
float_add                 clamp(a + b)
float_affine              clamp(x * multiplier[c] + bias[c]), per channel
float_max_pool2d          largest value of the window; padding never wins
float_avg_pool2d          sum over the window / n, n as in avg_pool2d
float_adaptive_avg_pool2d the same with torch's windows
float_map                 function(x), one of MAPS, as torch.nn.functional defines them
========================= ======================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLOAT_OPS", "MAPS", "OPS", "Graph", "Node", "OpSchema", "Value"]


# int, float (a float32 number), str or list[int], as OPS says for each op.
Attribute: TypeAlias = Any


AttributeKind: TypeAlias = type[int] | type[float] | type[str] | int

#: What ``float_map`` can compute.
MAPS = ("relu", "relu6", "sigmoid", "silu", "hard_swish", "hard_sigmoid", "tanh")


@dataclass(frozen=True)
class Value:
    """What a node gives. ``shape`` without batch; see the module's docstring for ``scale`` and ``zero_point``."""

    shape: tuple[int, ...]
    dtype: str  # "u8" or "f32"
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class Node:
    """One operation: its op, a name for people, indices of its input values, attributes, constant tensors."""

    op: str
    name: str
    inputs: tuple[int, ...]
    value: Value
    attributes: dict[str, Attribute] = field(default_factory=dict)
    tensors: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A whole network: one float32 input, nodes in order, the last node's value is the output.

    ``input.shape`` is that of the samples that callers give: ``(C, H, W)``, ``(C,)``, or ``(C, L)``.
    """

    input: Value
    nodes: tuple[Node, ...]

    def value(self, index: int) -> Value:
        """The value of that index: 0 is the input, a sequence as an image of height 1."""
        if index > 0:
            return self.nodes[index - 1].value
        return replace(self.input, shape=(self.input.shape[0], 1, self.input.shape[1])) if self.sequence else self.input

    @property
    def sequence(self) -> bool:
        """Whether callers give samples ``(C, L)``, and get results without a height."""
        return len(self.input.shape) == 2

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one result, as callers get it."""
        shape = self.nodes[-1].value.shape
        return (shape[0], shape[2]) if self.sequence and len(shape) == 3 else shape


@dataclass(frozen=True)
class OpSchema:
    """The fields an op has: number of inputs, attributes with their types, tensors with their dtypes.

    ``attributes`` maps a name to ``int``, ``float`` (a float32 number), ``str`` or a list length (that many ints).
    """

    inputs: tuple[int, int]  # fewest, most
    attributes: dict[str, AttributeKind] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()


_RANGE: dict[str, AttributeKind] = {"quant_min": int, "quant_max": int}
_CLAMP: dict[str, AttributeKind] = {"clamp_min": float, "clamp_max": float}
_CLAMPED = frozenset(_CLAMP)
_AFFINE = {"multiplier": "f32", "bias": "f32"}
_CODED = {"weight": "i8", "codebook": "f32", **_AFFINE}

# The closed list of operators, in the order of their numbers. Padding is top, left, bottom, right. quant_min and
# quant_max are absent (left out of `attributes`) exactly when a conv2d or linear gives f32.
OPS: dict[str, OpSchema] = {
    "quantize": OpSchema((1, 1), dict(_RANGE)),
    "conv2d": OpSchema(
        (1, 2),
        {"stride": 2, "padding": 4, "dilation": 2, "groups": int, **_RANGE, "residual_multiplier": float},
        {"weight": "i8", **_AFFINE},
        frozenset({"quant_min", "quant_max", "residual_multiplier"}),
    ),
    "linear": OpSchema(
        (1, 2),
        {**_RANGE, "residual_multiplier": float},
        {"weight": "i8", **_AFFINE},
        frozenset({"quant_min", "quant_max", "residual_multiplier"}),
    ),
    "add": OpSchema((2, 2), {"multiplier_a": float, "multiplier_b": float, "bias": float, **_RANGE}),
    "concat": OpSchema((1, 65535)),
    "affine": OpSchema((1, 1), dict(_RANGE), {"zero_point": "u8", **_AFFINE}),
    "lookup": OpSchema((1, 1), {}, {"table": "u8"}),
    "max_pool2d": OpSchema((1, 1), {"kernel": 2, "stride": 2, "padding": 4, "dilation": 2}),
    "avg_pool2d": OpSchema(
        (1, 1),
        {
            "kernel": 2,
            "stride": 2,
            "padding": 4,
            "count_include_pad": int,
            "multiplier": float,
            "bias": float,
            **_RANGE,
        },
    ),
    "adaptive_avg_pool2d": OpSchema((1, 1), {"output_size": 2, "multiplier": float, "bias": float, **_RANGE}),
    "flatten": OpSchema((1, 1)),
    "slice": OpSchema((1, 1), {"start": 3, "stop": 3, "step": 3}),
    "pad": OpSchema((1, 1), {"before": 3, "after": 3}),
    "dilate": OpSchema((1, 1), {"dilation": 2}),
    "dequantize": OpSchema((1, 1)),
    "softmax": OpSchema((1, 1)),
    "float_conv2d": OpSchema(
        (1, 2),
        {"stride": 2, "padding": 4, "dilation": 2, "groups": int, "zero": int, **_CLAMP},
        dict(_CODED),
        _CLAMPED,
    ),
    "float_linear": OpSchema((1, 2), {"zero": int, **_CLAMP}, dict(_CODED), _CLAMPED),
    "float_add": OpSchema((2, 2), dict(_CLAMP), {}, _CLAMPED),
    "float_affine": OpSchema((1, 1), dict(_CLAMP), dict(_AFFINE), _CLAMPED),
    "float_max_pool2d": OpSchema((1, 1), {"kernel": 2, "stride": 2, "padding": 4, "dilation": 2}),
    "float_avg_pool2d": OpSchema((1, 1), {"kernel": 2, "stride": 2, "padding": 4, "count_include_pad": int}),
    "float_adaptive_avg_pool2d": OpSchema((1, 1), {"output_size": 2}),
    "float_map": OpSchema((1, 1), {"function": str}),
}

#: Those that take and give float32 values only.
FLOAT_OPS = frozenset(name for name in OPS if name.startswith("float_"))
