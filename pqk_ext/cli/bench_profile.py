"""The part of ``pqk bench`` that looks at single layers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pqk_ext.cli.output import table

if TYPE_CHECKING:
    from pqk_ext.runtime import Model
    from pqk_ext.runtime.profile import LayerCost, LayerTime

__all__ = ["Profile", "launches", "measure"]

_SECONDS = 0.5  # spent on the layers, and as long on whole calls,
_TURNS = 10  # in turns, so that both meet the machine's best moments


@dataclass(frozen=True)
class Profile:
    """Least times of one sample on one thread, and the ceiling measured beside them.

    Attributes:
        isa: instruction set of the kernels.
        layers: every step of the network; the time of each includes one reading of the clock, some 20 ns.
        call_seconds: one call through Python, start to end.
        empty_call_seconds: a call with no sample: what Python and the checks of arguments take of it.
        peak: int8 multiply-accumulates per second that the core can do.
    """

    isa: str
    layers: list[LayerTime]
    call_seconds: float
    empty_call_seconds: float
    peak: float

    @property
    def layer_seconds(self) -> float:
        return sum(layer.seconds for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.cost.macs for layer in self.layers)

    @property
    def macs_per_second(self) -> float:
        """Of the whole call."""
        return self.macs / self.call_seconds

    def values(self) -> dict[str, Any]:
        """For JSON; times in microseconds, rates in 10^9 multiply-accumulates per second."""
        return {
            "peak_gmacs": self.peak / 1e9,
            "call_us": 1e6 * self.call_seconds,
            "sum_of_layers_us": 1e6 * self.layer_seconds,
            "overhead_us": 1e6 * (self.call_seconds - self.layer_seconds),
            "empty_call_us": 1e6 * self.empty_call_seconds,
            "macs": self.macs,
            "gmacs": self.macs_per_second / 1e9,
            "fraction_of_peak": self.macs_per_second / self.peak,
        }

    def layer_values(self) -> list[dict[str, Any]]:
        """For JSON, one for each layer."""
        return [self._layer_values(layer) for layer in self.layers]

    def _layer_values(self, layer: LayerTime) -> dict[str, Any]:
        cost = layer.cost
        return {
            "node": cost.node,
            "op": cost.op,
            "kernel": layer.kernel,
            "isa": self.isa,
            "input_shape": list(cost.input_shape),
            "output_shape": list(cost.output_shape),
            "window": None if cost.kernel is None else list(cost.kernel),
            "stride": None if cost.stride is None else list(cost.stride),
            "groups": cost.groups,
            "density": cost.density,
            "block_density": cost.block_density,
            "us": 1e6 * layer.seconds,
            "share": layer.seconds / self.layer_seconds,
            "macs": cost.macs,
            "gmacs": layer.macs_per_second / 1e9,
            "fraction_of_peak": layer.macs_per_second / self.peak,
            "memory_bytes": cost.memory_bytes,
        }

    def table(self) -> Any:
        """For people: a row for each layer, their sum, what a call costs besides, a call without samples, the call."""
        title = (
            f"Layers on {self.isa}: one sample, one thread, least times. "
            f"Peak of this core in this run: {self.peak / 1e9:.0f} GMAC/s"
        )
        columns = ("node", "operator", "kernel", "shape", ">density", ">us", ">share", ">MMAC", ">GMAC/s", ">of peak")
        rows = [self._row(layer) for layer in self.layers]
        overhead = self.call_seconds - self.layer_seconds
        memory = sum(layer.cost.memory_bytes for layer in self.layers)
        total = (f"{1e6 * self.layer_seconds:.2f}", "100.0%", *self._rates(self.macs, self.layer_seconds), _kb(memory))
        call = (f"{1e6 * self.call_seconds:.2f}", "", *self._rates(self.macs, self.call_seconds), "")
        rows += [
            ("sum of layers", "", "", "", "", *total),
            ("overhead of the call", "", "", "", "", f"{1e6 * overhead:.2f}", *[""] * 5),
            ("an empty call", "", "", "", "", f"{1e6 * self.empty_call_seconds:.2f}", *[""] * 5),
            ("call", "", "", "", "", *call),
        ]
        return table(title, (*columns, ">kB"), rows)

    def _row(self, layer: LayerTime) -> tuple[object, ...]:
        cost = layer.cost
        return (
            cost.node,
            cost.op,
            layer.kernel,
            shape_text(cost),
            _density(cost),
            f"{1e6 * layer.seconds:.2f}",
            f"{layer.seconds / self.layer_seconds:.1%}",
            *self._rates(cost.macs, layer.seconds),
            _kb(cost.memory_bytes),
        )

    def _rates(self, macs: int, seconds: float) -> tuple[str, str, str]:
        if macs == 0:
            return "", "", ""
        return f"{macs / 1e6:.3f}", f"{macs / seconds / 1e9:.1f}", f"{macs / seconds / self.peak:.1%}"


def launches(network: Model, x: Any) -> tuple[list[dict[str, Any]], Any]:
    """What each step of a network on a GPU takes in a launch of its own: for JSON, and for people."""
    steps = network.profile(x[:1], 100)
    total = sum(seconds for _, _, seconds in steps)
    rows = [(node, kernel, f"{1e6 * seconds:.2f}", f"{seconds / total:.1%}") for node, kernel, seconds in steps]
    title = f"Steps on {network.isa}: one sample, each in a launch of its own, least times by the GPU's clock"
    values = [{"node": node, "kernel": kernel, "us": 1e6 * seconds} for node, kernel, seconds in steps]
    return values, table(title, ("node", "kernel", ">us", ">share"), rows)


def measure(network: Model, x: Any) -> Profile:
    """Times the layers and the whole call for the first sample of ``x``, on one thread."""
    from pqk_ext import _core, runtime
    from pqk_ext.runtime.profile import layer_times

    alone = network if network.num_threads == 1 else runtime.Model.from_graph(network.graph)
    x = x[:1]
    out = alone(x)
    once = sum(seconds for _, _, seconds in alone.profile(x, 3))
    repeats = min(5000, max(3, round(_SECONDS / (_TURNS * once))))
    call, steps = math.inf, alone.profile(x, 1)
    for _ in range(_TURNS):
        call = min(call, _least_seconds(lambda: alone.run(x, out), repeats))
        again = alone.profile(x, repeats)
        steps = [(node, kernel, min(a, b)) for (node, kernel, a), (_, _, b) in zip(steps, again, strict=True)]
    empty = _least_seconds(lambda: alone.run(x[:0], out[:0]), 1000)
    return Profile(alone.isa, layer_times(alone.graph, steps), call, empty, _core.int8_peak())


def _least_seconds(call: Callable[[], object], repeats: int) -> float:
    """Of single calls, as the layers are timed: means over rounds would find slower moments."""
    least = math.inf
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - started)
    return least


def shape_text(cost: LayerCost) -> str:
    """``16x32x32 -> 32x16x16, 3x3 / 2, 4 groups``; depthwise for as many groups as channels."""
    text = f"{_product(cost.input_shape)} -> {_product(cost.output_shape)}"
    if cost.kernel is not None:
        text += f", {_product(cost.kernel)}"
        if cost.stride is not None and cost.stride != (1, 1):
            rows, columns = cost.stride
            text += f" / {rows}" if rows == columns else f" / {rows}x{columns}"
    if cost.groups > 1:
        text += ", depthwise" if cost.groups == cost.input_shape[0] else f", {cost.groups} groups"
    return text


def _product(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))


def _density(cost: LayerCost) -> str:
    """Of weights and, where it says something else, of blocks of 4 input channels."""
    if cost.density is None or cost.block_density is None:
        return ""
    weights, blocks = f"{cost.density:.1%}", f"{cost.block_density:.1%}"
    return weights if weights == blocks else f"{weights} (1x4: {blocks})"


def _kb(count: int) -> str:
    return f"{count / 1000:.1f}"
