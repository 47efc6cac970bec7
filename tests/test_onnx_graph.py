"""Integer graphs as ONNX models: ONNX Runtime computes what our engine does, but for roundings."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from pqk_ext.onnx_graph import OPSET, to_onnx
from pqk_ext.runtime import Model
from pqk_ext.runtime.graph import FLOAT_OPS, OPS, Graph, Node, Value

from .runtime.graphs import RANGE, Builder, resnet8

REASON = "onnx or onnxruntime is not installed (extra bench): the ONNX models were NOT checked"
onnx = pytest.importorskip("onnx", reason=REASON)
onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)


BATCH = 3
Floats = NDArray[np.float32]
Make = Callable[[Builder, int], int]

OPERATORS: dict[str, Make] = {
    "conv2d": lambda b, x: b.conv2d(x, 11),
    "conv2d of any geometry": lambda b, x: b.conv2d(x, 5, (2, 3), (2, 1), (1, 0, 2, 1), (1, 2)),
    "conv2d in groups": lambda b, x: b.conv2d(x, 9, groups=3),
    "conv2d depthwise": lambda b, x: b.conv2d(x, 6, groups=6),
    "conv2d with a residual": lambda b, x: b.conv2d(x, 6, residual=x),
    "conv2d to floats and quantize": lambda b, x: b.quantize(b.conv2d(x, 4, floats=True), 0.7, 100),
    "linear": lambda b, x: b.linear(b.flatten(x), 13),
    "add": lambda b, x: b.sum(x, x),
    "max_pool2d": lambda b, x: b.max_pool2d(x, (3, 2), (2, 2), (1, 1, 0, 0), (1, 2)),
    "avg_pool2d": lambda b, x: b.avg_pool2d(x, (3, 2), (2, 1), (1, 0, 1, 1), 0),
    "avg_pool2d with padding counted": lambda b, x: b.avg_pool2d(x, (2, 2), (1, 2), (1, 1, 0, 0), 1),
    "adaptive_avg_pool2d to one": lambda b, x: b.adaptive_avg_pool2d(x, 1, 1),
    "adaptive_avg_pool2d": lambda b, x: b.adaptive_avg_pool2d(x, 4, 3),
    "slice": lambda b, x: b.slice(x, (1, 0, 2), (6, 8, 9), (2, 3, 1)),
    "pad": lambda b, x: b.pad(x, (1, 0, 2), (0, 3, 1)),
    "dilate": lambda b, x: b.dilate(x, 2, 3),
    "transposed convolution": lambda b, x: b.conv2d(b.dilate(x, 2, 1), 7, (3, 2), padding=(2, 0, 1, 1), groups=1),
    "transposed convolution in groups": lambda b, x: b.conv2d(
        b.dilate(x, 3, 2), 4, (2, 3), padding=(1, 2, 3, 4), dilation=(1, 2), groups=2
    ),
    "convolution of a spread input": lambda b, x: b.conv2d(b.dilate(x, 3, 2), 4, (3, 3), (2, 1), (1, 1, 1, 1)),
    "affine": lambda b, x: b.affine(x),
}


def run_onnx(graph: Graph, x: Floats, *, optimized: bool = True, **options: bool) -> Floats:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    if not optimized:  # each operator as its standard says
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = to_onnx(graph, batch=len(x), **options).SerializeToString()
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    output: Floats = session.run(["y"], {"x": x})[0]
    return output


def exact_inputs(graph: Graph, seed: int) -> Floats:
    """Real numbers that the codes of the first node hold exactly."""
    first = graph.nodes[0].value
    codes = np.random.default_rng(seed).integers(0, 256, (BATCH, *first.shape))
    return ((codes - first.zero_point) * np.float32(first.scale)).astype(np.float32)


def built(make: Make, seed: int, shape: tuple[int, ...] = (6, 8, 9)) -> tuple[Graph, Value, Node]:
    """An operator between a quantize and a dequantize, what it gives, and its node."""
    builder = Builder(shape, seed)
    last = make(builder, builder.quantize(0, 0.02, int(builder.random.choice([0, 77, 128, 255]))))
    builder.dequantize(last)
    return builder.graph(), builder.value(last), builder.nodes[last - 1]


def assert_within_a_code(ours: Floats, theirs: Floats, value: Value, codes: int = 1) -> None:
    difference = np.abs(ours.astype(np.float64) - theirs) / value.scale
    assert difference.max() <= codes + 0.01
    assert (difference > 0.5).mean() < 0.05  # ties only


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OPERATORS)
def test_quantized_operators(name: str, seed: int) -> None:
    graph, value, _ = built(OPERATORS[name], seed)
    x = exact_inputs(graph, seed)
    assert_within_a_code(Model.from_graph(graph)(x), run_onnx(graph, x, optimized=False), value)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OPERATORS)
def test_float_operators(name: str, seed: int) -> None:
    """The engine's result is the float model's, cut off at the ends of the codes and rounded."""
    graph, value, node = built(OPERATORS[name], seed)
    x = exact_inputs(graph, seed)
    low, high = (
        (node.attributes.get(name, end) - value.zero_point) * value.scale
        for name, end in (("quant_min", 0), ("quant_max", 255))
    )
    expected = run_onnx(graph, x, optimized=False, quantized=False).clip(low, high)
    assert np.abs(Model.from_graph(graph)(x) - expected).max() <= 0.51 * value.scale


@pytest.mark.parametrize("requantize_sums", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_residual_of_a_linear_layer(quantized: bool, requantize_sums: bool) -> None:
    graph, value, node = built(lambda b, x: b.linear(x, 6, residual=x), 1, (6,))
    x = exact_inputs(graph, 1)
    theirs = run_onnx(graph, x, optimized=False, quantized=quantized, requantize_sums=requantize_sums)
    low, high = (-value.zero_point * value.scale, (255 - value.zero_point) * value.scale)
    difference = np.abs(Model.from_graph(graph)(x) - theirs.clip(low, high)).max()
    # What is rounded once more has the range of the sum and the residual together.
    step = 1 + abs(node.attributes["residual_multiplier"])
    assert difference <= (1.01 + (0.5 * step if requantize_sums else 0)) * value.scale


def test_sums_are_requantized_only_when_asked() -> None:
    def quantizers(**options: bool) -> int:
        model = to_onnx(resnet8(), batch=1, **options)
        return sum(node.op_type == "QuantizeLinear" for node in model.graph.node)

    residuals = sum(len(node.inputs) == 2 for node in resnet8().nodes)
    assert residuals == 3
    assert quantizers(requantize_sums=True) == quantizers() + residuals
    assert quantizers(quantized=False, requantize_sums=True) == 0


@pytest.mark.parametrize("quantized", [False, True])
def test_channels_of_different_scales(quantized: bool) -> None:
    """A concatenation of codes with different scales, through all that keeps codes, up to an affine."""
    builder = Builder((4, 6, 6), 3)
    x = builder.quantize(0, 0.02, 100)
    wide = builder.add("affine", [x], RANGE, _affine_tensors(builder, 4), qparams=(0.05, 30))
    joined = builder.concat(x, wide, x)
    cut = builder.slice(builder.max_pool2d(joined, (2, 2), (2, 2), (0, 0, 0, 0)), (1, 0, 0), (11, 3, 3), (2, 1, 1))
    flat = builder.flatten(cut)
    builder.dequantize(builder.add("affine", [flat], RANGE, _affine_tensors(builder, 45), qparams=(0.04, 128)))
    graph = builder.graph()
    assert graph.value(joined).scale is None
    x_real = exact_inputs(graph, 0)
    theirs = run_onnx(graph, x_real, optimized=False, quantized=quantized).clip(-128 * 0.04, 127 * 0.04)
    # One code of the inner value may differ by its rounding; the last multiplier is at most 0.5.
    assert np.abs(Model.from_graph(graph)(x_real) - theirs).max() <= 1.01 * 0.04


def _affine_tensors(builder: Builder, channels: int) -> dict[str, NDArray[np.generic]]:
    return {
        "zero_point": builder.random.integers(0, 256, channels).astype(np.uint8),
        "multiplier": builder.random.uniform(-0.5, 0.5, channels).astype(np.float32),
        "bias": builder.random.uniform(50, 200, channels).astype(np.float32),
    }


def test_softmax_and_fewer_bits() -> None:
    builder = Builder((5,), 0)
    x = builder.quantize(0, 0.5, 7, quant_max=15)
    builder.softmax(builder.linear(x, 6, floats=True))
    graph = builder.graph()
    x_real = np.random.default_rng(0).uniform(-6, 6, (BATCH, 5)).astype(np.float32)
    for optimized in (False, True):
        np.testing.assert_allclose(
            run_onnx(graph, x_real, optimized=optimized), Model.from_graph(graph)(x_real), atol=1e-3
        )


def _gelu(v: float) -> float:
    return 0.5 * v * (1 + math.erf(v / math.sqrt(2)))


def _softplus(v: float) -> float:
    return math.log1p(math.exp(v))


FUNCTIONS: dict[str, Callable[[float], float]] = {
    "Relu": lambda v: max(v, 0.0),
    "HardSwish": lambda v: v * min(max(v + 3, 0), 6) / 6,
    "HardSigmoid": lambda v: min(max(v / 6 + 0.5, 0), 1),
    "Sigmoid": lambda v: 1 / (1 + math.exp(-v)),
    "Tanh": math.tanh,
    "Mul": lambda v: v / (1 + math.exp(-v)),  # SiLU
    "Gelu": _gelu,
    "Elu": lambda v: v if v > 0 else math.expm1(v),
    "LeakyRelu": lambda v: v if v > 0 else 0.01 * v,
    "Mish": lambda v: v * math.tanh(_softplus(v)),
    "Softplus": _softplus,
}


@pytest.mark.parametrize("quant_max", [255, 15])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_tables_of_known_functions(name: str, quant_max: int) -> None:
    scale_in, zero_in = 0.04, 120
    results = [FUNCTIONS[name]((code - zero_in) * scale_in) for code in range(256)]
    low = min(0.0, *results)
    scale = float(np.float32((max(results) - low) / quant_max))
    zero_point = round(-low / scale)
    table = np.clip(np.rint(np.array(results) / scale) + zero_point, 0, quant_max).astype(np.uint8)
    builder = Builder((256,))
    x = builder.quantize(0, scale_in, zero_in)
    builder.dequantize(builder.add("lookup", [x], {}, {"table": table}, qparams=(scale, zero_point)))
    graph = builder.graph()
    if quant_max == 255:  # with fewer bits several functions share a table
        assert name in [node.op_type for node in to_onnx(graph, batch=1).graph.node]
    x_real = ((np.arange(256) - zero_in) * np.float32(scale_in)).astype(np.float32)[None]
    theirs = run_onnx(graph, x_real, optimized=False)
    assert np.abs(Model.from_graph(graph)(x_real) - theirs).max() <= 1.01 * scale


def test_what_onnx_lacks_is_refused_by_name() -> None:
    graph, _, _ = built(lambda b, x: b.lookup(x), 0)
    with pytest.raises(ValueError, match=r"nodes\[1\] \(lookup_1\): no ONNX operator for this lookup: its table"):
        to_onnx(graph, batch=1)
    graph, _, _ = built(lambda b, x: b.adaptive_avg_pool2d(x, 3, 9), 0)
    with pytest.raises(
        ValueError, match=r"nodes\[1\] \(adaptive_avg_pool2d_1\): .* windows over \(8, 9\) for \(3, 9\)"
    ):
        to_onnx(graph, batch=1)


def test_every_operator_is_covered() -> None:
    from pqk_ext import onnx_graph

    assert set(onnx_graph._WRITE) == set(OPS) - FLOAT_OPS
    assert set(onnx_graph.WRITE_FLOAT) == FLOAT_OPS


def test_weights_that_no_scale_holds() -> None:
    """A multiplier of 0, a negative one, and a bias far beyond the weights'."""
    builder = Builder((4,), 0)
    x = builder.quantize(0, 0.02, 128)
    weight = builder.random.integers(-127, 128, (4, 4)).astype(np.int8)
    tensors = {
        "weight": weight,
        "multiplier": np.array([0, -0.004, 1e-12, 0.004], np.float32),
        "bias": np.array([100, 50, 200, 1e12], np.float32),
    }
    builder.dequantize(builder.add("linear", [x], RANGE | {"quant_max": 255}, tensors, qparams=(0.1, 9)))
    graph = builder.graph()
    x_real = exact_inputs(graph, 0)
    assert_within_a_code(
        Model.from_graph(graph)(x_real), run_onnx(graph, x_real, optimized=False), Value((4,), "u8", 0.1, 9)
    )


def test_the_model_is_standard_and_holds_integers() -> None:
    model = to_onnx(resnet8(), batch=2)
    assert model.opset_import[0].version == OPSET <= 20
    kinds = {onnx.TensorProto.DataType.Name(c.data_type) for c in model.graph.initializer if len(c.dims) == 4}
    assert kinds == {"INT8"}
    floats = {node.op_type for node in to_onnx(resnet8(), batch=2, quantized=False).graph.node}
    assert {"Conv", "Gemm", "GlobalAveragePool"} <= floats
    assert not {"QuantizeLinear", "DequantizeLinear"} & floats
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
