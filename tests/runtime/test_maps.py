"""Steps that map codes, against the numpy reference: channel tails, windows of many pixels, values beyond int32."""

from __future__ import annotations

import numpy as np
import pytest

from pqk_ext.runtime import Graph, Model
from tests.runtime import reference
from tests.runtime.graphs import Builder


def check(graph: Graph, batch: int = 2) -> None:
    x = np.random.default_rng(0).normal(0, 2, (batch, *graph.input.shape)).astype(np.float32)
    np.testing.assert_array_equal(Model.from_graph(graph)(x), reference.run(graph, x))


@pytest.mark.parametrize("channels", [1, 3, 16, 45, 64, 70, 130])
@pytest.mark.parametrize("largest", [1.0, 1e8, 1e19])
def test_affine_add_pool(isa: str, channels: int, largest: float) -> None:
    b = Builder((channels, 5, 7), seed=channels)
    x = b.quantize(0)
    y = b.affine(x)
    b.nodes[-1].tensors["multiplier"][::2] *= np.float32(largest)
    z = b.sum(x, y)
    b.nodes[-1].attributes["multiplier_a"] *= largest
    w = b.avg_pool2d(b.sum(y, z), (3, 2), (2, 1), (1, 0, 1, 1), 1)
    b.nodes[-1].attributes["multiplier"] *= largest
    b.dequantize(b.concat(b.max_pool2d(w, (2, 3), (1, 2), (0, 1, 1, 1)), b.max_pool2d(w, (2, 3), (1, 2), (0, 1, 1, 1))))
    check(b.graph())


def test_mean_of_many_pixels(isa: str) -> None:
    """More pixels than a sum of 16 bits holds."""
    for pixels in ((1, 257), (1, 258), (23, 57)):
        b = Builder((70, *pixels))
        x = b.quantize(0, scale=1e-3, zero_point=0)  # mostly codes 0 and 255
        b.dequantize(b.adaptive_avg_pool2d(x, 1, 1))
        check(b.graph())
