"""What a run tells while it trains: lines of JSON always, TensorBoard where installed, a bar on a terminal."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

__all__ = ["JsonLines", "MetricsLog", "ProgressBar"]


class JsonLines:
    """A file that grows by one JSON object a line. Who writes to it puts no times in: the same run, the same bytes.

    Args:
        path: the file; made if absent.
        length: bytes of it that belong to the state resumed from; the rest is cut off.

    Raises:
        OSError: the file is shorter than ``length``, or cannot be written.
    """

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        found = os.fstat(self._file.fileno()).st_size
        if found < length:
            raise OSError(f"{path}: expected at least {length} bytes, as the checkpoint says, got {found}")
        self._file.truncate(length)

    def write(self, values: dict[str, Any]) -> None:
        """Appends a line.

        Raises:
            OSError: the file cannot be written; names it.
        """
        data = memoryview(json.dumps(values).encode() + b"\n")
        try:
            while data:  # a disk that fills takes a part of it first
                data = data[self._file.write(data) or 0 :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def sync(self) -> int:
        """Makes the lines durable; gives the file's length for the checkpoint.

        Raises:
            OSError: the file system refused; names the file.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


class MetricsLog:
    """``metrics.jsonl``, and TensorBoard's event files where that is installed.

    Args:
        run_dir: directory of the run.
        length: bytes of ``metrics.jsonl`` that belong to the state resumed from; the rest is cut off.
        step: step resumed from; later TensorBoard points are hidden.
        tensorboard: also write event files below ``run_dir/tensorboard`` if TensorBoard is installed.

    Raises:
        OSError: the file is shorter than ``length``, or cannot be written.
    """

    def __init__(self, run_dir: Path, length: int, step: int, *, tensorboard: bool) -> None:
        self._lines = JsonLines(run_dir / "metrics.jsonl", length)
        self._writer: Any = None
        if tensorboard and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends ``values``; numbers among them are points of TensorBoard curves of the same names.

        Raises:
            OSError: the file cannot be written; names it.
        """
        self._lines.write({"step": step} | values)
        self.draw(step, values)

    def draw(self, step: int, values: dict[str, Any], histograms: Callable[[], dict[str, Tensor]] = dict) -> None:
        """Adds points, and histograms of the tensors that ``histograms`` gives, to TensorBoard alone."""
        if self._writer is None:
            return
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        for name, tensor in histograms().items():
            self._writer.add_histogram(name, tensor, step)

    def sync(self) -> int:
        """Makes the lines durable; gives the file's length for the checkpoint."""
        return self._lines.sync()

    def close(self) -> None:
        self._lines.close()
        if self._writer is not None:
            self._writer.close()


class ProgressBar:
    """One line on a terminal's stderr; nothing where stderr is a file or ``enabled`` is false."""

    def __init__(self, total: int, step: int, *, enabled: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._progress.add_task("training", total=total, completed=step)
        self._progress.start()

    def update(self, step: int, description: str) -> None:
        self._progress.update(self._task, completed=step, description=description)

    def close(self) -> None:
        self._progress.stop()
