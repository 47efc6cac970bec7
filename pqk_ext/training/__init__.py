"""The ready training loop and its crash-safe run directory."""

from __future__ import annotations

from pqk_ext.training.errors import (
    CheckpointError,
    DivergedError,
    ResumeMismatchError,
    RunLockedError,
    TrainingInterrupted,
)
from pqk_ext.training.loop import FitResult, fit

__all__ = [
    "CheckpointError",
    "DivergedError",
    "FitResult",
    "ResumeMismatchError",
    "RunLockedError",
    "TrainingInterrupted",
    "fit",
]
