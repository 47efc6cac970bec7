"""SIGKILL at random times, again and again: no checkpoint is lost, and the end is that of a run that was left alone.

All files are compared byte for byte: weights, masks, scales, optimizer, random states and metrics.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

import pqk_ext
from pqk_ext.training.checkpoint import CheckpointStore, read_checkpoint

from .lives import STEPS, Lives


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    process = Lives(Path(pqk_ext.__file__).parent.parent)
    yield process
    process.close()


@pytest.fixture(scope="module")
def untouched(lives: Lives, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The files of an uninterrupted run: (threads, processes) -> bytes by name."""
    done: dict[tuple[int, int], dict[str, bytes]] = {}

    def files(threads: int, processes: int = 1) -> dict[str, bytes]:
        if (threads, processes) not in done:
            folder = tmp_path_factory.mktemp("untouched")
            assert _ends(lives, _start(lives, folder / "run", threads, 0, processes)) == [0] * processes
            done[threads, processes] = _files(folder / "run")
        return done[threads, processes]

    return files


def _files(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run_dir.iterdir() if path.suffix in (".ckpt", ".jsonl")}


def _start(lives: Lives, run_dir: Path, threads: int, workers: int, processes: int, seconds: float = 60) -> list[int]:
    meeting = None
    if processes > 1:
        meeting = str(run_dir.parent / f"meeting{time.monotonic_ns()}")
    options: dict[str, Any] = {"threads": threads, "workers": workers, "meeting": meeting, "seconds": seconds}
    return [lives.start(run_dir, rank=rank, **options) for rank in range(processes)]


def _ends(lives: Lives, pids: list[int]) -> list[int]:
    return [lives.wait(pid) for pid in pids]


def _newest(run_dir: Path) -> int:
    """The newest step, which must be whole; 0 before the first checkpoint."""
    steps = CheckpointStore(run_dir).steps("step") if run_dir.exists() else []
    if steps:
        read_checkpoint(run_dir / f"step-{steps[-1]:08d}.ckpt")
        assert not list(run_dir.glob("*.corrupt"))
    return steps[-1] if steps else 0


def _kill_and_compare(
    lives: Lives, run_dir: Path, expected: dict[str, bytes], kills: int, threads: int, workers: int, processes: int = 1
) -> None:
    """Lives of random length, each of which may bring the run a few steps on, until ``kills`` have happened."""
    source = random.Random(100 * threads + 10 * workers + processes)
    newest, killed, rounds, length = 0, 0, 0, 0.3
    while killed < kills:
        pids = _start(lives, run_dir, threads, workers, processes, seconds=2)
        time.sleep(source.uniform(0, length))
        os.kill(pids[source.randrange(processes)], signal.SIGKILL)
        codes = _ends(lives, pids)
        assert any(code != 0 for code in codes) or _newest(run_dir) == STEPS
        killed += -signal.SIGKILL in codes
        before, newest = newest, _newest(run_dir)
        assert newest >= before
        # Lives as long as the machine needs for some steps; a run that came to its end is begun again.
        length = min(20.0, length * 1.5) if newest == before else max(0.1, length * 0.9)
        if newest == STEPS:
            rounds += 1
            assert _ends(lives, _start(lives, run_dir, threads, workers, processes)) == [0] * processes
            assert _files(run_dir) == expected
            run_dir, newest = run_dir.with_name(f"round{rounds}"), 0
    assert _ends(lives, _start(lives, run_dir, threads, workers, processes)) == [0] * processes
    assert _files(run_dir) == expected


MATRIX = [(1, 0), (2, 0), (1, 2), (2, 2)]


@pytest.mark.parametrize(("threads", "workers"), MATRIX)
def test_killed_at_random(tmp_path: Path, lives: Lives, untouched: Any, threads: int, workers: int) -> None:
    _kill_and_compare(lives, tmp_path / "run", untouched(threads), 5, threads, workers)


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_one_of_two_processes_killed_at_random(tmp_path: Path, lives: Lives, untouched: Any) -> None:
    _kill_and_compare(lives, tmp_path / "run", untouched(1, 2), 3, 1, 0, processes=2)


@pytest.mark.long
@pytest.mark.parametrize(("threads", "workers"), MATRIX)
def test_killed_a_hundred_times(tmp_path: Path, lives: Lives, untouched: Any, threads: int, workers: int) -> None:
    _kill_and_compare(lives, tmp_path / "run", untouched(threads), 100, threads, workers)


@pytest.mark.long
@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_one_of_two_processes_killed_a_hundred_times(tmp_path: Path, lives: Lives, untouched: Any) -> None:
    _kill_and_compare(lives, tmp_path / "run", untouched(1, 2), 100, 1, 0, processes=2)
