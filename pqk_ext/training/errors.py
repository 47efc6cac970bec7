"""What can end a training run, each with its own type."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CheckpointError", "DivergedError", "ResumeMismatchError", "RunLockedError", "TrainingInterrupted"]


class CheckpointError(RuntimeError):
    """No checkpoint of a run directory can be read, or a checkpoint could not be written; the message says which."""


class ResumeMismatchError(RuntimeError):
    """The run on disk was started with other settings, data or environment; the message lists every difference."""


class RunLockedError(RuntimeError):
    """Another process is training in the run directory; the message names its PID."""


class DivergedError(RuntimeError):
    """Loss or weights became NaN or infinite; the message names step, phase and the last good checkpoint."""


class TrainingInterrupted(SystemExit):
    """A signal ended training at the end of a step, after a checkpoint; not caught, it ends Python with 128 + signal.

    Attributes:
        checkpoint: the checkpoint written.
        step: optimizer steps done.
    """

    def __init__(self, signal_number: int, step: int, checkpoint: Path) -> None:
        super().__init__(128 + signal_number)
        self.step = step
        self.checkpoint = checkpoint
