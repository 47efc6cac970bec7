"""SIGINT and SIGTERM become a flag that the training loop reads at the end of each step."""

from __future__ import annotations

import signal
import threading
from contextvars import ContextVar
from types import FrameType, TracebackType

__all__ = ["SignalFlag", "leave_signals_to_parent", "stop_after_step"]

# For checks: the step after which a run is to stop as if it had got SIGTERM.
stop_after_step: ContextVar[int | None] = ContextVar("stop_after_step", default=None)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WORKER_SECONDS = 10


class SignalFlag:
    """Context in which the first SIGINT or SIGTERM is noted; a second one ends the process at once.

    Outside the main thread Python lets nobody handle signals: the flag then stays unset and nothing changes.

    Attributes:
        received: number of the signal, or None.
    """

    received: int | None = None

    def __enter__(self) -> SignalFlag:
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python and cannot be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        # The system's own action needs no Python code to run: it works in the middle of a long operation too.
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)


def leave_signals_to_parent() -> None:
    """For a loader worker: signals reach the whole process group, but only the trainer decides what happens.

    A worker that ended at once would take the trainer's present step with it. It lives on for as long as a step and a
    checkpoint may take, and ends sooner when the trainer is done with it, or dead.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_WORKER_SECONDS) and None)
