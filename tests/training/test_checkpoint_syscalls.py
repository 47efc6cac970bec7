"""One save, stopped or failed at every system call that it makes, by strace; and on a disk that is really full."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from pqk_ext.training.checkpoint import CheckpointStore
from pqk_ext.training.errors import CheckpointNotWrittenError
from pqk_ext.training.metrics import MetricsLog

Start = Callable[[Callable[[], Any]], BaseProcess]

# Calls through which data, names and room go: each is made to fail.
_OF_FILES = ("openat", "statfs", "write", "fsync", "close", "rename", "unlink")
_NOT_WRITTEN = 3

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: install it to run these tests")


def _state(step: int) -> dict[str, Any]:
    return {"weights": torch.arange(3000.0) + step, "best": {"step": step}, "step": step}


class Run:
    """A run directory with the checkpoints of steps 1 and 2, and a forked process that saves step 3."""

    def __init__(self, folder: Path, child: Start) -> None:
        self.folder, self.child = folder, child
        folder.mkdir()
        store = CheckpointStore(folder)
        for step in (1, 2):
            store.save_best(step, _state(step))
            store.save(step, _state(step))

    def traced(self, *options: str) -> tuple[int | None, str]:
        """Exit code and trace of the save."""
        gate, go = os.pipe()
        started, start = os.pipe()

        def save() -> None:
            os.write(start, b"x")  # what the process calls before it gets here is not part of a save
            os.read(gate, 1)
            store = CheckpointStore(self.folder)
            store._best_of_step = {1: 1, 2: 2}
            try:
                metrics = MetricsLog(self.folder, 0, 3, tensorboard=False)
                metrics.write(3, {"loss": 1.0})
                metrics.sync()
                store.save_best(3, _state(3))
                store.save(3, _state(3))
            except (CheckpointNotWrittenError, OSError) as error:
                (self.folder / "error").write_text(str(error))
                os._exit(_NOT_WRITTEN)
            os._exit(0)

        process = self.child(save)
        os.read(started, 1)
        trace = self.folder.parent / f"{self.folder.name}.trace"
        strace = subprocess.Popen(
            ["strace", "-f", "-p", str(process.pid), "-o", str(trace), *options], stderr=subprocess.PIPE, text=True
        )
        assert strace.stderr is not None
        with strace.stderr:
            attached = strace.stderr.readline()
            if "attached" not in attached:
                process.kill()
                pytest.skip(f"strace may not attach here: {attached}")
            os.write(go, b"x")
            process.join(30)
            strace.wait(30)
        for descriptor in (gate, go, started, start):
            os.close(descriptor)
        return process.exitcode, trace.read_text()

    def check(self) -> int:
        """The step that is whole, after checking it and what it names."""
        assert not list(self.folder.glob("*.corrupt"))
        store = CheckpointStore(self.folder)
        loaded = store.load_newest()
        assert loaded is not None
        step, state = loaded
        assert torch.equal(state["weights"], _state(step)["weights"])
        assert torch.equal(store.load_best(state["best"]["step"])["weights"], _state(step)["weights"])
        assert not list(self.folder.glob("*.tmp"))
        assert not list(self.folder.glob("*.corrupt"))
        return step


def _calls(trace: str) -> list[str]:
    """Names of the completed system calls, in order."""
    return [match[1] for line in trace.splitlines() if (match := re.match(r"\d+\s+(\w+)\(", line))]


def test_killed_at_every_system_call(tmp_path: Path, child: Start) -> None:
    whole = Run(tmp_path / "whole", child)
    code, trace = whole.traced()
    assert (code, whole.check()) == (0, 3)
    counts = collections.Counter(_calls(trace))
    assert counts["rename"] == 2
    assert counts["fsync"] == 5
    steps: dict[int, int] = collections.Counter()
    for name, count in counts.items():
        for number in range(1, count + 1):
            run = Run(tmp_path / f"{name}{number}", child)
            code, _ = run.traced("-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}")
            assert code == -signal.SIGKILL or (code == 0 and name not in _OF_FILES), (name, number)
            step = run.check()
            assert step in (2, 3)
            steps[step] += 1
            shutil.rmtree(run.folder)
    assert steps[2] > 20
    assert steps[3] > 5  # the removals


@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
def test_an_error_of_every_call_leaves_the_old_state(tmp_path: Path, child: Start, code: str) -> None:
    counts = collections.Counter(_calls(Run(tmp_path / "whole", child).traced()[1]))
    refused = 0
    for name in _OF_FILES:
        for number in range(1, counts[name] + 1):
            run = Run(tmp_path / f"{name}{number}", child)
            result, _ = run.traced("-e", f"trace={name}", "-e", f"inject={name}:error={code}:when={number}")
            if result == _NOT_WRITTEN:
                refused += 1
                assert not list(run.folder.glob("*.tmp")), (name, number)
                said = (run.folder / "error").read_text()
                assert os.strerror(getattr(errno, code)) in said
                assert str(run.folder) in said, (name, number)
            else:
                assert (result, name) in ((0, "unlink"), (0, "close"), (0, "statfs")), (name, number)
            assert run.check() in (2, 3)
            shutil.rmtree(run.folder)
    assert refused >= 12


def test_order_of_the_calls(tmp_path: Path, child: Start) -> None:
    """What SIGKILL cannot show: data reaches the disk before the name does, and the name before the old one goes."""
    _, trace = Run(tmp_path / "run", child).traced("-y", "-e", f"trace={','.join(_OF_FILES)}")
    lines = [line.split(None, 1)[1] for line in trace.splitlines()]
    for kind in ("best", "step"):
        written = rf"{kind}-00000003\.ckpt\.[0-9a-f]+\.tmp"
        patterns = [
            rf"write\(.*{written}",
            rf"fsync\(.*{written}",
            rf"rename\(.*{written}.*{kind}-00000003\.ckpt",
            r"fsync\(\d+<[^>]*/run>",
        ]
        places = [max(i for i, line in enumerate(lines) if re.match(pattern, line)) for pattern in patterns[:3]]
        places.append(next(i for i in range(places[2], len(lines)) if re.match(patterns[3], lines[i])))
        assert places == sorted(places)
        assert len(set(places)) == 4
    removed = [i for i, line in enumerate(lines) if line.startswith("unlink(")]
    assert len(removed) == 2
    assert min(removed) > places[-1]


@contextlib.contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("look", [True, False], ids=["refused", "failed"])
def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: bool) -> None:
    folder = tmp_path / "disk"
    with _small_disk(folder, "64k"):
        store = CheckpointStore(folder)
        store.save(1, _state(1))
        before = (folder / "step-00000001.ckpt").read_bytes()
        if not look:  # as if another process had filled it since
            monkeypatch.setattr(shutil, "disk_usage", lambda path: _Plenty)
        large = {"weights": torch.zeros(100_000), "best": None}
        with pytest.raises(CheckpointNotWrittenError, match=r"step-00000002\.ckpt: cannot write .*No space left"):
            store.save(2, large)
        assert [path.name for path in folder.iterdir()] == ["step-00000001.ckpt"]
        assert (folder / "step-00000001.ckpt").read_bytes() == before


class _Plenty:
    free = 1 << 40
