"""Processes of other Python environments that load and time peers; the other end of the pipe is `worker.py`."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any


class Worker:
    """A process of another environment, see `worker.py`."""

    def __init__(self, python: str) -> None:
        command = [python, str(Path(__file__).with_name("worker.py"))]
        silent = {} if os.environ.get("PQK_BENCH_VERBOSE") else {"stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **silent)
        self.keys = 0

    def ask(self, what: str, **request: Any) -> float:
        """Seconds that it took.

        Raises:
            RuntimeError: the worker reports an error, or ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": what, **request}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or '{"error": "it ended"}')
        if "error" in answer:
            raise RuntimeError(f"worker: {what}: {answer['error']}")
        return float(answer["seconds"])


@cache
def worker(name: str) -> Worker:
    """The one worker of that environment; lives as long as this process."""
    return Worker(os.environ[f"PQK_{name.upper()}_PYTHON"])
