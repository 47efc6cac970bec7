"""Accuracy against bytes: each row with its deviations, and the front of those that no other row beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pqk_ext.report.svg import COLOURS, INK, MUTED, legend_below, new_figure, render, standalone, styled

__all__ = ["pareto_front", "to_svg"]

_MARKERS = "osD^vP"
_HEIGHT = 3.4
_LEGEND_LINE = 0.17  # inches
_COLUMNS = 2
_WIDE = 8  # largest over smallest, from which the axis of bytes is logarithmic

Point = tuple[float, float]


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points (bytes, accuracy) that no other is at least as small and as accurate as; by bytes."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


@styled
def to_svg(summary: Mapping[str, Any]) -> str | None:
    """The picture as an SVG file, or None if no row has bytes and accuracy. Needs matplotlib."""
    rows = [row for row in summary["rows"] if "bytes" in row and "test_accuracy" in row]
    if not rows:
        return None
    points = [(row["bytes"]["mean"] / 1000, 100 * row["test_accuracy"]["mean"]) for row in rows]
    front = pareto_front(points)
    figure, axes = new_figure(_HEIGHT + _LEGEND_LINE * -(-len(rows) // _COLUMNS))
    axes.plot(*zip(*(points[i] for i in front), strict=True), color=MUTED, linewidth=1.0, zorder=1)
    for index, (row, (x, y)) in enumerate(zip(rows, points, strict=True)):
        axes.errorbar(
            x,
            y,
            xerr=(row["bytes"]["sd"] or 0.0) / 1000,
            yerr=100 * (row["test_accuracy"]["sd"] or 0.0),
            fmt=_MARKERS[index // len(COLOURS) % len(_MARKERS)],
            color=COLOURS[index % len(COLOURS)],
            markeredgecolor=INK if index in front else "none",
            markersize=5,
            capsize=2,
            elinewidth=0.9,
            label=row["row"],
        )
    sizes = [x for x, _ in points]
    if max(sizes) > _WIDE * min(sizes):
        axes.set_xscale("log")
    axes.set_xlabel("kB, whole file")
    axes.set_ylabel("% right, test")
    legend_below(figure, _COLUMNS)
    best = ", ".join(rows[i]["row"] for i in front)
    text = (
        "Mean and standard deviation over the seeds. "
        + "; ".join(f"{row['row']}: {x:.2f} kB, {y:.2f} %" for row, (x, y) in zip(rows, points, strict=True))
        + f". No other row is as small and as accurate as {best}."
    )
    return standalone(render("pareto", summary["title"], text, figure))
