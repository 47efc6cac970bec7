"""Convolutions whose windows reach over the border, by the direct kernel: it leaves taps on a border of zeros out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pqk_ext.runtime import Graph, Model
from tests.runtime import reference
from tests.runtime.graphs import Builder

PADDINGS = [(1, 1, 1, 1), (0, 1, 1, 0), (2, 1, 0, 2), (3, 3, 3, 3), (1, 0, 2, 1)]


def graph(height: int, width: int, padding: Any, stride: Any, dilation: Any, kernel: Any, zero_point: int) -> Graph:
    b = Builder((5, height, width), seed=height * 31 + width)
    x = b.quantize(0, scale=0.01, zero_point=zero_point)
    x = b.conv2d(x, 40, kernel, stride, padding, dilation)
    b.dequantize(x)
    return b.graph()


@pytest.mark.parametrize("zero_point", [0, 7])
@pytest.mark.parametrize("padding", PADDINGS)
def test_windows_over_the_border(isa: str, padding: tuple[int, int, int, int], zero_point: int) -> None:
    random = np.random.default_rng(sum(padding))
    for height, width in [(1, 1), (2, 1), (2, 2), (3, 3), (4, 4), (5, 5), (3, 8), (6, 13), (2, 26)]:
        for kernel, stride, dilation in [
            ((3, 3), (1, 1), (1, 1)),
            ((3, 3), (2, 2), (1, 1)),
            ((2, 4), (1, 2), (1, 1)),
            ((3, 2), (1, 1), (2, 1)),
            ((2, 2), (1, 1), (1, 2)),
        ]:
            rows, columns = height + padding[0] + padding[2], width + padding[1] + padding[3]
            if rows <= dilation[0] * (kernel[0] - 1) or columns <= dilation[1] * (kernel[1] - 1):
                continue
            g = graph(height, width, padding, stride, dilation, kernel, zero_point)
            x = random.normal(0, 1, (9, *g.input.shape)).astype(np.float32)
            expected = reference.run(g, x)
            model = Model.from_graph(g, kernels={"*": "direct"})
            assert "direct" in dict(model.kernels).values()
            for batch in (1, 9):
                np.testing.assert_array_equal(model(x[:batch]), expected[:batch])
