"""Makes the golden files, in a folder for each version of the format: python tests/golden/make_golden.py

Files that are there already are never written again: old files must load for ever as they are.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pqk_ext.runtime import format as pqk_format
from pqk_ext.runtime.graph import Graph, Node, Value

GOLDEN = Path(__file__).parent
CODES = {"quant_min": 0, "quant_max": 255}
WINDOW = {"stride": [1, 1], "padding": [0, 0, 0, 0]}
CONV = {**WINDOW, "dilation": [1, 1], "groups": 1, **CODES}


def f32(number: float) -> float:
    return float(np.float32(number))


def value(*shape: int, scale: float = 0.05, zero_point: int = 0) -> Value:
    return Value(shape, "u8", f32(scale), zero_point)


def weight(rng: np.random.Generator, *shape: int, spread: float = 9.0, density: float = 1.0) -> np.ndarray[Any, Any]:
    codes = np.clip(np.rint(rng.laplace(0, spread, shape)), -127, 127)
    return (codes * (rng.random(shape) < density)).astype(np.int8)


def affine(rng: np.random.Generator, channels: int) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "multiplier": rng.uniform(1e-3, 1e-2, channels).astype(np.float32),
        "bias": rng.standard_normal(channels).astype(np.float32),
    }


def small(density: float = 0.3) -> Graph:
    """A convolution and a classifier."""
    rng = np.random.default_rng(1)
    return Graph(
        Value((1, 6, 5), "f32"),
        (
            Node("quantize", "input", (0,), value(1, 6, 5, zero_point=128), dict(CODES)),
            Node(
                "conv2d",
                "features.conv",
                (1,),
                value(8, 3, 3),
                {**CONV, "stride": [2, 2], "padding": [1, 1, 1, 1]},
                {"weight": weight(rng, 8, 1, 3, 3, density=density), **affine(rng, 8)},
            ),
            Node("flatten", "flatten", (2,), value(72)),
            Node(
                "linear",
                "classifier",
                (3,),
                Value((3,), "f32"),
                {},
                {"weight": weight(rng, 3, 72, spread=3.0, density=density), **affine(rng, 3)},
            ),
        ),
    )


def four_bits() -> Graph:
    """Weights of 4 and 2 bits, one of them a single value."""
    rng = np.random.default_rng(2)
    codes = np.clip(weight(rng, 40, 30, spread=2.0), -7, 7)
    return Graph(
        Value((30,), "f32"),
        (
            Node("quantize", "input", (0,), value(30, zero_point=3), dict(CODES)),
            Node("linear", "hidden", (1,), value(40), dict(CODES), {"weight": codes, **affine(rng, 40)}),
            Node(
                "linear",
                "ones",
                (2,),
                Value((2,), "f32"),
                {},
                {"weight": np.ones((2, 40), np.int8), **affine(rng, 2)},
            ),
        ),
    )


def all_ops() -> Graph:
    """Every operator once, with attributes that are no defaults."""
    rng = np.random.default_rng(3)
    pool = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1, 1, 1]}
    mean = {"multiplier": f32(1.1), "bias": f32(0.5), "quant_min": 0, "quant_max": 200}
    table = np.sort(rng.integers(0, 256, 256)).astype(np.uint8)
    zero_points = {"zero_point": rng.integers(0, 256, 8).astype(np.uint8)}
    conv_a = {"weight": weight(rng, 4, 2, 3, 3), **affine(rng, 4)}
    conv_b = {"weight": weight(rng, 4, 1, 3, 3, density=0.5), **affine(rng, 4)}
    padded = {**CONV, "padding": [1, 1, 1, 1]}
    depthwise = {**CONV, "padding": [2, 2, 2, 2], "dilation": [2, 2], "groups": 4, "residual_multiplier": f32(0.7)}
    add = {"multiplier_a": f32(0.5), "multiplier_b": f32(0.25), "bias": f32(3.0), **CODES}
    cut = {"start": [0, 1, 0], "stop": [8, 9, 8], "step": [2, 1, 1]}
    linear_a = {"weight": weight(rng, 6, 16), **affine(rng, 6)}
    linear_b = {"weight": weight(rng, 6, 6), **affine(rng, 6)}
    nodes = (
        Node("quantize", "input", (0,), value(2, 8, 8, zero_point=120), dict(CODES)),
        Node("conv2d", "conv_a", (1,), value(4, 8, 8), padded, conv_a),
        Node("conv2d", "conv_b", (2, 2), value(4, 8, 8), depthwise, conv_b),
        Node("lookup", "sigmoid", (3,), value(4, 8, 8, scale=1 / 256), {}, {"table": table}),
        Node("add", "add", (3, 4), value(4, 8, 8, zero_point=7), add),
        Node("concat", "concat", (4, 5), Value((8, 8, 8), "u8")),
        Node("affine", "norm", (6,), value(8, 8, 8), dict(CODES), {**zero_points, **affine(rng, 8)}),
        Node("pad", "pad", (7,), value(8, 10, 9), {"before": [0, 1, 0], "after": [0, 1, 1]}),
        Node("slice", "slice", (8,), value(4, 8, 8), cut),
        Node("max_pool2d", "max", (9,), value(4, 8, 8), {**pool, "dilation": [1, 1]}),
        Node("avg_pool2d", "mean", (10,), value(4, 8, 8), {**pool, "count_include_pad": 0, **mean}),
        Node("adaptive_avg_pool2d", "mean_2x2", (11,), value(4, 2, 2), {"output_size": [2, 2], **mean}),
        Node("flatten", "flatten", (12,), value(16)),
        Node("linear", "linear_a", (13,), value(6), dict(CODES), linear_a),
        Node("linear", "linear_b", (14, 14), value(6), {**CODES, "residual_multiplier": f32(1.5)}, linear_b),
        Node("dequantize", "logits", (15,), Value((6,), "f32")),
        Node("softmax", "softmax", (16,), Value((6,), "f32")),
    )
    return Graph(Value((2, 8, 8), "f32"), nodes)


def coded(rng: np.random.Generator, entries: int, *shape: int) -> tuple[dict[str, Any], dict[str, int]]:
    """A weight of codes with its codebook, one entry of which is 0, and the attribute that says which."""
    codebook = np.sort(np.append(rng.standard_normal(entries - 1), 0)).astype(np.float32)
    zero = int(np.flatnonzero(codebook == 0)[0])
    codes = rng.integers(max(-128, -zero), min(127, entries - 1 - zero) + 1, shape)
    codes *= rng.random(shape) < 0.6
    return {"weight": codes.astype(np.int8), "codebook": codebook}, {"zero": zero}


def float_ops() -> Graph:
    """Every operator of float codebooks, and what else takes float32 values."""
    rng = np.random.default_rng(5)
    conv = {**WINDOW, "dilation": [1, 1], "groups": 1}
    pool = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1, 1, 1]}
    weight_a, zero_a = coded(rng, 256, 4, 2, 3, 3)
    weight_b, zero_b = coded(rng, 16, 4, 1, 3, 3)
    weight_c, zero_c = coded(rng, 5, 6, 32)
    depthwise = {**conv, "padding": [2, 2, 2, 2], "dilation": [2, 2], "groups": 4, **zero_b}

    def floats(*shape: int) -> Value:
        return Value(shape, "f32")

    nodes = (
        Node(
            "float_conv2d",
            "conv_a",
            (0,),
            floats(4, 8, 8),
            {**conv, "padding": [1, 1, 1, 1], **zero_a, "clamp_min": 0.0, "clamp_max": 6.0},
            {**weight_a, **affine(rng, 4)},
        ),
        Node("float_conv2d", "conv_b", (1, 1), floats(4, 8, 8), depthwise, {**weight_b, **affine(rng, 4)}),
        Node("float_map", "gate", (2,), floats(4, 8, 8), {"function": "silu"}),
        Node("float_add", "add", (2, 3), floats(4, 8, 8), {"clamp_min": 0.0}),
        Node("concat", "concat", (3, 4), floats(8, 8, 8)),
        Node("float_affine", "norm", (5,), floats(8, 8, 8), {"clamp_max": 2.5}, affine(rng, 8)),
        Node("pad", "pad", (6,), floats(8, 10, 9), {"before": [0, 1, 0], "after": [0, 1, 1]}),
        Node("slice", "slice", (7,), floats(8, 8, 8), {"start": [0, 1, 0], "stop": [8, 9, 8], "step": [1, 1, 1]}),
        Node("float_max_pool2d", "max", (8,), floats(8, 8, 8), {**pool, "dilation": [1, 1]}),
        Node("float_avg_pool2d", "mean", (9,), floats(8, 8, 8), {**pool, "count_include_pad": 0}),
        Node("float_adaptive_avg_pool2d", "mean_2x2", (10,), floats(8, 2, 2), {"output_size": [2, 2]}),
        Node("flatten", "flatten", (11,), floats(32)),
        Node("float_linear", "linear", (12,), floats(6), dict(zero_c), {**weight_c, **affine(rng, 6)}),
        Node("softmax", "softmax", (13,), floats(6)),
    )
    return Graph(floats(2, 8, 8), nodes)


def sequence() -> Graph:
    """A network over sequences: what it takes and gives has no height."""
    rng = np.random.default_rng(6)
    strided = {**CONV, "stride": [1, 2], "padding": [0, 2, 0, 1]}
    pool = {"kernel": [1, 2], "stride": [1, 2], "padding": [0, 0, 0, 0], "dilation": [1, 1]}
    last = {"stride": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1}
    nodes = (
        Node("quantize", "input", (0,), value(5, 1, 21, zero_point=99), dict(CODES)),
        Node(
            "conv2d",
            "conv",
            (1,),
            value(6, 1, 11),
            strided,
            {"weight": weight(rng, 6, 5, 1, 3, density=0.5), **affine(rng, 6)},
        ),
        Node("max_pool2d", "max", (2,), value(6, 1, 5), pool),
        Node(
            "conv2d",
            "head",
            (3,),
            Value((4, 1, 5), "f32"),
            last,
            {"weight": weight(rng, 4, 6, 1, 1, density=0.7), **affine(rng, 4)},
        ),
    )
    return Graph(Value((5, 21), "f32"), nodes)


def dilated() -> Graph:
    """Zeros between pixels, before a convolution in groups: a transposed convolution."""
    rng = np.random.default_rng(7)
    conv = {**CONV, "padding": [2, 1, 1, 2], "groups": 2}
    nodes = (
        Node("quantize", "input", (0,), value(4, 3, 5, zero_point=131), dict(CODES)),
        Node("dilate", "up_dilate", (1,), value(4, 5, 13, zero_point=131), {"dilation": [2, 3]}),
        Node(
            "conv2d",
            "up",
            (2,),
            value(6, 6, 14, scale=0.1, zero_point=9),
            conv,
            {"weight": weight(rng, 6, 2, 3, 3, density=0.8), **affine(rng, 6)},
        ),
        Node("dequantize", "output", (3,), Value((6, 6, 14), "f32")),
    )
    return Graph(Value((4, 3, 5), "f32"), nodes)


def float_dilated() -> Graph:
    """The same operator on float32 values."""
    nodes = (Node("dilate", "up", (0,), Value((2, 4, 1), "f32"), {"dilation": [3, 1]}),)
    return Graph(Value((2, 2, 1), "f32"), nodes)


def half_affine() -> Graph:
    """Multipliers and biases that float16 holds."""
    graph = small()
    nodes = [
        replace(
            node,
            tensors={
                name: part.astype(np.float16).astype(np.float32) if name in ("multiplier", "bias") else part
                for name, part in node.tensors.items()
            },
        )
        for node in graph.nodes
    ]
    return Graph(graph.input, tuple(nodes))


def golden() -> dict[str, tuple[Graph, str | None]]:
    """File name, graph and codec (None: the smallest) of every golden file; those named compact are."""
    first = ("raw", "bitmask", "csr", "huffman", "sparse-huffman")
    return {
        **{f"v1.0/{codec}.pqk": (small(), codec) for codec in first},
        "v1.0/four_bits.pqk": (four_bits(), None),
        "v1.0/all_ops.pqk": (all_ops(), None),
        "v1.1/float_ops.pqk": (float_ops(), "huffman"),
        "v1.1/sequence.pqk": (sequence(), "huffman"),
        "v1.1/dilated.pqk": (dilated(), "huffman"),
        "v1.1/float_dilated.pqk": (float_dilated(), None),
        "v1.1/half_affine.pqk": (half_affine(), "huffman"),
        "v1.1/compact_all_ops.pqk": (all_ops(), "huffman"),
        "v1.1/compact_float_ops.pqk": (float_ops(), "huffman"),
        "v1.1/compact_half_affine.pqk": (half_affine(), "huffman"),
        **{f"v1.1/{codec}.pqk": (small(), codec) for codec in pqk_format.CODECS if codec not in first},
    }


def tensor_digests(graph: Graph) -> dict[str, str]:
    """SHA-256 of every decoded tensor, with its dtype and shape."""
    return {
        f"{index}.{name} {tensor.dtype} {list(tensor.shape)}": hashlib.sha256(tensor.tobytes()).hexdigest()
        for index, node in enumerate(graph.nodes)
        for name, tensor in node.tensors.items()
    }


def main() -> None:
    for name, (graph, codec) in golden().items():
        path = GOLDEN / name
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            print(f"{path}: kept")
            continue
        pqk_format.write(graph, path, codec=codec, compact=path.stem.startswith("compact"))
        digests = tensor_digests(graph)
        path.with_suffix(".json").write_text(json.dumps(digests, indent=1) + "\n")
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
