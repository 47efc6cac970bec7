"""The training loop when something breaks: signals at bad times, killed workers, full disks, lost files."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from pqk_ext.training import (
    CheckpointError,
    CheckpointNotWrittenError,
    FitResult,
    LoaderError,
    ResumeMismatchError,
    TrainingInterrupted,
    checkpoint,
    loop,
)
from pqk_ext.training.checkpoint import CheckpointStore, read_checkpoint

Start = Callable[[Callable[[], Any]], BaseProcess]
Train = Callable[..., FitResult]
Start = Callable[[Callable[[], Any]], BaseProcess]


def _files(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run_dir.iterdir() if path.suffix in (".ckpt", ".jsonl")}


def _signal_at(step: int, number: int = signal.SIGTERM) -> Callable[[int], None]:
    """Sends a signal to its own process in one step."""
    return lambda call: os.kill(os.getpid(), number) if call == step else None


class _SlowToValidate(Dataset[tuple[Tensor, int]]):
    """Half a minute of validation, in the middle of which a mark is set."""

    def __init__(self, mark: Path, size: int = 600) -> None:
        self.mark, self.size = mark, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 64:
            self.mark.touch()
        time.sleep(0.05)
        return torch.full((1, 6, 6), float(index % 2)), index % 2


class _Halves(Dataset[tuple[Tensor, int]]):
    """Two classes of constant images."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 6, 6), float(index % 2)), index % 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_trainer_and_workers_during_validation(
    tmp_path: Path, train: Train, child: Start, number: int, code: int
) -> None:
    """No worker may end before the trainer has saved, and none may be left over."""
    mark = tmp_path / "mark"

    def run() -> None:
        os.setsid()
        train(tmp_path / "a", val=_SlowToValidate(mark), num_workers=2, epochs=1)

    process = child(run)
    while not mark.exists():
        time.sleep(0.01)
    assert process.pid is not None
    start = time.monotonic()
    os.killpg(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    assert time.monotonic() - start < 10
    assert CheckpointStore(tmp_path / "a").steps("step") == [8]
    assert "val_accuracy" not in (tmp_path / "a" / "metrics.jsonl").read_text()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_killed_worker_is_named_and_checkpoints_stay(tmp_path: Path, train: Train) -> None:
    class Fatal(_Halves):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if self.size == 65 and get_worker_info() is not None and index == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    data = Fatal(64)
    train(tmp_path, train=data, val=_Halves(16), epochs=1, num_workers=1)
    before = _files(tmp_path)
    data.size = 65
    with pytest.raises(LoaderError, match=r"step 0: DataLoader worker \(pid.* \d+\).*last good checkpoint: none yet"):
        train(tmp_path / "other", train=data, val=_Halves(16), epochs=1, num_workers=1)
    assert _files(tmp_path) == before


def test_a_disk_that_is_full_for_a_while(tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between steps 10 and 25 nothing can be written; the run goes on, if told so, and ends with the same bits."""
    expected = train(tmp_path / "a", checkpoint_steps=5)
    whole = checkpoint.write_durably

    def sometimes(path: Path, data: bytes) -> None:
        if path.parent.name != "a" and 10 <= int(path.stem[5:]) <= 25:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        whole(path, data)

    monkeypatch.setattr(checkpoint, "write_durably", sometimes)
    with pytest.raises(CheckpointNotWrittenError, match=r"0000010\.ckpt: cannot write the checkpoint: No space left"):
        train(tmp_path / "b", checkpoint_steps=5)
    assert CheckpointStore(tmp_path / "b").steps("step") == [5]
    train(tmp_path / "c", checkpoint_steps=5, on_full_disk="continue")
    for name in (expected.checkpoint.name, f"best-{expected.best_step:08d}.ckpt", "metrics.jsonl"):
        assert _files(tmp_path / "a")[name] == _files(tmp_path / "c")[name]


def test_lost_best_weights_are_noticed_at_once(tmp_path: Path, train: Train, noise: Any) -> None:
    with pytest.raises(TrainingInterrupted):
        train(tmp_path, augment=noise(_signal_at(30)))
    for best in tmp_path.glob("best-*.ckpt"):
        best.write_bytes(best.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"best-\d+\.ckpt: damaged.*allow_inexact=True goes on and looks"):
        train(tmp_path)
    result = train(tmp_path, allow_inexact=True)
    assert result.best_step > 30
    assert "best weights so far were lost" in read_checkpoint(result.checkpoint)["progress"]["notes"][0]


_OPTIMIZERS = {
    "fused": lambda groups: torch.optim.AdamW(groups, fused=True),
    "amsgrad": lambda groups: torch.optim.Adam(groups, amsgrad=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, momentum=0.5, centered=True),
    "nadam": torch.optim.NAdam,
    "adagrad": torch.optim.Adagrad,
    "asgd": torch.optim.ASGD,
}


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_optimizers_resume_exactly(tmp_path: Path, train: Train, noise: Any, name: str) -> None:
    options = {"optimizer": _OPTIMIZERS[name], "lr": 0.01, "epochs": 2, "checkpoint_steps": None}
    expected = train(tmp_path / "a", **options)
    with pytest.raises(TrainingInterrupted):
        train(tmp_path / "b", **options, augment=noise(_signal_at(5)))
    train(tmp_path / "b", **options)
    last = expected.checkpoint.name
    assert _files(tmp_path / "a")[last] == _files(tmp_path / "b")[last]


def test_another_optimizer_or_schedule_behind_the_same_name_is_refused(tmp_path: Path, train: Train) -> None:
    def made(beta: float, factor: float) -> dict[str, Any]:
        return {
            "optimizer": lambda groups: torch.optim.AdamW(groups, betas=(beta, 0.99)),
            "schedule": lambda progress: factor * (1 - progress),
        }

    train(tmp_path, epochs=1, lr=0.01, **made(0.9, 1.0))
    with pytest.raises(ResumeMismatchError, match=r"optimizer_group_0 was .*0\.9, 0\.99.* is .*0\.8, 0\.99"):
        train(tmp_path, epochs=1, lr=0.01, **made(0.8, 1.0))
    with pytest.raises(ResumeMismatchError, match="schedule_values was"):
        train(tmp_path, epochs=1, lr=0.01, **made(0.9, 0.5))


def test_a_signal_during_a_save(tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save is finished, the next step too, and the run resumes to the same end."""
    expected = train(tmp_path / "a", checkpoint_steps=5)
    whole = checkpoint.write_durably

    def signalled(path: Path, data: bytes) -> None:
        if path.name == "step-00000010.ckpt":
            os.kill(os.getpid(), signal.SIGTERM)
        whole(path, data)

    monkeypatch.setattr(checkpoint, "write_durably", signalled)
    with pytest.raises(TrainingInterrupted) as stopped:
        train(tmp_path / "b", checkpoint_steps=5)
    assert stopped.value.step == 11
    assert CheckpointStore(tmp_path / "b").steps("step") == [10, 11]
    monkeypatch.undo()
    train(tmp_path / "b", checkpoint_steps=5)
    last = expected.checkpoint.name
    assert _files(tmp_path / "a")[last] == _files(tmp_path / "b")[last]


@pytest.mark.parametrize(("gone", "code"), [(False, 0), (True, 1)])
def test_a_worker_whose_trainer_is_gone_already_ends(child: Start, gone: bool, code: int) -> None:
    """Torch's own watchdog looks who the parent is only after that: it would take the adopting process for it."""
    trainer = -1 if gone else os.getpid()
    process = child(lambda: loop._start_worker(None, trainer))
    process.join(60)
    assert process.exitcode == code
