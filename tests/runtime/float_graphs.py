"""Graphs of float operators for tests: a builder, a hypothesis strategy, and a residual network."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from pqk_ext.runtime.graph import MAPS, Graph
from tests.runtime.graphs import Builder


class FloatBuilder(Builder):
    """Appends float operators; weights are codes of codebooks of `entries` numbers, zeros but for `density`."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0, entries: int = 16, density: float = 1.0) -> None:
        super().__init__(shape, seed)
        self.entries, self.density = entries, density

    def coded(self, *shape: int) -> tuple[dict[str, Any], int]:
        """weight and codebook, one entry of which is 0, and the index of that entry."""
        fan_in = int(np.prod(shape[1:]))
        codebook = np.append(self.random.normal(0, fan_in**-0.5, self.entries - 1), 0.0)
        codebook = np.sort(codebook).astype(np.float32)
        zero = int(np.flatnonzero(codebook == 0)[0])
        low, high = max(-128, -zero), min(127, self.entries - 1 - zero)
        codes = self.random.integers(low, high + 1, shape) * (self.random.random(shape) < self.density)
        return {"weight": codes.astype(np.int8), "codebook": codebook}, zero

    def scales(self, channels: int) -> dict[str, Any]:
        return {
            "multiplier": self.random.normal(0, 1, channels).astype(np.float32),
            "bias": self.random.normal(0, 0.5, channels).astype(np.float32),
        }

    def clamp(self) -> dict[str, float]:
        """None, ReLU, ReLU6 or an upper bound alone."""
        return [{}, {"clamp_min": 0.0}, {"clamp_min": 0.0, "clamp_max": 6.0}, {"clamp_max": 0.5}][
            int(self.random.integers(4))
        ]

    def float_conv2d(
        self,
        x: int,
        channels: int,
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (1, 1, 1, 1),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        residual: int | None = None,
        clamp: dict[str, float] | None = None,
    ) -> int:
        tensors, zero = self.coded(channels, self.value(x).shape[0] // groups, *kernel)
        attributes = {"stride": list(stride), "padding": list(padding), "dilation": list(dilation), "groups": groups}
        attributes |= {"zero": zero, **(self.clamp() if clamp is None else clamp)}
        inputs = [x] if residual is None else [x, residual]
        return self.add("float_conv2d", inputs, attributes, tensors | self.scales(channels), dtype="f32")

    def float_linear(self, x: int, features: int, residual: int | None = None) -> int:
        tensors, zero = self.coded(features, *self.value(x).shape)
        inputs = [x] if residual is None else [x, residual]
        attributes = {"zero": zero, **self.clamp()}
        return self.add("float_linear", inputs, attributes, tensors | self.scales(features), dtype="f32")

    def float_add(self, a: int, b: int) -> int:
        return self.add("float_add", [a, b], self.clamp(), dtype="f32")

    def float_affine(self, x: int) -> int:
        return self.add("float_affine", [x], self.clamp(), self.scales(self.value(x).shape[0]), dtype="f32")

    def float_map(self, x: int, function: str) -> int:
        return self.add("float_map", [x], {"function": function}, dtype="f32")

    def float_max_pool2d(self, x: int, kernel: Any, stride: Any, padding: Any, dilation: Any = (1, 1)) -> int:
        attributes = {"kernel": list(kernel), "stride": list(stride), "padding": list(padding)}
        return self.add("float_max_pool2d", [x], attributes | {"dilation": list(dilation)}, dtype="f32")

    def float_avg_pool2d(self, x: int, kernel: Any, stride: Any, padding: Any, count_include_pad: int) -> int:
        attributes = {"kernel": list(kernel), "stride": list(stride), "padding": list(padding)}
        attributes["count_include_pad"] = count_include_pad
        return self.add("float_avg_pool2d", [x], attributes, dtype="f32")

    def float_adaptive_avg_pool2d(self, x: int, rows: int, columns: int) -> int:
        return self.add("float_adaptive_avg_pool2d", [x], {"output_size": [rows, columns]}, dtype="f32")

    def move(self, op: str, inputs: list[int], **attributes: list[int]) -> int:
        return self.add(op, inputs, attributes, dtype="f32")


class RandomFloatGraph:
    """Draws a graph of float operators node by node; every value so far may be used again."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        shape = (self.int(1, 20), self.int(1, 9), self.int(1, 9))
        entries = draw(st.sampled_from([1, 2, 16, 256]))
        density = draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
        self.build = FloatBuilder(shape, self.int(0, 2**32 - 1), entries, density)

    def int(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def ints(self, count: int, low: int, high: int) -> tuple[int, ...]:
        return tuple(self.int(low, high) for _ in range(count))

    def make(self) -> Graph:
        makers = [self.conv2d, self.conv2d, self.depthwise, self.residual, self.add, self.affine, self.map]
        makers += [self.max_pool, self.avg_pool, self.adaptive, self.concat, self.slice, self.pad, self.codes]
        for _ in range(self.int(1, 6)):
            makers[self.int(0, len(makers) - 1)]()
        x = self.pick()
        if self.int(0, 2):
            x = self.build.move("flatten", [x])
            if self.int(0, 2):
                x = self.build.float_linear(x, self.int(1, 40))
                x = self.build.float_linear(x, self.build.value(x).shape[0], residual=x)
        elif x != len(self.build.nodes) or not self.build.nodes:
            self.build.float_affine(x)
        return self.build.graph()

    def pick(self) -> int:
        """An image so far, the input too; later ones more often."""
        values = [i for i in range(len(self.build.nodes) + 1) if self.build.value(i).dtype == "f32"]
        return values[-1 - min(self.int(0, 2 * len(values)) // 3, len(values) - 1)]

    def alike(self, x: int, *axes: int) -> int:
        shape = self.build.value(x).shape
        values = [(i, self.build.value(i)) for i in range(len(self.build.nodes) + 1)]
        return self.draw(
            st.sampled_from(
                [i for i, v in values if v.dtype == "f32" and all(v.shape[a] == shape[a] for a in axes or (0, 1, 2))]
            )
        )

    def windows(self, x: int) -> tuple[Any, Any, Any, Any]:
        _, height, width = self.build.value(x).shape
        kernel, dilation, padding = self.ints(2, 1, 4), self.ints(2, 1, 2), self.ints(4, 0, 3)
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        if extents[0] > height + padding[0] + padding[2] or extents[1] > width + padding[1] + padding[3]:
            kernel = (1, 1)
        return kernel, self.ints(2, 1, 3), padding, dilation

    def conv2d(self) -> None:
        x = self.pick()
        channels = self.build.value(x).shape[0]
        groups = self.draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
        out_channels = groups * self.int(1, 70 if groups == 1 else 3)
        self.build.float_conv2d(x, out_channels, *self.windows(x), groups=groups)

    def depthwise(self) -> None:
        x = self.pick()
        channels = self.build.value(x).shape[0]
        self.build.float_conv2d(x, channels, *self.windows(x), groups=channels)

    def residual(self) -> None:
        x = self.pick()
        other = self.alike(x, 1, 2)
        self.build.float_conv2d(x, self.build.value(other).shape[0], residual=other)

    def add(self) -> None:
        x = self.pick()
        self.build.float_add(x, self.alike(x))

    def affine(self) -> None:
        self.build.float_affine(self.pick())

    def map(self) -> None:
        self.build.float_map(self.pick(), self.draw(st.sampled_from(MAPS)))

    def max_pool(self) -> None:
        x = self.pick()
        kernel, stride, padding, dilation = self.windows(x)
        if min(kernel) > max(padding) and dilation == (1, 1):
            self.build.float_max_pool2d(x, kernel, stride, padding)
        elif all((k - 1) * d < s for k, d, s in zip(kernel, dilation, self.build.value(x).shape[1:], strict=True)):
            self.build.float_max_pool2d(x, kernel, stride, (0, 0, 0, 0), dilation)

    def avg_pool(self) -> None:
        x = self.pick()
        kernel, stride, padding, _ = self.windows(x)
        if min(kernel) > max(padding):
            self.build.float_avg_pool2d(x, kernel, stride, padding, self.int(0, 1))

    def adaptive(self) -> None:
        self.build.float_adaptive_avg_pool2d(self.pick(), *self.ints(2, 1, 5))

    def concat(self) -> None:
        x = self.pick()
        self.build.move("concat", [x, *(self.alike(x, 1, 2) for _ in range(self.int(0, 2)))])

    def slice(self) -> None:
        x = self.pick()
        sizes = self.build.value(x).shape
        start = [self.int(0, size - 1) for size in sizes]
        stop = [self.int(low + 1, size) for low, size in zip(start, sizes, strict=True)]
        self.build.move("slice", [x], start=start, stop=stop, step=list(self.ints(3, 1, 3)))

    def pad(self) -> None:
        x = self.pick()
        self.build.move("pad", [x], before=list(self.ints(3, 0, 2)), after=list(self.ints(3, 0, 2)))

    def dilate(self) -> None:
        self.build.move("dilate", [self.pick()], dilation=list(self.ints(2, 1, 3)))

    def codes(self) -> None:
        """The input through operators on codes, which are exact: floats of a convolution or of dequantize."""
        codes = self.build.quantize(0)
        if self.int(0, 1):
            self.build.conv2d(codes, self.int(1, 6), floats=True)
        else:
            self.build.dequantize(codes)


@st.composite
def float_graphs(draw: Any) -> Graph:
    """Any graph of float operators, small."""
    return RandomFloatGraph(draw).make()


def float_resnet8(seed: int = 0, density: float = 1.0) -> Graph:
    """The residual network of graphs.py with float codebooks."""
    b = FloatBuilder((3, 32, 32), seed, density=density)
    relu = {"clamp_min": 0.0}
    x = b.float_conv2d(0, 16, clamp=relu)
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        y = b.float_conv2d(x, channels, stride=(stride, stride), clamp=relu)
        if stride != 1:
            x = b.float_conv2d(x, channels, (1, 1), (stride, stride), (0, 0, 0, 0), clamp={})
        x = b.float_conv2d(y, channels, residual=x, clamp=relu)
    b.float_linear(b.move("flatten", [b.float_adaptive_avg_pool2d(x, 1, 1)]), 10)
    return b.graph()
