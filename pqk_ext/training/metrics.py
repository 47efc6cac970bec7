"""What a run tells while it trains: metrics.jsonl always, TensorBoard where installed, a bar on a terminal."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["MetricsLog", "ProgressBar"]


class MetricsLog:
    """Appends one JSON object a line to ``metrics.jsonl``; the same run writes the same bytes, so no times are in it.

    Args:
        run_dir: directory of the run.
        length: bytes of the file that belong to the state resumed from; the rest is cut off.
        step: step resumed from; later TensorBoard points are hidden.
        tensorboard: also write event files below ``run_dir/tensorboard`` if TensorBoard is installed.

    Raises:
        OSError: the file is shorter than ``length``, or cannot be written.
    """

    def __init__(self, run_dir: Path, length: int, step: int, *, tensorboard: bool) -> None:
        self.path = run_dir / "metrics.jsonl"
        self._file = self.path.open("ab", buffering=0)
        found = os.fstat(self._file.fileno()).st_size
        if found < length:
            raise OSError(f"{self.path}: expected at least {length} bytes, as the checkpoint says, got {found}")
        self._file.truncate(length)
        self._writer: Any = None
        if tensorboard and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends ``values``; numbers among them are points of TensorBoard curves of the same names.

        Raises:
            OSError: the file cannot be written; names it.
        """
        line = {"step": step} | values
        data = memoryview(json.dumps(line).encode() + b"\n")
        try:
            while data:  # a disk that fills takes a part of it first
                data = data[self._file.write(data) or 0 :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._writer.add_scalar(name, value, step)

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
