"""What ends a command early, as an exit code and one line."""

from __future__ import annotations

import contextlib
import enum
import os
import sys
from collections.abc import Iterator

from pqk_ext.errors import DataError, FormatError

__all__ = ["ExitCode", "Failure", "classify", "reading"]


class ExitCode(enum.IntEnum):
    """Exit codes of ``pqk``; 130 and 143 say that SIGINT or SIGTERM ended it."""

    FINE = 0
    FAILED = 1  # training diverged, or a fault in this program
    USAGE = 2  # a wrong command line or configuration
    BAD_FILE = 3  # a damaged, foreign or missing input
    ENVIRONMENT = 4  # an output that exists or cannot be written, a lock, a broken installation
    MISMATCH = 5  # a run on disk that was started otherwise


class Failure(Exception):
    """Ends the command with ``code`` after one line on stderr."""

    def __init__(self, code: ExitCode, message: str) -> None:
        self.code = code
        super().__init__(message)


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what goes wrong while ``path`` is read into a :class:`Failure` that names it."""
    try:
        yield
    except OSError as error:
        raise Failure(ExitCode.BAD_FILE, f"{path}: cannot read: {error.strerror or error}") from error
    except FormatError as error:
        raise Failure(ExitCode.BAD_FILE, f"{path}: {error}") from error


# Modules that are slow to import are looked at only if the failed command has imported them already.
_LATE_CODES = (
    ("pqk_ext.training.errors", "ResumeMismatchError", ExitCode.MISMATCH),
    ("pqk_ext.training.errors", "CheckpointNotWrittenError", ExitCode.ENVIRONMENT),
    ("pqk_ext.training.errors", "CheckpointError", ExitCode.BAD_FILE),
    ("pqk_ext.training.errors", "LoaderError", ExitCode.ENVIRONMENT),
    ("pqk_ext.training.errors", "ProcessLostError", ExitCode.ENVIRONMENT),
    ("pqk_ext.training.errors", "ProcessesDifferError", ExitCode.USAGE),
    ("pqk_ext.training.errors", "RunLockedError", ExitCode.ENVIRONMENT),
    ("pqk_ext.training.errors", "DivergedError", ExitCode.FAILED),
    ("pqk_ext.preparation", "UnsupportedOperator", ExitCode.USAGE),
)


def classify(error: BaseException) -> tuple[int, str]:
    """Exit code and message of any exception that ended a command."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Failure):
        return error.code, message
    for module, name, code in _LATE_CODES:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return code, message
    if isinstance(error, DataError | FormatError):
        return ExitCode.BAD_FILE, message
    if isinstance(error, MemoryError):
        return ExitCode.ENVIRONMENT, f"out of memory: {message}"
    if isinstance(error, OSError | ImportError):
        return ExitCode.ENVIRONMENT, message
    if isinstance(error, ValueError | TypeError):
        return ExitCode.USAGE, message
    return ExitCode.FAILED, f"{type(error).__name__}: {message} (pqk --debug ... shows where)"
