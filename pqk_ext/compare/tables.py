"""A summary as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["introduction", "pair_cells", "pair_lines", "row_cells", "row_lines", "to_markdown"]

Summary = Mapping[str, Any]
Table = tuple[list[str], list[list[str]]]
"""Names of the columns, and the rows."""


def to_markdown(summary: Summary, picture: str | None = None) -> str:
    """A page: title, tables, failures, and how each cell is run again.

    Args:
        summary: what :func:`pqk_ext.compare.run_experiment` gives.
        picture: name of the picture beside the page, if there is one.
    """
    lines = [f"# {summary['title']}", "", *introduction(summary), *row_lines(summary), *pair_lines(summary)]
    lines += _troubles(summary)
    lines += [f"![Accuracy against bytes]({picture})", ""] if picture is not None else []
    return "\n".join([*lines, *_commands(summary)]).rstrip() + "\n"


def introduction(summary: Summary) -> list[str]:
    """Lines of Markdown: what it is about, and what the figures were taken on."""
    lines = [summary["about"].strip(), ""] if summary["about"] else []
    return [*lines, _conditions(summary), ""]


def row_lines(summary: Summary) -> list[str]:
    """One row an arm and network, as Markdown."""
    return [*_markdown(*row_cells(summary)), ""]


def pair_lines(summary: Summary) -> list[str]:
    """One row a pair, as Markdown; nothing if there is none."""
    if not summary["pairs"]:
        return []
    title = "Differences seed by seed in points, with the 95 % interval of their mean (Student's t):"
    return [title, "", *_markdown(*pair_cells(summary)), ""]


def _conditions(summary: Summary) -> str:
    """What the figures were taken on, in one paragraph."""
    done = sum(cell["state"] == "done" for cell in summary["cells"])
    count = "" if summary["complete"] else f" ({done} of {len(summary['cells'])} cells so far)"
    seeds = f"{summary['seeds']} seed{'s' if summary['seeds'] > 1 else ''}{count}"
    machine, versions = summary["machine"], summary["versions"]
    device = summary.get("device", "cpu")
    trained = "" if device == "cpu" else f"Trained on {device}. "
    text = (
        f"{seeds}, mean \u00b1 standard deviation; accuracy after the last step, of the written file. {trained}"
        f"{machine['cpu']}, pqk_ext {versions['pqk_ext']}, torch {versions['torch']}."
    )
    if summary["latency"] is not None:
        text += (
            f" Latency: one sample on one thread, least of {summary['latency']['rounds']} interleaved rounds, while "
            f"other programs used {summary['latency']['others']:.1f} CPUs."
        )
    return text


def row_cells(summary: Summary) -> Table:
    """One row an arm and network."""
    header = [
        "",
        "seeds",
        "test",
        "validation",
        "bytes",
        "zeros",
        "MACs",
        "effective MACs",
        "latency",
        "steps",
        "extra steps",
        "time",
    ]
    partial = any(len(row["seeds"]) != summary["seeds"] for row in summary["rows"])
    rows = [
        [
            row["row"],
            str(len(row["seeds"])) if partial else "",
            _accuracy(row.get("test_accuracy")),
            _accuracy(row.get("validation_accuracy")),
            _number(row.get("bytes"), 1, 0),
            _number(row.get("sparsity"), 100, 1, " %"),
            _number(row.get("macs"), 1e-6, 2, " M"),
            _number(row.get("effective_macs"), 1e-6, 2, " M"),
            _number(row.get("latency_us"), 1, 1, " us"),
            _number(row.get("steps"), 1, 0),
            _number(row.get("extra_steps"), 1, 0),
            _number(row.get("seconds"), 1, 0, " s"),
        ]
        for row in summary["rows"]
    ]
    return _without_empty_columns(header, rows)


def pair_cells(summary: Summary) -> Table:
    """One row a pair."""
    rows = []
    for pair in summary["pairs"]:
        test = pair.get("test_accuracy")
        if test is None:
            continue
        ratio = f"{pair['bytes_ratio']:.2f}" if "bytes_ratio" in pair else ""
        validation = _difference(pair["validation_accuracy"]) if "validation_accuracy" in pair else ""
        better = f"{test['better']} of {test['n']}"
        rows.append([f"{pair['first']} \u2212 {pair['second']}", _difference(test), better, validation, ratio])
    return _without_empty_columns(["", "test", "seeds better", "validation", "bytes, ratio"], rows)


def _accuracy(spread: Mapping[str, Any] | None) -> str:
    """``91.25 +- 0.40 %``, or nothing."""
    if spread is None:
        return ""
    deviation = "" if spread["sd"] is None else f" \u00b1 {100 * spread['sd']:.2f}"
    return f"{100 * spread['mean']:.2f}{deviation} %"


def _difference(found: Mapping[str, Any]) -> str:
    """``+0.52 [+0.11, +0.93]`` in points; bold if the interval of three seeds or more leaves 0 out."""
    text = f"{100 * found['mean']:+.2f}"
    if found["low"] is None:
        return text
    text += f" [{100 * found['low']:+.2f}, {100 * found['high']:+.2f}]"
    sure = found["n"] > 2 and (found["low"] > 0 or found["high"] < 0)  # two seeds can agree to the digit by chance
    return f"**{text}**" if sure else text


def _commands(summary: Summary) -> list[str]:
    """How each cell is run again."""
    lines = ["## Commands", "", "Each cell, run once more in a directory of its own:", ""]
    for name in summary["arms"]:
        cells = [cell for cell in summary["cells"] if cell["arm"] == name]
        lines += [f"{name}:", "", "```sh", *(cell["command"] for cell in cells), "```", ""]
    return lines


def _troubles(summary: Summary) -> list[str]:
    failed = [cell for cell in summary["cells"] if cell["state"] == "failed"]
    if not failed:
        return []
    return ["Failed:", "", *(f"- {cell['arm']}, seed {cell['seed']}: {cell['error']}" for cell in failed), ""]


def _number(spread: Mapping[str, Any] | None, factor: float, digits: int, unit: str = "") -> str:
    return "" if spread is None else f"{factor * spread['mean']:,.{digits}f}{unit}"


def _without_empty_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
