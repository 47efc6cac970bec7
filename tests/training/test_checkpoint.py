"""Checkpoint files: every kill, every error, every damage."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from pqk_ext.training.checkpoint import CheckpointStore, read_checkpoint, write_checkpoint
from pqk_ext.training.durable import RunLock
from pqk_ext.training.errors import CheckpointError, RunLockedError
from pqk_ext.training.packing import pack, unpack

Start = Callable[[Callable[[], Any]], BaseProcess]

# Calls of one save through which its data goes, in the module that makes them.
_CALLS = ("open", "write", "fsync", "close", "rename", "unlink")


def _state(step: int, best: int | None = None) -> dict[str, Any]:
    return {
        "weights": torch.arange(2000, dtype=torch.float32) + step,
        "mask": torch.tensor([True, False, True]),
        "empty": torch.empty(0, 3),
        "count": torch.tensor(step),
        "best": {"step": best} if best is not None else None,
        "nested": [1, (2.5, None, 'quote " and \\ and é'), {3: torch.tensor([1.5], dtype=torch.bfloat16)}],
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)


@contextlib.contextmanager
def _at_call(number: int, act: Callable[[str], None]) -> Iterator[list[str]]:
    """Runs ``act`` instead of the call of that number among the calls of a save; gives the list of calls so far."""
    calls: list[str] = []
    originals = {name: getattr(os, name) for name in _CALLS}

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 == number:
                act(name)
            return originals[name](*arguments, **keywords)

        return call

    for name in _CALLS:
        setattr(os, name, wrapped(name))
    try:
        yield calls
    finally:
        for name in _CALLS:
            setattr(os, name, originals[name])


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.ckpt", _state(7, best=3))
    assert _same(read_checkpoint(tmp_path / "a.ckpt"), _state(7, best=3))


def test_equal_states_give_equal_files_that_any_safetensors_reader_opens(tmp_path: Path) -> None:
    for name in ("a.ckpt", "b.ckpt"):
        write_checkpoint(tmp_path / name, _state(7))
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()
    with safe_open(tmp_path / "a.ckpt", framework="numpy") as file:  # type: ignore[no-untyped-call]
        assert set(file.keys()) >= {"state.weights", "state.mask"}


def test_tied_tensors_are_stored_twice_and_channels_last_ones_dense(tmp_path: Path) -> None:
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    write_checkpoint(tmp_path / "a.ckpt", {"a": weight, "b": weight, "c": weight[0]})
    state = read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(state["a"], weight)
    assert torch.equal(state["b"], weight)
    assert torch.equal(state["c"], weight[0])


def test_packing_refuses_objects_and_names_the_place() -> None:
    with pytest.raises(TypeError, match=r"state\.a\.1: a checkpoint cannot hold a set"):
        pack({"a": [1, {2}]}, "state", {})


def test_packing_survives_json() -> None:
    tensors: dict[str, torch.Tensor] = {}
    value = {"$tensor": 1, "x": {0: {"momentum": torch.ones(2)}, 1: {}}, "y": (float("inf"), -0.0, 1e-300)}
    assert _same(unpack(json.loads(json.dumps(pack(value, "s", tensors))), tensors), value)


@pytest.mark.parametrize("size_of_page", [64, 1021])
def test_torn_files_are_refused(tmp_path: Path, size_of_page: int) -> None:
    write_checkpoint(tmp_path / "a.ckpt", _state(1))
    whole = (tmp_path / "a.ckpt").read_bytes()
    for at in range(0, len(whole), size_of_page):
        zeroed = whole[:at] + bytes(min(size_of_page, len(whole) - at)) + whole[at + size_of_page :]
        for damaged in (whole[:at], zeroed):
            if damaged == whole:
                continue
            (tmp_path / "b.ckpt").write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"b\.ckpt: damaged"):
                read_checkpoint(tmp_path / "b.ckpt")


def test_a_flipped_bit_in_any_byte_and_an_appended_byte_are_found(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.ckpt", {"x": torch.tensor([1.0, 2.0]), "y": 3})
    whole = bytearray((tmp_path / "a.ckpt").read_bytes())
    for byte in range(len(whole)):
        whole[byte] ^= 1 << byte % 8
        (tmp_path / "b.ckpt").write_bytes(whole)
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "b.ckpt")
        whole[byte] ^= 1 << byte % 8
    (tmp_path / "b.ckpt").write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "b.ckpt")


def test_the_newest_two_and_the_best_they_name_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step, best in [(1, None), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4)]:
        if best == step:
            store.save_best(step, {"x": torch.ones(1)})
        store.save(step, _state(step, best))
        kept = [s for s in (step - 1, step) if s > 0]
        assert store.steps("step") == kept
        assert store.steps("best") == sorted({b for s in kept if (b := {2: 2, 3: 2, 4: 4, 5: 4, 6: 4}.get(s))})


def test_steps_are_ordered_by_number_not_by_time(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (2, 10):
        store.save(step, _state(step))
    os.utime(store.path("step", 10), (0, 0))
    loaded = CheckpointStore(tmp_path).load_newest()
    assert loaded is not None
    assert loaded[0] == 10


def test_torn_newest_falls_back_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, _state(1))
    newest = store.save(2, _state(2))
    newest.write_bytes(newest.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        loaded = CheckpointStore(tmp_path).load_newest()
    assert loaded is not None
    assert loaded[0] == 1
    assert "step-00000002.ckpt: damaged" in caplog.text
    assert "going back to step 1" in caplog.text
    assert newest.with_suffix(".corrupt").exists()


def test_all_torn_stops_and_touches_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.load_newest() is None
    for step in (1, 2):
        store.save(step, _state(step)).write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no checkpoint is whole"):
            CheckpointStore(tmp_path).load_newest()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001.ckpt", "step-00000002.ckpt"]


def test_only_set_aside_files_are_no_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "step-00000001.corrupt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="set aside"):
        CheckpointStore(tmp_path).load_newest()


def test_killed_at_every_call_of_a_save(tmp_path: Path, child: Start) -> None:
    killed, number = 0, 0
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        store = CheckpointStore(folder)
        store.save(1, _state(1))
        store.save(2, _state(2))

        def save(store: CheckpointStore = store, number: int = number) -> None:
            with _at_call(number, lambda _: os.kill(os.getpid(), signal.SIGKILL)):
                store.save(3, _state(3))

        process = child(save)
        process.join()
        loaded = CheckpointStore(folder).load_newest()
        assert loaded is not None
        assert _same(loaded[1], _state(loaded[0]))
        assert not list(folder.glob("*.tmp"))
        if process.exitcode == 0:
            assert loaded[0] == 3
            break
        assert process.exitcode == -signal.SIGKILL
        assert loaded[0] in (2, 3)
        assert not list(folder.glob("*.corrupt"))
        killed, number = killed + 1, number + 1
    assert killed >= 8


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_an_error_at_every_call_of_a_save_leaves_the_old_state(tmp_path: Path, code: int) -> None:
    def fail(name: str) -> None:
        raise OSError(code, os.strerror(code))

    failed = 0
    for number in range(7):
        folder = tmp_path / str(number)
        folder.mkdir()
        store = CheckpointStore(folder)
        store.save(1, _state(1))
        with _at_call(number, fail) as calls, contextlib.suppress(CheckpointError):
            store.save(2, _state(2))
            pytest.fail(f"no error from call {calls[number]}")
        failed += 1
        renamed = "rename" in calls[:number]
        loaded = store.load_newest()
        assert loaded is not None
        assert loaded[0] == (2 if renamed else 1)
        if calls[number] != "unlink":
            assert not list(folder.glob("*.tmp"))
    assert failed == 7


def test_error_names_path_and_cause(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with _at_call(1, fail), pytest.raises(CheckpointError, match=r"a\.ckpt: cannot write the checkpoint: Input/output"):
        write_checkpoint(tmp_path / "a.ckpt", _state(1))


def test_order_of_a_save(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, _state(step))
    with _at_call(-1, lambda _: None) as calls:
        store.save(3, _state(3))
    assert calls == ["open", "write", "fsync", "close", "rename", "open", "fsync", "close", "unlink"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:100]))
    write_checkpoint(tmp_path / "a.ckpt", _state(1))
    monkeypatch.undo()
    assert _same(read_checkpoint(tmp_path / "a.ckpt"), _state(1))


def test_file_size_limit(tmp_path: Path, child: Start) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, _state(1))

    def save() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(CheckpointError, match="File too large"):
            store.save(2, _state(2))

    process = child(save)
    process.join()
    assert process.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.ckpt"]


def test_lock_has_one_holder_and_names_it(tmp_path: Path, child: Start) -> None:
    lock = RunLock(tmp_path)

    def take() -> None:
        with pytest.raises(RunLockedError, match=f"process {os.getppid()} is training in this directory"):
            RunLock(tmp_path)

    process = child(take)
    process.join()
    assert process.exitcode == 0
    lock.release()
    RunLock(tmp_path).release()


def test_lock_of_a_dead_process_is_taken_over_with_a_notice(
    tmp_path: Path, child: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def die() -> None:
        RunLock(tmp_path)
        os.kill(os.getpid(), signal.SIGKILL)

    process = child(die)
    process.join()
    with caplog.at_level(logging.WARNING):
        RunLock(tmp_path).release()
    assert f"process {process.pid} ended without releasing the run; taken over" in caplog.text
    caplog.clear()
    RunLock(tmp_path).release()
    assert not caplog.text
