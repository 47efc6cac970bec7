"""The training loop: what it learns, how it stops, and that a stopped run ends like one that was not."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pqk_ext.config import PQKConfig
from pqk_ext.training import (
    CheckpointError,
    DivergedError,
    FitResult,
    ResumeMismatchError,
    RunLockedError,
    TrainingInterrupted,
)
from pqk_ext.training.checkpoint import CheckpointStore, read_checkpoint

Train = Callable[..., FitResult]
Start = Callable[[Callable[[], Any]], BaseProcess]

STEPS = 48  # 6 epochs of 8 steps


def _files(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run_dir.iterdir() if path.suffix in (".ckpt", ".jsonl")}


def _lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def _catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def _signal_at(step: int, number: int = signal.SIGTERM) -> Callable[[int], None]:
    """Sends a signal to its own process in one step."""
    return lambda call: os.kill(os.getpid(), number) if call == step else None


def test_it_learns_logs_and_keeps_the_best(tmp_path: Path, train: Train, problem: Any) -> None:
    result = train(tmp_path)
    lines = _lines(tmp_path)
    losses = [line["loss"] for line in lines if "loss" in line]
    accuracies = {line["step"]: line["val_accuracy"] for line in lines if "val_accuracy" in line}
    assert losses[-1] < 0.7 * losses[0]
    assert list(accuracies) == list(range(8, STEPS + 1, 8))
    assert result.best_accuracy == max(accuracies.values()) > 0.8
    assert result.best_step == next(step for step, value in accuracies.items() if value == result.best_accuracy)
    x, y = problem[1]
    assert not result.model.training
    assert (result.model(x).argmax(1) == y).float().mean().item() == pytest.approx(result.best_accuracy)
    steps = [path for path in tmp_path.iterdir() if path.name.startswith("step")]
    assert sorted(path.name for path in steps) == ["step-00000040.ckpt", f"step-{STEPS:08d}.ckpt"]
    named = {f"best-{read_checkpoint(path)['best']['step']:08d}.ckpt" for path in steps}
    assert {path.name for path in tmp_path.glob("best-*")} == named
    assert f"best-{result.best_step:08d}.ckpt" in named
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates == sorted(rates, reverse=True)


def test_two_runs_are_equal_and_checkpoint_times_do_not_matter(tmp_path: Path, train: Train) -> None:
    train(tmp_path / "a")
    train(tmp_path / "b")
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    train(tmp_path / "c", checkpoint_steps=7)
    last = f"step-{STEPS:08d}.ckpt"
    assert _files(tmp_path / "a")[last] == _files(tmp_path / "c")[last]
    train(tmp_path / "d", seed=1)
    assert _files(tmp_path / "a")[last] != _files(tmp_path / "d")[last]


@pytest.mark.parametrize("step", [1, 7, 8, 9, STEPS - 1, STEPS])
def test_stopped_by_a_signal_and_resumed_equals_uninterrupted(
    tmp_path: Path, train: Train, noise: Any, step: int
) -> None:
    expected = train(tmp_path / "a", checkpoint_steps=5)
    with pytest.raises(TrainingInterrupted) as stopped:
        train(tmp_path / "b", checkpoint_steps=5, augment=noise(_signal_at(step)))
    assert stopped.value.code == 143
    assert stopped.value.step == step
    assert stopped.value.checkpoint == tmp_path / "b" / f"step-{step:08d}.ckpt"
    # What other code drew from the generators in between must not matter.
    torch.rand(7), random.random(), np.random.rand(3)
    result = train(tmp_path / "b", checkpoint_steps=5)
    for name in (expected.checkpoint.name, f"best-{expected.best_step:08d}.ckpt", "metrics.jsonl"):
        assert _files(tmp_path / "a")[name] == _files(tmp_path / "b")[name], name
    for a, b in zip(expected.model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_finished_run_returns_its_result_again(tmp_path: Path, train: Train) -> None:
    first = train(tmp_path)
    before = _files(tmp_path)
    again = train(tmp_path)
    assert (again.best_step, again.best_accuracy) == (first.best_step, first.best_accuracy)
    assert _files(tmp_path) == before


def test_killed_twenty_times_equals_uninterrupted(tmp_path: Path, train: Train, noise: Any, child: Start) -> None:
    """SIGKILL at random times until 20 happened, then to the end.

    The lives of the killed processes add up to under 3 s; 96 steps of at least 0.04 s cannot end before.
    """
    expected = train(tmp_path / "a", epochs=12, checkpoint_steps=1)
    source = random.Random(5)
    kills, newest = 0, 0
    while True:
        process = child(
            lambda: train(tmp_path / "b", epochs=12, checkpoint_steps=1, augment=noise(lambda _: time.sleep(0.04)))
        )
        process.join(source.uniform(0.0, 0.25) if kills < 20 else None)
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        steps = CheckpointStore(tmp_path / "b").steps("step") if (tmp_path / "b").exists() else []
        if steps:
            read_checkpoint(tmp_path / "b" / f"step-{steps[-1]:08d}.ckpt")
        assert (steps or [0])[-1] >= newest
        newest = (steps or [0])[-1]
        assert not list(tmp_path.glob("b/*.corrupt"))
    assert kills == 20
    assert expected.checkpoint.name in _files(tmp_path / "b")
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_codes_and_a_second_signal(tmp_path: Path, train: Train, child: Start, number: int, code: int) -> None:
    def slow(x: Tensor, generator: torch.Generator) -> Tensor:
        (tmp_path / "started").touch()
        time.sleep(1.5)
        return x

    def start(name: str) -> BaseProcess:
        (tmp_path / "started").unlink(missing_ok=True)
        process = child(lambda: train(tmp_path / name, augment=slow))
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        assert process.pid is not None
        os.kill(process.pid, number)
        return process

    once = start("once")
    once.join(60)
    assert once.exitcode == code
    assert CheckpointStore(tmp_path / "once").steps("step") == [1]

    twice = start("twice")
    assert twice.pid is not None
    while _catches(twice.pid, number):  # until the first one was noted
        time.sleep(0.01)
    os.kill(twice.pid, number)
    twice.join(60)
    assert twice.exitcode == -number
    assert CheckpointStore(tmp_path / "twice").steps("step") == []


def test_handlers_are_put_back(tmp_path: Path, train: Train) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(tmp_path, epochs=1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_second_trainer_is_refused(tmp_path: Path, train: Train, child: Start) -> None:
    def within(x: Tensor, generator: torch.Generator) -> Tensor:
        def other() -> None:
            with pytest.raises(RunLockedError, match=f"process {os.getppid()} "):
                train(tmp_path, epochs=1)

        process = child(other)
        process.join()
        assert process.exitcode == 0
        return x

    train(tmp_path, epochs=1, batch_size=256, augment=within)


def test_nan_stops_naming_step_and_last_good_checkpoint(tmp_path: Path, train: Train) -> None:
    calls = iter(range(STEPS))

    def poison(x: Tensor, generator: torch.Generator) -> Tensor:
        return x * math.nan if next(calls) == 19 else x

    with pytest.raises(DivergedError, match=rf"step 19: the loss is nan; last good checkpoint: .*step-{15:08d}"):
        train(tmp_path, augment=poison, checkpoint_steps=5)
    for path in tmp_path.glob("*.ckpt"):
        weights = read_checkpoint(path)["model"]
        assert all(bool(value.isfinite().all()) for value in weights.values())


def test_weights_that_overflow_are_never_saved(tmp_path: Path, train: Train) -> None:
    with pytest.raises(DivergedError, match="values that are not finite; last good checkpoint: none yet"):
        train(tmp_path, optimizer=lambda groups: _Overflow(groups), checkpoint_steps=1)
    assert not list(tmp_path.glob("*.ckpt"))


class _Overflow(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(math.inf)


def test_other_settings_data_or_environment_are_refused(tmp_path: Path, train: Train, problem: Any) -> None:
    train(tmp_path, epochs=1)
    with pytest.raises(ResumeMismatchError, match=r"lr was 0\.1, is 0\.2; total_steps was 8, is 16"):
        train(tmp_path, epochs=2, lr=0.2)
    x, y = problem[0]
    other = x.clone()
    other[-1, 0, 0, 0] += 1
    with pytest.raises(ResumeMismatchError, match=r"train was '[0-9a-f]{64}', is '[0-9a-f]{64}'"):
        train(tmp_path, epochs=1, train=(other, y))
    with pytest.raises(ResumeMismatchError, match="holds another model"):
        train(tmp_path, epochs=1, model=nn.Sequential(nn.Flatten(), nn.Linear(36, 2)))


def test_other_thread_count_needs_allow_inexact(
    tmp_path: Path, train: Train, noise: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TrainingInterrupted):
        train(tmp_path, augment=noise(_signal_at(10)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with pytest.raises(ResumeMismatchError, match="threads was 1, is 7"):
        train(tmp_path)
    with caplog.at_level(logging.WARNING):
        result = train(tmp_path, allow_inexact=True)
    assert "resumed inexactly at step 10: threads was 1, is 7" in caplog.text
    assert read_checkpoint(result.checkpoint)["progress"]["notes"] == [
        "resumed inexactly at step 10: threads was 1, is 7"
    ]


def test_torn_checkpoints(tmp_path: Path, train: Train) -> None:
    expected = train(tmp_path / "a")
    train(tmp_path / "b")
    newest, older = (tmp_path / "b" / f"step-{step:08d}.ckpt" for step in (STEPS, 40))
    newest.write_bytes(newest.read_bytes()[:4096])
    train(tmp_path / "b")
    assert newest.with_suffix(".corrupt").exists()
    assert newest.read_bytes() == expected.checkpoint.read_bytes()
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()
    for path in (newest, older):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        train(tmp_path / "b")


def test_never_refuses_a_directory_with_a_run(tmp_path: Path, train: Train) -> None:
    train(tmp_path, epochs=1, resume="never")
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(tmp_path, epochs=1, resume="never")


class _Augmented(Dataset[tuple[Tensor, int]]):
    """Draws from all three global generators."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        value = torch.rand(1, 6, 6) + random.random() + float(np.random.rand())
        return value + index % 2, index % 2


def test_result_does_not_depend_on_workers_nor_on_a_stop(tmp_path: Path, train: Train, noise: Any) -> None:
    data = {"train": _Augmented(64), "val": _Augmented(16), "epochs": 2, "checkpoint_steps": None}
    expected = train(tmp_path / "a", **data)
    train(tmp_path / "b", **data, num_workers=2)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    with pytest.raises(TrainingInterrupted):
        train(tmp_path / "c", **data, num_workers=2, augment=noise(_signal_at(3, signal.SIGINT)))
    train(tmp_path / "c", **data)
    assert _files(tmp_path / "a")[expected.checkpoint.name] == _files(tmp_path / "c")[expected.checkpoint.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": math.nan}, r"lr: expected a number in \[0, inf\), got nan"),
        ({"lr": -1}, "lr: expected"),
        ({"epochs": -1}, "epochs: expected an integer of at least 1, got -1"),
        ({"epochs": None}, "epochs: expected an integer, got None"),
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1, got 0"),
        ({"log_every": 0}, "log_every"),
        ({"seed": -1}, "seed"),
        ({"resume": "always"}, "resume: expected 'auto' or 'never', got 'always'"),
        ({"train": (torch.zeros(0, 1), torch.zeros(0))}, "at least one sample"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, train: Train, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_data_of_another_kind_is_refused(tmp_path: Path, train: Train) -> None:
    with pytest.raises(TypeError, match="expected a map-style Dataset"):
        train(tmp_path, train=[1, 2, 3])


def test_run_directory_that_cannot_be_made_is_an_os_error(tmp_path: Path, train: Train) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        train(tmp_path / "file" / "run")


def test_tensorboard_files_are_written_where_it_is_installed(tmp_path: Path, train: Train) -> None:
    pytest.importorskip("tensorboard")
    train(tmp_path, epochs=1, tensorboard=True)
    assert list((tmp_path / "tensorboard").iterdir())


def test_optimizer_factory(tmp_path: Path, train: Train, noise: Any) -> None:
    expected = train(tmp_path / "a", optimizer=torch.optim.AdamW, lr=0.01)
    assert expected.best_accuracy > 0.7
    with pytest.raises(TrainingInterrupted):
        train(tmp_path / "b", optimizer=torch.optim.AdamW, lr=0.01, augment=noise(_signal_at(13)))
    train(tmp_path / "b", optimizer=torch.optim.AdamW, lr=0.01)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_config_must_be_that_of_the_prepared_model(tmp_path: Path, train: Train) -> None:
    model = nn.Linear(1, 1)
    model.pqk = nn.Module()
    model.pqk.config = PQKConfig()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="config: expected the config that the model was prepared with"):
        train(tmp_path, model=model, config=PQKConfig(sparsity=0.5))
    with pytest.raises(ValueError, match="the model was prepared for total_steps = 2000"):
        train(tmp_path, model=model)
