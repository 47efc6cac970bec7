"""Networks with float codebooks as ONNX models: ONNX Runtime's results lie within the stated bound too."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pqk_ext.runtime.graph import MAPS, Graph
from tests.runtime import float_reference
from tests.runtime.conftest import golden_graphs  # noqa: F401  (a fixture)
from tests.runtime.float_graphs import FloatBuilder, float_resnet8

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def check(graph: Graph) -> None:
    from pqk_ext.onnx_graph import to_onnx

    x = np.random.default_rng(0).normal(0, 2, (2, *graph.input.shape)).astype(np.float32)
    model = to_onnx(graph, batch=2).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x})
    expected = float_reference.run(graph, x)
    # Folded multipliers round each weight once more.
    allowed = 4 * expected.error + 1e-5 * np.abs(expected.value).max()
    assert (np.abs(got - expected.value) <= allowed).all()


def build(*steps: Any) -> Graph:
    b = FloatBuilder((4, 9, 8), seed=1)
    x = 0
    for step in steps:
        x = step(b, x)
    return b.graph()


CASES = {
    "network": lambda: float_resnet8(),
    "depthwise": lambda: build(
        lambda b, x: b.float_conv2d(x, 4, (3, 3), (2, 1), (1, 0, 2, 1), (1, 2), groups=4, clamp={"clamp_max": 0.5})
    ),
    "clamps": lambda: build(
        lambda b, x: b.float_conv2d(x, 5, clamp={"clamp_min": -1.0}),
        lambda b, x: b.float_conv2d(x, 5, residual=x, clamp={"clamp_min": 0.0, "clamp_max": 6.0}),
    ),
    "norm and sums": lambda: build(lambda b, x: b.float_affine(x), lambda b, x: b.float_add(x, 0)),
    "pools": lambda: build(
        lambda b, x: b.float_max_pool2d(x, (2, 3), (1, 1), (1, 1, 0, 1)),
        lambda b, x: b.float_avg_pool2d(x, (3, 3), (1, 1), (1, 1, 1, 1), 0),
        lambda b, x: b.float_avg_pool2d(x, (2, 2), (1, 1), (0, 0, 0, 0), 1),
        lambda b, x: b.float_adaptive_avg_pool2d(x, 4, 1),
    ),
    "moves": lambda: build(
        lambda b, x: b.move("concat", [x, 0]),
        lambda b, x: b.move("pad", [x], before=[1, 0, 2], after=[0, 1, 0]),
        lambda b, x: b.move("slice", [x], start=[1, 0, 1], stop=[8, 9, 9], step=[2, 1, 3]),
        lambda b, x: b.move("dilate", [x], dilation=[3, 2]),
        lambda b, x: b.float_linear(b.move("flatten", [x]), 7),
    ),
    **{name: lambda name=name: build(lambda b, x: b.float_map(x, name)) for name in MAPS},
}


@pytest.mark.parametrize("name", CASES)
def test_onnx_runtime_agrees(name: str) -> None:
    check(CASES[name]())


def test_uneven_windows_are_refused(golden_graphs: ModuleType) -> None:  # noqa: F811
    from pqk_ext.onnx_graph import to_onnx

    with pytest.raises(ValueError, match=r"windows over \(9, 8\) for \(2, 3\) differ in size"):
        to_onnx(build(lambda b, x: b.float_adaptive_avg_pool2d(x, 2, 3)), batch=1)
    to_onnx(golden_graphs.float_ops(), batch=1)
