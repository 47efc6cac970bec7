"""What can end a training run, each with its own type."""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "CheckpointError",
    "CheckpointNotWrittenError",
    "DivergedError",
    "LoaderError",
    "ProcessLostError",
    "ProcessesDifferError",
    "ResumeMismatchError",
    "RunLockedError",
    "TrainingInterrupted",
]


class CheckpointError(RuntimeError):
    """No checkpoint of a run directory can be read, or a checkpoint could not be written; the message says which."""


class CheckpointNotWrittenError(CheckpointError):
    """The file system refused a checkpoint; those before it are as they were."""


class ResumeMismatchError(RuntimeError):
    """The run on disk was started with other settings, data or environment; the message lists every difference."""


class RunLockedError(RuntimeError):
    """Another process is training in the run directory; the message names its PID."""


class DivergedError(RuntimeError):
    """Loss or weights became NaN or infinite; the message names step, phase and the last good checkpoint."""


class LoaderError(RuntimeError):
    """A process that loads data was killed; the message names it and the last good checkpoint."""


class ProcessLostError(RuntimeError):
    """One of the processes that train together ended or does not answer; the message names it."""


class ProcessesDifferError(RuntimeError):
    """The processes that train together were started differently, or do not hold the same bits; names what differs."""


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
