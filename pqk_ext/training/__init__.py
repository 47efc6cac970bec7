"""The ready training loop and its crash-safe run directory."""

from __future__ import annotations

from pqk_ext.training.errors import (
    CheckpointError,
    CheckpointNotWrittenError,
    DivergedError,
    LoaderError,
    ProcessesDifferError,
    ProcessLostError,
    ResumeMismatchError,
    RunLockedError,
    TrainingInterrupted,
)
from pqk_ext.training.loop import FitResult, fit
from pqk_ext.training.memory import keep_freed_memory
from pqk_ext.training.resume_check import assert_resume
from pqk_ext.training.trainee import Trainee

__all__ = [
    "CheckpointError",
    "CheckpointNotWrittenError",
    "DivergedError",
    "FitResult",
    "LoaderError",
    "ProcessLostError",
    "ProcessesDifferError",
    "ResumeMismatchError",
    "RunLockedError",
    "Trainee",
    "TrainingInterrupted",
    "assert_resume",
    "fit",
    "keep_freed_memory",
]
