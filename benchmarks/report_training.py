"""The tables of training: time and memory of a step, and settings of layers chosen by sensitivity."""

from __future__ import annotations

import statistics
from typing import Any

from markdown import Document, table

_BASELINE = "float, channels_last"


def step_section(document: Document) -> list[str]:
    lines: list[str] = []
    for row in document["rows"].values():
        cells = [
            [name, f"{way['ms']:.1f}", f"{way['ratio']:.2f} [{way['interval'][0]:.2f}, {way['interval'][1]:.2f}]"]
            for name, way in row["ways"].items()
        ]
        lines += ["", _title(row), "", *table(["", "ms", f"times {_BASELINE}"], cells)]
    return lines[1:]


def memory_section(document: Document) -> list[str]:
    lines: list[str] = []
    for row in document["rows"].values():
        ways = row["ways"]
        base = ways[_BASELINE]["peak"]
        cells = [
            [name, f"{way['peak'] / 1e6:.1f}", f"{way['peak'] / base:.2f}", f"{way['resident'] / 1e6:.0f}"]
            for name, way in ways.items()
        ]
        header = ["", "tensors, MB", f"times {_BASELINE}", "resident, MB"]
        lines += ["", _title(row), "", *table(header, cells)]
    return lines[1:]


def _title(row: dict[str, Any]) -> str:
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    return f"{row['network']}, batch {row['batch']}, {row['sparsity']:.0%} zeros, {threads}:"


def checkpoint_section(document: Document) -> list[str]:
    rows = [
        [row["network"], f"{row['bytes'] / 1e6:.1f}", f"{row['seconds'] * 1e3:.0f}", f"{row['share']:.3%}"]
        for row in document["rows"].values()
    ]
    return table(["", "MB", "ms", "of a run"], rows)


def allocation_section(document: Document) -> list[str]:
    by_arm: dict[str, list[tuple[Any, Any]]] = {}
    steps = set()
    for key, run in document["runs"].items():
        if "chosen" in run:
            name, length, _ = key.rsplit(", ", 2)
            steps.add(length)
            by_arm.setdefault(name, []).append((run["equal"], run["chosen"]))
    rows = []
    for name, pairs in by_arm.items():
        points = [100 * (chosen["accuracy"] - equal["accuracy"]) for equal, chosen in pairs]
        sizes = [statistics.fmean(pair[i]["bytes"] for pair in pairs) for i in range(2)]
        accuracies = [statistics.fmean(pair[i]["accuracy"] for pair in pairs) for i in range(2)]
        rows.append(
            [
                name,
                f"{len(pairs)}",
                *(f"{accuracy:.1%}, {size / 1000:.1f} kB" for accuracy, size in zip(accuracies, sizes, strict=True)),
                ", ".join(f"{point:+.1f}" for point in points),
            ]
        )
    header = ["equal settings", "seeds", "equal", "chosen for that size", "points, seed by seed"]
    return [*table(header, rows), "", f"{' and '.join(sorted(steps))} a run; accuracy on the test fold."]


def sparse_section(document: Document) -> list[str]:
    """Rows are shapes, columns are sparsities; what a layer of a prepared network takes (kernel "auto")."""
    picked = [row for row in document["rows"].values() if row["kernel"] == "auto" and row["layout"] == "channels_last"]
    lines: list[str] = []
    for threads, batch in sorted({(row["threads"], row["batch"]) for row in picked}):
        for step, title in (("training", "forward and backward"), ("forward", "forward alone")):
            rows = [row for row in picked if (row["threads"], row["batch"], row["step"]) == (threads, batch, step)]
            if rows:
                of = f"{threads} thread{'s' if threads > 1 else ''}, batch {batch}, {title}"
                lines += ["", f"Dense time / our time, {of}:", "", *_by_sparsity(rows)]
    return lines[1:]


def _by_sparsity(rows: list[dict[str, Any]]) -> list[str]:
    sparsities = sorted({row["sparsity"] for row in rows})
    by_shape: dict[str, dict[float, dict[str, Any]]] = {}
    for row in rows:
        by_shape.setdefault(row["shape"], {})[row["sparsity"]] = row
    cells = [
        [shape, *(f"{found[s]['ratio']:.2f}" if s in found else "" for s in sparsities)]
        for shape, found in by_shape.items()
    ]
    return table(["", *(f"{s:.0%} zeros" for s in sparsities)], cells)
