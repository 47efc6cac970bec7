"""Runs cells in processes of their own, some at a time, and ends them with this one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

from pqk_ext.compare.cells import Cell

__all__ = ["PROGRAM", "Ended", "run_cells"]

# -P: not the package of the current folder, which may be a source tree without built libraries.
PROGRAM = (sys.executable, "-P", "-c", "import sys; from pqk_ext.compare.cell import main; sys.exit(main())")

_POLL_SECONDS = 0.1
_SAID = 4000  # bytes of a log's end in which the reason of a failure is looked for
# One thread a cell: they are side by side, and a thread count is part of what an exact resume depends on.
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# Kernels are not chosen by times that were taken while other cells ran.
_ENVIRONMENT = _THREADS | {"PQK_KERNEL_TABLE": ""}


class Ended:
    """A cell that has ended: ``error`` is None, or why it has no result."""

    def __init__(self, cell: Cell, seconds: float, error: str | None) -> None:
        self.cell, self.seconds, self.error = cell, seconds, error


def run_cells(
    cells: Iterable[Cell],
    jobs: int,
    on_start: Callable[[Cell], None],
    on_end: Callable[[Ended], None],
    *,
    program: Sequence[str] = PROGRAM,
) -> None:
    """Runs all cells, at most ``jobs`` at a time; a cell that fails does not stop the others.

    An exception such as that of Ctrl-C stops the cells that are running, each after its present step and a
    checkpoint, and waits for them; a second one ends them at once.

    Args:
        cells: in the order of their beginning.
        jobs: processes at a time.
        on_start: called when a cell begins.
        on_end: called when it has ended.
        program: words of a command that gets those of the cell.
    """
    waiting, running = list(cells), list[_Process]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                on_start(cell)
                running.append(_Process(cell, program))
            time.sleep(_POLL_SECONDS)
            for process in [process for process in running if process.poll() is not None]:
                running.remove(process)
                on_end(process.ended())
    except BaseException:
        _stop(running)
        raise


def _stop(running: Sequence[_Process]) -> None:
    try:
        for process in running:
            process.popen.terminate()
        for process in running:
            process.popen.wait()
    finally:
        for process in running:
            process.kill()


class _Process:
    """A cell that is running. It has a process group of its own: signals of the terminal reach it only from here."""

    def __init__(self, cell: Cell, program: Sequence[str]) -> None:
        self.cell, self.started = cell, time.monotonic()
        cell.directory.parent.mkdir(parents=True, exist_ok=True)
        with cell.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [*program, *cell.words],
                stdin=subprocess.PIPE,  # closed when this process ends, however that happens
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | _ENVIRONMENT,
                process_group=0,
            )

    def poll(self) -> int | None:
        return self.popen.poll()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self._close()

    def _close(self) -> None:
        pipe: IO[bytes] | None = self.popen.stdin
        assert pipe is not None, "asked for above"
        with contextlib.suppress(BrokenPipeError):
            pipe.close()

    def ended(self) -> Ended:
        self._close()
        error = None
        if self.popen.returncode != 0:
            error = f"exit code {self.popen.returncode}: {_reason(self.cell.log)}"
        elif not self.cell.done:
            error = f"{self.cell.directory}: no result.json was written"
        return Ended(self.cell, time.monotonic() - self.started, error)


def _reason(log: Path) -> str:
    """The last line that says what was wrong."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _SAID))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("pqk: error: ")]
    if errors:
        return errors[-1].removeprefix("pqk: error: ")
    return lines[-1] if lines else "it said nothing"
