"""The process of one cell: a command line of ``pqk`` that ends when the process that started it is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> int:
    """Runs ``pqk WORDS``; standard input is a pipe whose other end the parent holds and never writes to."""
    from pqk_ext.cli import main as pqk

    threading.Thread(target=_end_with_parent, daemon=True).start()
    return pqk(sys.argv[1:] if words is None else words)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # as if the parent had stopped this cell: training saves and ends
