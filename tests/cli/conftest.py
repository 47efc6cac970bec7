"""A small network on disk, and ways to call the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pqk_ext.cli import main
from pqk_ext.runtime import format
from tests.runtime.graphs import ds_cnn

NO_TORCH = "import sys; sys.modules['torch'] = None; from pqk_ext.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def pqk(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Calls ``pqk`` in this process."""

    def call(*words: object) -> Result:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def pqk_without_torch() -> Callable[..., Result]:
    """Calls ``pqk`` in a new process in which torch cannot be imported."""

    def call(*words: object) -> Result:
        command = [sys.executable, "-c", NO_TORCH, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A file with the shapes of the DS-CNN and random weights."""
    path = tmp_path / "net.pqk"
    format.write(ds_cnn(), path)
    return path
