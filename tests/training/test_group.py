"""Training in two processes: equal weights on both, equal to one process where mathematics says so, exact resume."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset

from pqk_ext.training import FitResult, ProcessesDifferError, ProcessLostError, RunLockedError, TrainingInterrupted
from pqk_ext.training.checkpoint import read_checkpoint
from pqk_ext.training.durable import RunLock
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


@pytest.mark.parametrize("killed", [0, 1])
def test_one_process_killed_ends_the_other(tmp_path: Path, train: Train, pair: Pair, noise: Any, killed: int) -> None:
    def run(rank: int) -> None:
        fatal = noise(lambda call: os.kill(os.getpid(), 9) if rank == killed and call == 5 else None)
        with pytest.raises(ProcessLostError, match=rf"process {killed} \(pid \d+ on .*\) was killed or hangs"):
            train(tmp_path / "a", augment=fatal, process_timeout=8.0)
        raise SystemExit(4)

    start = time.monotonic()
    codes = _joined(pair(run))
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 4
    assert time.monotonic() - start < 30


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


def test_different_weights_are_found_and_named(pair: Pair) -> None:
    def run(rank: int) -> None:
        group = Group(torch.device("cpu"))
        group.check_equal({"a": torch.ones(3), "mask": torch.tensor([True]), "scale": torch.tensor(2.0)})
        with pytest.raises(ProcessesDifferError, match=r"same bits: scale in process 1 differ from process 0"):
            group.check_equal({"a": torch.ones(3), "scale": torch.tensor(1.0 + rank)})
        group.close()

    assert _joined(pair(run)) == [0, 0]


def test_processes_started_differently_are_refused_before_anything_is_trained(
    tmp_path: Path, train: Train, pair: Pair, problem: Any
) -> None:
    def differently(rank: int) -> None:
        with pytest.raises(ProcessesDifferError, match=r"settings\.lr is 0\.1 in process 0 and 0\.2 in process 1"):
            train(tmp_path / "a", lr=0.1 + 0.1 * rank)
        (x, y), _ = problem
        with pytest.raises(ProcessesDifferError, match=r"data\.train is '[0-9a-f]{64}' in process 0 and"):
            train(tmp_path / "a", train=(x + rank, y))
        network = nn.Sequential(nn.Flatten(), nn.Linear(36, 2, bias=rank == 0))
        with pytest.raises(ProcessesDifferError, match=r"model\.1\.bias is 'torch.float32 \(2,\)' in process 0"):
            train(tmp_path / "a", model=network)

    assert _joined(pair(differently)) == [0, 0]
    assert not list(tmp_path.glob("a/*.ckpt"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_is_named_and_ends_the_other(
    tmp_path: Path, train: Train, pair: Pair, noise: Any, rank: int
) -> None:
    def run(me: int) -> None:
        def hang(call: int) -> None:
            if me == rank and call == 5:
                time.sleep(100)

        try:
            train(tmp_path / "a", augment=noise(hang), process_timeout=8.0)
        except ProcessLostError as error:
            (tmp_path / "message").write_text(str(error))
            raise SystemExit(4) from None

    start = time.monotonic()
    processes = pair(run)
    processes[1 - rank].join(30)
    seconds = time.monotonic() - start
    assert processes[1 - rank].exitcode == 4
    assert seconds < 20
    hanging = f"process {rank} (pid {processes[rank].pid} on {socket.gethostname()}) was killed or hangs"
    assert hanging in (tmp_path / "message").read_text()
    for process in processes:
        process.kill()
        process.join()


def test_what_ended_one_process_is_told_by_the_other(tmp_path: Path, train: Train, pair: Pair, noise: Any) -> None:
    def run(rank: int) -> None:
        def fail(call: int) -> None:
            if rank == 1 and call == 5:
                raise KeyError("a label")

        expected = (
            (KeyError, "a label") if rank else (ProcessLostError, r"process 1 \(pid \d+ .*ended: KeyError: 'a label'")
        )
        with pytest.raises(expected[0], match=expected[1]):
            train(tmp_path / "a", augment=noise(fail))

    assert _joined(pair(run)) == [0, 0]


def test_a_directory_in_use_ends_all_processes_and_each_says_why(tmp_path: Path, train: Train, pair: Pair) -> None:
    lock = RunLock(tmp_path)

    def run(rank: int) -> None:
        with pytest.raises((RunLockedError, ProcessLostError), match=f"process {os.getppid()} is training in this"):
            train(tmp_path)

    assert _joined(pair(run)) == [0, 0]
    lock.release()


def test_a_signal_during_validation_stops_both(tmp_path: Path, train: Train, pair: Pair, problem: Any) -> None:
    class Slow(Dataset[Any]):
        """Validation data of which a signal comes in the middle, in process 1."""

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def __len__(self) -> int:
            return 96

        def __getitem__(self, index: int) -> Any:
            if self.rank == 1 and index == 40 and not (tmp_path / "sent").exists():
                (tmp_path / "sent").touch()
                os.kill(os.getpid(), signal.SIGTERM)
            return problem[1][0][index], problem[1][1][index]

    def stopped(rank: int) -> None:
        with pytest.raises(TrainingInterrupted) as caught:
            train(tmp_path / "b", val=Slow(rank), epochs=2)
        assert (caught.value.code, caught.value.step) == (143, 8)
        assert (tmp_path / "b" / "metrics.jsonl").read_text().count("val_accuracy") == 0

    (tmp_path / "sent").touch()
    assert _joined(pair(lambda rank: train(tmp_path / "a", val=Slow(rank), epochs=2))) == [0, 0]
    (tmp_path / "sent").unlink()
    assert _joined(pair(stopped)) == [0, 0]
    assert _joined(pair(lambda rank: train(tmp_path / "b", val=Slow(rank), epochs=2))) == [0, 0]
    a, b = _files(tmp_path / "a"), _files(tmp_path / "b")
    assert a["step-00000016.ckpt"] == b["step-00000016.ckpt"]
    assert a["metrics.jsonl"] == b["metrics.jsonl"]
