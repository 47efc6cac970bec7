"""Graphs for tests: a builder, a hypothesis strategy over all operators, and two known networks."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from pqk_ext.runtime import shapes
from pqk_ext.runtime.graph import Graph, Node, Value

RANGE = {"quant_min": 0, "quant_max": 255}


class Builder:
    """Appends nodes; methods take and give value indices. Constants come from one seeded generator."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.input = Value(shape, "f32")
        self.nodes: list[Node] = []

    def graph(self) -> Graph:
        return Graph(self.input, tuple(self.nodes))

    def value(self, index: int) -> Value:
        return self.graph().value(index)

    def add(
        self,
        op: str,
        inputs: list[int],
        attributes: dict[str, Any] | None = None,
        tensors: dict[str, Any] | None = None,
        dtype: str = "u8",
        qparams: tuple[float, int] | None = None,
    ) -> int:
        attributes, tensors = attributes or {}, tensors or {}
        shape = shapes.infer(op, attributes, [self.value(i).shape for i in inputs], tensors)
        value = Value(shape, dtype, *(qparams or (None, None)))
        self.nodes.append(Node(op, f"{op}_{len(self.nodes)}", tuple(inputs), value, attributes, tensors))
        return len(self.nodes)

    def qparams(self) -> tuple[float, int]:
        return float(np.float32(self.random.uniform(0.01, 0.1))), int(self.random.choice([0, 3, 128, 255]))

    def kept(self, x: int) -> tuple[float, int] | None:
        value = self.value(x)
        return None if value.scale is None else (value.scale, value.zero_point)

    def real(self, low: float, high: float) -> float:
        return float(np.float32(self.random.uniform(low, high)))

    def channel_scales(self, channels: int, reduction: int) -> dict[str, Any]:
        """Scales that spread a sum of `reduction` products over the codes; one channel is 0, one negative."""
        multiplier = self.random.uniform(0.3, 1.5, channels) / (40.0 * np.sqrt(reduction))
        multiplier *= self.random.choice([-1, 1, 1, 1], channels)
        multiplier[self.random.integers(channels)] *= self.random.integers(2)
        bias = self.random.uniform(0, 255, channels)
        return {"multiplier": multiplier.astype(np.float32), "bias": bias.astype(np.float32)}

    def quantize(self, x: int, scale: float = 0.02, zero_point: int = 128, **range_: int) -> int:
        return self.add("quantize", [x], RANGE | range_, qparams=(float(np.float32(scale)), zero_point))

    def weight(self, *shape: int) -> np.ndarray:
        weight = self.random.integers(-127, 128, shape).astype(np.int8)
        return weight * (self.random.random(shape) < self.random.uniform(0.2, 1))

    def conv2d(
        self,
        x: int,
        channels: int,
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (1, 1, 1, 1),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        residual: int | None = None,
        floats: bool = False,
    ) -> int:
        in_channels = self.value(x).shape[0] // groups
        tensors = {"weight": self.weight(channels, in_channels, *kernel)}
        tensors |= self.channel_scales(channels, in_channels * kernel[0] * kernel[1])
        attributes: dict[str, Any] = {
            "stride": list(stride),
            "padding": list(padding),
            "dilation": list(dilation),
            "groups": groups,
        }
        return self._accumulate("conv2d", x, attributes, tensors, residual, floats)

    def linear(self, x: int, features: int, residual: int | None = None, floats: bool = False) -> int:
        (channels,) = self.value(x).shape
        tensors = {"weight": self.weight(features, channels), **self.channel_scales(features, channels)}
        return self._accumulate("linear", x, {}, tensors, residual, floats)

    def _accumulate(
        self, op: str, x: int, attributes: dict[str, Any], tensors: dict[str, Any], residual: int | None, floats: bool
    ) -> int:
        if floats:
            return self.add(op, [x], attributes, tensors, dtype="f32")
        low, high = sorted(self.random.integers(0, 256, 2).tolist()) if self.random.random() < 0.2 else (0, 255)
        attributes |= {"quant_min": low, "quant_max": high}
        if residual is None:
            return self.add(op, [x], attributes, tensors, qparams=self.qparams())
        attributes["residual_multiplier"] = self.real(-1.5, 1.5)
        return self.add(op, [x, residual], attributes, tensors, qparams=self.qparams())

    def sum(self, a: int, b: int) -> int:
        attributes = {"multiplier_a": self.real(-1, 1), "multiplier_b": self.real(-1, 1), "bias": self.real(0, 255)}
        return self.add("add", [a, b], attributes | RANGE, qparams=self.qparams())

    def concat(self, *inputs: int) -> int:
        same = len({self.kept(i) for i in inputs}) == 1
        return self.add("concat", list(inputs), qparams=self.kept(inputs[0]) if same else None)

    def affine(self, x: int) -> int:
        channels = self.value(x).shape[0]
        tensors = {
            "zero_point": self.random.integers(0, 256, channels).astype(np.uint8),
            "multiplier": self.random.uniform(-1.5, 1.5, channels).astype(np.float32),
            "bias": self.random.uniform(0, 255, channels).astype(np.float32),
        }
        return self.add("affine", [x], RANGE, tensors, qparams=self.qparams())

    def lookup(self, x: int) -> int:
        table = self.random.integers(0, 256, 256).astype(np.uint8)
        return self.add("lookup", [x], {}, {"table": table}, qparams=self.qparams())

    def max_pool2d(self, x: int, kernel: Any, stride: Any, padding: Any, dilation: Any = (1, 1)) -> int:
        attributes = {"kernel": list(kernel), "stride": list(stride), "padding": list(padding)}
        return self.add("max_pool2d", [x], attributes | {"dilation": list(dilation)}, qparams=self.kept(x))

    def mean(self) -> dict[str, Any]:
        return {"multiplier": self.real(-2, 2), "bias": self.real(0, 255), **RANGE}

    def avg_pool2d(self, x: int, kernel: Any, stride: Any, padding: Any, count_include_pad: int) -> int:
        attributes = {"kernel": list(kernel), "stride": list(stride), "padding": list(padding)}
        attributes |= {"count_include_pad": count_include_pad, **self.mean()}
        return self.add("avg_pool2d", [x], attributes, qparams=self.qparams())

    def adaptive_avg_pool2d(self, x: int, rows: int, columns: int) -> int:
        attributes = {"output_size": [rows, columns], **self.mean()}
        return self.add("adaptive_avg_pool2d", [x], attributes, qparams=self.qparams())

    def flatten(self, x: int) -> int:
        return self.add("flatten", [x], dtype=self.value(x).dtype, qparams=self.kept(x))

    def slice(self, x: int, start: Any, stop: Any, step: Any) -> int:
        attributes = {"start": list(start), "stop": list(stop), "step": list(step)}
        return self.add("slice", [x], attributes, qparams=self.kept(x))

    def pad(self, x: int, before: Any, after: Any) -> int:
        return self.add("pad", [x], {"before": list(before), "after": list(after)}, qparams=self.kept(x))

    def dilate(self, x: int, rows: int, columns: int) -> int:
        return self.add("dilate", [x], {"dilation": [rows, columns]}, qparams=self.kept(x))

    def dequantize(self, x: int) -> int:
        return self.add("dequantize", [x], dtype="f32")

    def softmax(self, x: int) -> int:
        return self.add("softmax", [x], dtype="f32")


class RandomGraph:
    """Draws a graph node by node; every value so far may be used again, so many have several consumers."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        shape = (self.int(1, 9), self.int(1, 9), self.int(1, 9))
        kind = self.int(0, 9)
        if kind == 0:
            shape = shape[:1]
        self.sequence = kind == 1
        if self.sequence:
            shape = (shape[0], 1, shape[2])
        self.build = Builder(shape, seed=self.int(0, 2**32 - 1))

    def int(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def ints(self, count: int, low: int, high: int) -> tuple[int, ...]:
        return tuple(self.int(low, high) for _ in range(count))

    def make(self) -> Graph:
        build = self.build
        x = 0
        if len(build.input.shape) == 3 and self.int(0, 9) == 0:
            x = build.flatten(0)
        build.quantize(x, *build.qparams())
        for _ in range(self.int(0, 8)):
            self.node()
        self.finish()
        graph = build.graph()
        if self.sequence and graph.nodes[-1].value.shape[1:2] in ((), (1,)):
            return Graph(Value((build.input.shape[0], build.input.shape[2]), "f32"), graph.nodes)
        return graph

    def pick(self, rank: int | None = None, qparams: bool = True) -> int | None:
        """A u8 value so far, later ones more often."""
        candidates = [
            i
            for i in range(1, len(self.build.nodes) + 1)
            if (value := self.build.value(i)).dtype == "u8"
            and (rank is None or len(value.shape) == rank)
            and (value.scale is not None or not qparams)
        ]
        if not candidates:
            return None
        return candidates[-1 - min(self.int(0, 2 * len(candidates)) // 3, len(candidates) - 1)]

    def alike(self, x: int, *axes: int) -> list[int]:
        """u8 values with the shape of x, or with the same size along `axes` only."""
        shape = self.build.value(x).shape
        found = []
        for i in range(1, len(self.build.nodes) + 1):
            other = self.build.value(i)
            if other.dtype != "u8" or len(other.shape) != len(shape):
                continue
            if all(other.shape[a] == shape[a] for a in (axes or range(len(shape)))):
                found.append(i)
        return found

    def node(self) -> None:
        makers = [self.conv2d, self.conv2d, self.depthwise, self.residual_conv, self.linear, self.add, self.concat]
        makers += [self.affine, self.lookup, self.max_pool, self.avg_pool, self.adaptive, self.flatten, self.slice]
        makers += [self.pad, self.dilate, self.requantize]
        makers[self.int(0, len(makers) - 1)]()

    def windows(self, x: int) -> tuple[Any, Any, Any, Any]:
        """Kernel, stride, padding, dilation that fit the value."""
        _, height, width = self.build.value(x).shape
        kernel, dilation, padding = self.ints(2, 1, 4), self.ints(2, 1, 2), self.ints(4, 0, 3)
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        if extents[0] > height + padding[0] + padding[2] or extents[1] > width + padding[1] + padding[3]:
            kernel = (1, 1)
        return kernel, self.ints(2, 1, 3), padding, dilation

    def conv2d(self) -> None:
        if (x := self.pick(3)) is None:
            return
        channels = self.build.value(x).shape[0]
        groups = self.draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
        kernel, stride, padding, dilation = self.windows(x)
        out_channels = groups * self.int(1, 20 if groups == 1 else 3)
        self.build.conv2d(x, out_channels, kernel, stride, padding, dilation, groups)

    def depthwise(self) -> None:
        if (x := self.pick(3)) is not None:
            channels = self.build.value(x).shape[0]
            self.build.conv2d(x, channels, *self.windows(x), groups=channels)

    def residual_conv(self) -> None:
        if (x := self.pick(3)) is None:
            return
        residual = self.draw(st.sampled_from([i for i in self.alike(x, 1, 2) if self.build.value(i).scale is not None]))
        self.build.conv2d(x, self.build.value(residual).shape[0], residual=residual)

    def linear(self) -> None:
        if (x := self.pick(1)) is None:
            return
        features = self.int(1, 40)
        vectors = [
            i
            for i in range(1, len(self.build.nodes) + 1)
            if self.build.value(i).shape == (features,) and self.build.value(i).scale is not None
        ]
        self.build.linear(x, features, residual=self.draw(st.sampled_from([None, *vectors])))

    def add(self) -> None:
        if (x := self.pick()) is not None:
            others = [i for i in self.alike(x) if self.build.value(i).scale is not None]
            self.build.sum(x, self.draw(st.sampled_from(others)))

    def concat(self) -> None:
        if (x := self.pick(qparams=False)) is not None:
            others = self.alike(x, 1, 2) if len(self.build.value(x).shape) == 3 else self.alike(x)
            parts = [self.draw(st.sampled_from(others)) for _ in range(self.int(0, 3))]
            joined = self.build.concat(x, *parts)
            if self.int(0, 1):
                self.build.affine(joined)

    def affine(self) -> None:
        if (x := self.pick(qparams=False)) is not None:
            self.build.affine(x)

    def lookup(self) -> None:
        if (x := self.pick()) is not None:
            self.build.lookup(x)

    def max_pool(self) -> None:
        if (x := self.pick(3, qparams=False)) is not None:
            kernel, stride, padding, dilation = self.windows(x)
            if min(kernel) > max(padding) and dilation == (1, 1):
                self.build.max_pool2d(x, kernel, stride, padding)
            else:
                self.build.max_pool2d(x, kernel, stride, (0, 0, 0, 0), dilation) if self.fits(
                    x, kernel, dilation
                ) else None

    def fits(self, x: int, kernel: Any, dilation: Any) -> bool:
        sizes = self.build.value(x).shape[1:]
        return all((k - 1) * d < s for k, d, s in zip(kernel, dilation, sizes, strict=True))

    def avg_pool(self) -> None:
        if (x := self.pick(3)) is not None:
            kernel, stride, padding, _ = self.windows(x)
            if min(kernel) > max(padding):
                self.build.avg_pool2d(x, kernel, stride, padding, self.int(0, 1))

    def adaptive(self) -> None:
        if (x := self.pick(3)) is not None:
            self.build.adaptive_avg_pool2d(x, *self.ints(2, 1, 5))

    def flatten(self) -> None:
        if (x := self.pick(3, qparams=False)) is not None:
            flat = self.build.flatten(x)
            if self.build.value(flat).scale is not None and self.int(0, 2):
                self.build.linear(flat, self.int(1, 20))

    def slice(self) -> None:
        if (x := self.pick(3, qparams=False)) is not None:
            sizes = self.build.value(x).shape
            start = [self.int(0, size - 1) for size in sizes]
            stop = [self.int(low + 1, size) for low, size in zip(start, sizes, strict=True)]
            self.build.slice(x, start, stop, self.ints(3, 1, 3))

    def pad(self) -> None:
        if (x := self.pick(3)) is not None:
            self.build.pad(x, self.ints(3, 0, 2), self.ints(3, 0, 2))

    def dilate(self) -> None:
        if (x := self.pick(3)) is not None:
            self.build.dilate(x, *self.ints(2, 1, 3))

    def requantize(self) -> None:
        """Through float32 and back: a convolution's or a flatten's floats, or dequantize."""
        if (x := self.pick()) is None:
            return
        floats = self.build.conv2d(x, self.int(1, 6), floats=True) if self.spatial(x) else self.build.dequantize(x)
        if self.spatial(floats) and self.int(0, 1):
            floats = self.build.flatten(floats)
        self.build.quantize(floats, *self.build.qparams())

    def spatial(self, x: int) -> bool:
        return len(self.build.value(x).shape) == 3

    def finish(self) -> None:
        """A float output: any kind of last node."""
        x = self.pick()
        assert x is not None
        kind = self.int(0, 5)
        if self.spatial(x) and kind <= 2:
            last = self.build.conv2d(x, self.int(1, 20), floats=True) if kind else self.build.dequantize(x)
            if kind < 2:
                return
            last = self.build.flatten(last)
        else:
            flat = self.build.flatten(x) if self.spatial(x) else x
            last = self.build.linear(flat, self.int(1, 20), floats=True) if kind > 1 else self.build.dequantize(flat)
        if kind in (2, 4, 5):
            self.build.softmax(last)


@st.composite
def graphs(draw: Any) -> Graph:
    """Any graph that the rules allow, small."""
    return RandomGraph(draw).make()


def resnet8(seed: int = 0) -> Graph:
    """MLPerf Tiny's image network: 32x32x3, 16-32-64 channels, 12.5 million multiply-adds."""
    b = Builder((3, 32, 32), seed)
    x = b.conv2d(b.quantize(0), 16)
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        y = b.conv2d(x, channels, stride=(stride, stride))
        if stride != 1:
            x = b.conv2d(x, channels, (1, 1), (stride, stride), (0, 0, 0, 0))
        x = b.conv2d(y, channels, residual=x)
    b.linear(b.flatten(b.adaptive_avg_pool2d(x, 1, 1)), 10, floats=True)
    return b.graph()


def ds_cnn(seed: int = 0) -> Graph:
    """MLPerf Tiny's keyword network: 49x10x1, 64 channels, 2.66 million multiply-adds."""
    b = Builder((1, 49, 10), seed)
    x = b.conv2d(b.quantize(0), 64, (10, 4), (2, 2), (5, 1, 5, 1))
    for _ in range(4):
        x = b.conv2d(x, 64, groups=64)
        x = b.conv2d(x, 64, (1, 1), padding=(0, 0, 0, 0))
    b.linear(b.flatten(b.adaptive_avg_pool2d(x, 1, 1)), 12, floats=True)
    return b.graph()
