"""Training in two processes: equal weights on both, equal to one process where mathematics says so, exact resume."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pqk_ext.training import FitResult, TrainingInterrupted
from pqk_ext.training.checkpoint import read_checkpoint
from pqk_ext.training.group import Group

Train = Callable[..., FitResult]
Start = Callable[[Callable[[], Any]], BaseProcess]
Pair = Callable[[Callable[[int], Any]], list[BaseProcess]]

STEPS = 48

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")


@pytest.fixture
def pair(tmp_path: Path, child: Start) -> Pair:
    """Starts a function of the rank in two processes of one group."""
    groups = iter(range(100))

    def start(function: Callable[[int], Any]) -> list[BaseProcess]:
        meeting = tmp_path / f"meeting{next(groups)}"

        def member(rank: int) -> None:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
            function(rank)
            dist.destroy_process_group()

        return [child(lambda rank=rank: member(rank)) for rank in range(2)]  # type: ignore[misc]

    return start


def _joined(processes: list[BaseProcess], seconds: float = 60) -> list[int | None]:
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def _files(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run_dir.iterdir() if path.suffix in (".ckpt", ".jsonl")}


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def test_both_processes_end_with_the_same_weights_and_two_runs_are_equal(
    tmp_path: Path, train: Train, pair: Pair
) -> None:
    def run(rank: int, name: str) -> None:
        result = train(tmp_path / name, checkpoint_steps=20)
        (tmp_path / f"{name}.{rank}").write_text(_digest(result.model))

    for name in ("a", "b"):
        assert _joined(pair(lambda rank, name=name: run(rank, name))) == [0, 0]  # type: ignore[misc]
    digests = {(tmp_path / f"{name}.{rank}").read_text() for name in "ab" for rank in range(2)}
    assert len(digests) == 1
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_two_processes_compute_what_one_does(tmp_path: Path, train: Train, pair: Pair) -> None:
    """Without batch norm, dropout and augmentation the mean of the parts' gradients is the batch's gradient."""

    def run(name: str) -> FitResult:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 2))
        return train(tmp_path / name, model=model, augment=None, checkpoint_steps=None)

    alone = run("one")
    assert _joined(pair(lambda _: run("two"))) == [0, 0]
    last = f"step-{STEPS:08d}.ckpt"
    one, two = (read_checkpoint(tmp_path / name / last) for name in ("one", "two"))
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-5)
    assert one["best"]["accuracy"] == two["best"]["accuracy"] == alone.best_accuracy


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_both_and_resume_is_exact(
    tmp_path: Path, train: Train, pair: Pair, noise: Any, rank: int
) -> None:
    def stopped(me: int) -> None:
        def signal_at(call: int) -> None:
            if call == 13 and me == rank:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(TrainingInterrupted) as caught:
            train(tmp_path / "b", checkpoint_steps=20, augment=noise(signal_at))
        assert (caught.value.code, caught.value.step) == (143, 13)

    assert _joined(pair(lambda _: train(tmp_path / "a", checkpoint_steps=20))) == [0, 0]
    assert _joined(pair(stopped)) == [0, 0]
    assert _joined(pair(lambda _: train(tmp_path / "b", checkpoint_steps=20))) == [0, 0]
    a, b = _files(tmp_path / "a"), _files(tmp_path / "b")
    assert a[f"step-{STEPS:08d}.ckpt"] == b[f"step-{STEPS:08d}.ckpt"]
    assert a["metrics.jsonl"] == b["metrics.jsonl"]


def test_one_process_killed_ends_the_other(tmp_path: Path, train: Train, pair: Pair, noise: Any) -> None:
    def run(rank: int) -> None:
        train(tmp_path / "a", augment=noise(lambda call: os.kill(os.getpid(), 9) if rank == 1 and call == 5 else None))

    start = time.monotonic()
    codes = _joined(pair(run))
    assert codes[1] == -signal.SIGKILL
    assert codes[0] == 1
    assert time.monotonic() - start < 60


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path, train: Train, pair: Pair) -> None:
    def run(rank: int) -> None:
        with pytest.raises(ValueError, match="batch_size: expected a multiple of the 2 processes, got 31"):
            train(tmp_path / "a", batch_size=31)

    assert _joined(pair(run)) == [0, 0]


def test_another_number_of_processes_is_refused_unless_asked_for(tmp_path: Path, train: Train, pair: Pair) -> None:
    from pqk_ext.training import ResumeMismatchError

    assert _joined(pair(lambda _: train(tmp_path, epochs=1))) == [0, 0]
    with pytest.raises(ResumeMismatchError, match="processes was 2, is 1"):
        train(tmp_path, epochs=1)
    assert train(tmp_path, epochs=1, allow_inexact=True).checkpoint.name == "step-00000008.ckpt"


def test_nan_in_one_process_ends_both(tmp_path: Path, train: Train, pair: Pair) -> None:
    from pqk_ext.training import DivergedError

    def run(rank: int) -> None:
        with pytest.raises(DivergedError, match="step 0: the loss is nan"):
            train(tmp_path / "a", augment=lambda x, _: x * float("nan") if rank == 1 else x)

    assert _joined(pair(run)) == [0, 0]


def test_different_weights_are_found(pair: Pair) -> None:
    def run(rank: int) -> None:
        group = Group(torch.device("cpu"))
        group.check_equal([torch.ones(3), torch.tensor([True])])
        with pytest.raises(RuntimeError, match=r"weights of processes \[1\] differ from those of process 0"):
            group.check_equal([torch.ones(3) + rank])

    assert _joined(pair(run)) == [0, 0]
