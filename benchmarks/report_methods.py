"""The tables of `benchmarks/results/methods`: one section an experiment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from markdown import Document, folded

from pqk_ext.compare.tables import introduction, pair_lines, row_lines

LONG_TABLE = 12  # rows; longer ones are folded, but the differences are not


def section(name: str, document: Document, folder: str) -> list[str]:
    """Title, tables, and where its commands and picture are.

    Args:
        name: stem of the files.
        document: the summary.
        folder: of the files, from where the text stands.
    """
    rows = row_lines(document)
    if len(document["rows"]) > LONG_TABLE:
        rows = [*folded(f"{len(document['rows'])} rows", rows[:-1]), ""]
    links = f"[Every cell's command]({folder}/{name}.md), [accuracy against bytes]({folder}/{name}.svg)."
    return [f"### {document['title']}", "", *introduction(document), *rows, *pair_lines(document), links, ""]


def report(results: Path, folder: str, names: Sequence[str] = ()) -> str:
    """The experiments of these names, or all for which there are results; then a link to each of the others."""
    lines, others = [], []
    for path in sorted(results.glob("*.json")):
        document = json.loads(path.read_text())
        if not names or path.stem in names:
            lines += section(path.stem, document, folder)
        else:
            others.append(f"- [{document['title']}]({folder}/{path.stem}.md)")
    return "\n".join([*lines, *(["Also:", "", *others, ""] if others else [])])
