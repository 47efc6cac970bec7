"""Pieces of Markdown that all tables share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

Document = dict[str, Any]


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def folded(summary: str, lines: list[str]) -> list[str]:
    return ["<details>", f"<summary>{summary}</summary>", "", *lines, "", "</details>"]


def duration(microseconds: float) -> str:
    """Three digits, in us or ms."""
    value, unit = (microseconds / 1000, "ms") if microseconds >= 1000 else (microseconds, "us")
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:#.3g} {unit}"


def ratio(result: Document) -> str:
    """With its 95 % interval."""
    return f"{result['ratio']:.2f} [{result['ratio_low']:.2f}, {result['ratio_high']:.2f}]"


def geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def ceilings(document: Document, isa: str) -> str:
    """One sentence, or nothing."""
    found = document.get("ceilings", {}).get(isa)
    if not found:
        return ""
    units = (
        ("int8_macs", "{:.0f} G int8 multiply-adds"),
        ("float_macs", "{:.0f} G float32 ones"),
        ("l3_read", "{:.0f} GB read from L3"),
        ("copy", "{:.0f} GB copied in memory"),
    )
    parts = [text.format(found[key] / 1e9) for key, text in units if found.get(key)]
    return f"One core's ceilings in the same run ({isa}), a second: {', '.join(parts)}."
