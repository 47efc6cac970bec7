"""Where results go: tables for people, JSON for machines, files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pqk_ext.cli.failures import ExitCode, Failure

__all__ = ["check_output", "emit", "kilobytes", "progress_bar", "replace_file", "table"]

_WIDTH_OF_A_FILE = 200


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the process with code 1


def _console() -> Console:
    """Prints what it is given, letter by letter: names in a file must not act as markup."""
    width = None if sys.stdout.isatty() else _WIDTH_OF_A_FILE
    return _Console(width=width, markup=False, highlight=False, emoji=False)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A table; a column is set to the right if its name begins with ``>``."""
    result = Table(title=title, title_justify="left")
    for column in columns:
        right = column.startswith(">")
        result.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        result.add_row(*(str(cell) for cell in row))
    return result


def kilobytes(count: float) -> str:
    """``18432`` becomes ``18.4 kB``."""
    return f"{count / 1000:,.1f} kB"


def check_json(json_path: str | None) -> None:
    """Refuses a ``--json`` target that cannot be written, before the work begins. An older report is replaced."""
    if json_path not in (None, "-"):
        check_output(Path(str(json_path)), force=True)


def emit(values: Mapping[str, Any], json_path: str | None, *shown: Table | str) -> None:
    """Shows a result: tables and lines on stdout and, if asked for, ``values`` as JSON.

    Args:
        values: what a program gets.
        json_path: file for it, ``"-"`` for stdout in place of the tables, or None.
        shown: what a person gets.
    """
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    if json_path == "-":
        sys.stdout.write(text)
        return
    if json_path is not None:
        replace_file(Path(json_path), text.encode())
    console = _console()
    for part in shown:
        if isinstance(part, str):
            print(part)  # a line stays one line, however long
        else:
            console.print(part)


def check_output(path: Path, *, force: bool) -> None:
    """Refuses an output that stands already or cannot be written, before any work is done for it."""
    folder = path.parent
    if path.is_dir():
        raise Failure(ExitCode.ENVIRONMENT, f"{path}: cannot write: it is a directory")
    if path.exists() and not force:
        raise Failure(ExitCode.ENVIRONMENT, f"{path}: exists already; --force replaces it")
    if not folder.is_dir():
        raise Failure(ExitCode.ENVIRONMENT, f"{path}: cannot write: no directory {folder}")
    if not os.access(folder, os.W_OK):
        raise Failure(ExitCode.ENVIRONMENT, f"{path}: cannot write: no permission for {folder}")


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all; a pipe or device is written as it is."""
    from pqk_ext.runtime import replace as whole_file  # not at the top: `pqk --help` needs no kernels

    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        whole_file.replace_file(path, data)
    except OSError as error:
        raise Failure(ExitCode.ENVIRONMENT, f"{path}: cannot write: {error.strerror or error}") from error


def progress_bar() -> Progress:
    """A bar on stderr where that is a terminal, and nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
