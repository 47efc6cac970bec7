"""Exported files beside a run: size by purpose, time on this machine, accuracy on the run's data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pqk_ext.report.pictures import short_name
from pqk_ext.report.svg import COLOURS, INK, Picture, legend_below, new_figure, render, styled
from pqk_ext.runtime import format, load
from pqk_ext.timing import interleaved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ExportedFile", "Samples", "measure", "pictures"]

Samples = Callable[[], tuple[NDArray[np.float32], NDArray[np.int64]]]

_ROUNDS = 25
_BATCH = 256
# What parts of a file are for, as a reader of the report would say it; see `runtime.format.PARTS`.
_PURPOSES = {
    "weight values": ("values", "codebook"),
    "their positions": ("indices",),
    "code tables": ("tables", "chunks", "header", "maps"),
    "scales, biases": ("scales",),
    "graph": ("file header",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """A ``.pqk`` file, measured.

    Attributes:
        path: the file.
        total_bytes: its size.
        purposes: what for -> bytes.
        weights: number of weights, zeros included.
        sparsity: share of zeros.
        float_bytes: of the same weights as dense float32; a network's file holds a little more.
        int8_bytes: of the same weights as dense int8.
        latency_us: least time of a call with one sample on one thread, here and now.
        accuracy: on the validation data of the run, or None where they are not at hand.
        sha256: of the file.
    """

    path: Path
    total_bytes: int
    purposes: dict[str, int]
    weights: int
    sparsity: float
    float_bytes: int
    int8_bytes: int
    latency_us: float
    accuracy: float | None
    sha256: str


def measure(path: Path, samples: Samples | None) -> ExportedFile:
    """Reads and times a file, and scores it if there are ``samples``.

    Raises:
        FormatError: no whole ``.pqk`` file.
        OSError: it cannot be read.
        ValueError: the samples do not fit the network.
    """
    info = format.inspect(path)
    network = load(path, num_threads=1)
    x = np.random.default_rng(0).standard_normal((1, *network.input_shape)).astype(np.float32)
    out = network(x)
    seconds = interleaved([lambda: network.run(x, out)], _ROUNDS)[0]
    accuracy = None
    if samples is not None:
        inputs, labels = samples()
        right = 0
        for start in range(0, len(inputs), _BATCH):
            chosen = slice(start, start + _BATCH)
            right += int((network(inputs[chosen]).argmax(1) == labels[chosen]).sum())
        accuracy = right / len(labels)
    count = sum(weight.count for weight in info.weights)
    nonzeros = sum(weight.nonzeros for weight in info.weights)
    purposes = {name: sum(info.parts.get(part, 0) for part in parts) for name, parts in _PURPOSES.items()}
    return ExportedFile(
        path=path,
        total_bytes=info.total_bytes,
        purposes=purposes,
        weights=count,
        sparsity=1 - nonzeros / max(1, count),
        float_bytes=4 * count,
        int8_bytes=count,
        latency_us=1e6 * min(seconds),
        accuracy=accuracy,
        sha256=info.sha256,
    )


def pictures(files: Sequence[ExportedFile]) -> list[Picture]:
    """Bytes by purpose beside dense weights; and accuracy, size and latency side by side."""
    return [_sizes(files), _trade(files)] if files else []


@styled
def _sizes(files: Sequence[ExportedFile]) -> Picture:
    first = files[0]
    names = ["weights as float32", "weights as int8", *(short_name(file.path.name) for file in files)]
    totals = [first.float_bytes, first.int8_bytes, *(file.total_bytes for file in files)]
    figure, axes = new_figure(1.0 + 0.34 * len(names))
    axes.barh([0, 1], [total / 1000 for total in totals[:2]], 0.6, color=COLOURS[5], alpha=0.45)
    left = [0.0] * len(files)
    rows = range(2, len(names))
    for purpose, colour in zip(_PURPOSES, COLOURS, strict=False):
        widths = [file.purposes[purpose] / 1000 for file in files]
        axes.barh(rows, widths, 0.6, left=left, color=colour, label=purpose)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, total in enumerate(totals):
        label = f"{total / 1000:,.1f} kB" + (f", {first.float_bytes / total:.1f}x less" if row else "")
        _write(axes, total / 1000, row, label)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1.3 * max(totals) / 1000)
    axes.grid(False, axis="y")
    axes.set_xlabel("kB")
    legend_below(figure, 3)
    text = "Bytes: " + ", ".join(f"{name} {total}" for name, total in zip(names, totals, strict=True)) + "."
    return render("sizes", "Size", text, figure)


def _write(axes: Axes, x: float, row: int, text: str) -> None:
    axes.annotate(text, (x, row), xytext=(4, 0), textcoords="offset points", va="center", color=INK, fontsize=9)


@styled
def _trade(files: Sequence[ExportedFile]) -> Picture:
    panels = [("kB", [file.total_bytes / 1000 for file in files]), ("µs a sample", [file.latency_us for file in files])]
    if all(file.accuracy is not None for file in files):
        panels.insert(0, ("% right", [100 * (file.accuracy or 0.0) for file in files]))
    figure, plots = new_figure(0.9 + 0.34 * len(files), len(panels), sharey=True)
    for axes, (unit, values), colour in zip(plots, panels, COLOURS, strict=False):
        axes.barh(range(len(files)), values, 0.6, color=colour, alpha=0.75)
        for row, value in enumerate(values):
            _write(axes, 0, row, f"{value:.4g}")
        axes.set_title(unit)
        axes.grid(False)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=3)
    plots[0].set_yticks(range(len(files)), [short_name(file.path.name) for file in files])
    plots[0].set_ylim(len(files) - 0.5, -0.5)
    parts = [f"{f.path.name}: " + ", ".join(f"{v[i]:.4g} {unit}" for unit, v in panels) for i, f in enumerate(files)]
    return render("trade", "Accuracy, size, latency", "; ".join(parts) + ".", figure)
