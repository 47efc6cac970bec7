"""The tables of `benchmarks/results/methods`: one section an experiment."""

from __future__ import annotations

import json
from pathlib import Path

from markdown import Document, folded

from pqk_ext.compare.tables import tables

LONG_TABLE = 40  # lines; longer ones are folded


def section(name: str, document: Document, folder: str) -> list[str]:
    """Title, tables, and where its commands and picture are.

    Args:
        name: stem of the files.
        document: the summary.
        folder: of the files, from where the text stands.
    """
    lines = tables(document)
    if len(lines) > LONG_TABLE:
        lines = [*folded(f"{len(document['rows'])} rows, {len(document['pairs'])} differences", lines), ""]
    links = f"[Every cell's command]({folder}/{name}.md), [accuracy against bytes]({folder}/{name}.svg)."
    return [f"### {document['title']}", "", *lines, links, ""]


def report(results: Path, folder: str) -> str:
    """All experiments for which there are results, by name."""
    lines: list[str] = []
    for path in sorted(results.glob("*.json")):
        lines += section(path.stem, json.loads(path.read_text()), folder)
    return "\n".join(lines)
