"""The processes that train together (``torchrun``); a group of one where there is nothing distributed."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pqk_ext.training.errors import ProcessesDifferError, ProcessLostError
from pqk_ext.training.replicas import copy_back, differing_tensors, digests, split_by_dtype

__all__ = ["Group"]

_JOIN_TIMEOUT = datetime.timedelta(minutes=10)  # processes may load their data before they meet
_ROLL_CALL_SECONDS = 5.0
_GROUPS = itertools.count()  # the same number in every process, which all make the same groups


class Group:
    """Joins the process group that exists, or the one that ``torchrun`` describes in the environment.

    Every process holds the same weights. Each works on its part of every batch; gradients are averaged, and what is
    computed without gradients (running statistics, ranges of activations) is taken from process 0.

    Nothing waits for another process longer than ``seconds``: a process that ended or hangs ends the others with a
    ``ProcessLostError`` that names it.

    Attributes:
        rank: number of this process.
        size: how many there are.
    """

    def __init__(self, device: torch.device, seconds: float = 60.0) -> None:
        self._made_here = False
        self.device = device
        self._roll_call_seconds = min(_ROLL_CALL_SECONDS, seconds / 4)
        self._limit = datetime.timedelta(seconds=seconds - self._roll_call_seconds)
        if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_JOIN_TIMEOUT)
            self._made_here = True
        joined = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)
        if self.size == 1:
            return
        # Gloo for what is said, whatever carries the gradients: it works on numbers in memory, and its limit raises an
        # error, where NCCL's would end the process without a word.
        self._board = _board()
        self._names = ["?"] * self.size
        with self._watched():
            self._control = dist.new_group(backend="gloo", timeout=self._limit)
        self._carrier = self._control if device.type == "cpu" else None
        self._names = self.all_objects(f"pid {os.getpid()} on {socket.gethostname()}")

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def close(self) -> None:
        """Leaves the process group, if it was made here."""
        if self.size > 1:
            dist.destroy_process_group(self._control)
        if self._made_here:
            dist.destroy_process_group()

    def tell_failure(self, error: BaseException) -> None:
        """Lets the others know why this process will not answer them any more."""
        if self.size > 1 and not isinstance(error, ProcessLostError):
            with contextlib.suppress(RuntimeError):
                self._board.set(f"{self.rank}", f"{type(error).__name__}: {error}")

    # --- what is said -----------------------------------------------------------------------------------------

    def all_values(self, values: Sequence[float]) -> list[list[float]]:
        """The numbers of every process, by rank."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64)
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        with self._watched():
            dist.all_gather(gathered, mine, group=self._control)
        return [row.tolist() for row in gathered]

    def all_objects(self, value: Any) -> list[Any]:
        """The objects of every process, by rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        with self._watched():
            dist.all_gather_object(gathered, value, group=self._control)
        return gathered

    def from_main(self, value: Any) -> Any:
        """The object of process 0."""
        if self.size == 1:
            return value
        holder = [value]
        with self._watched():
            dist.broadcast_object_list(holder, src=0, group=self._control)
        return holder[0]

    def barrier(self) -> None:
        """Waits for every process."""
        self.all_values([0.0])

    # --- tensors ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by the mean over the processes."""
        if self.size == 1:
            return
        self._meet_before_carrying()
        for gradients in split_by_dtype(p.grad for p in parameters if p.grad is not None):
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            with self._watched():
                dist.all_reduce(flat, group=self._carrier)
            flat /= self.size
            copy_back(gradients, flat)

    @torch.no_grad()
    def share_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by that of process 0."""
        if self.size == 1:
            return
        self._meet_before_carrying()
        for same in split_by_dtype(tensors):
            # Bool tensors cannot be broadcast by every backend.
            flat = torch.cat([tensor.flatten() for tensor in same])
            wire = flat.to(torch.uint8) if flat.dtype == torch.bool else flat
            with self._watched():
                dist.broadcast(wire, src=0, group=self._carrier)
            copy_back(same, wire.to(flat.dtype))

    # --- agreement --------------------------------------------------------------------------------------------

    def check_equal(self, tensors: Mapping[str, Tensor]) -> None:
        """Compares the bits of the tensors over the processes.

        Raises:
            ProcessesDifferError: some differ from those of process 0; names them.
        """
        if self.size == 1:
            return
        different = differing_tensors(self.all_objects(digests(tensors)))
        if different:
            raise ProcessesDifferError(f"the processes do not hold the same bits: {different}")

    def check_started_alike(self, facts: Mapping[str, Any]) -> None:
        """Compares what the processes were started with.

        Raises:
            ProcessesDifferError: names each fact that differs from process 0's.
        """
        of_all = self.all_objects(dict(facts))
        lines = [
            f"{name} is {of_all[0].get(name)!r} in process 0 and {mine.get(name)!r} in process {rank}"
            for rank, mine in enumerate(of_all)
            for name in sorted(of_all[0].keys() | mine.keys())
            if of_all[0].get(name) != mine.get(name)
        ]
        if lines:
            raise ProcessesDifferError("the processes were not started alike: " + "; ".join(lines[:8]))

    # --- lost processes ---------------------------------------------------------------------------------------

    def _meet_before_carrying(self) -> None:
        """A backend without a limit of its own must not be waited in for a process that never comes."""
        if self._carrier is None:
            self.barrier()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ProcessLostError(self._roll_call(error)) from error

    def _roll_call(self, error: RuntimeError) -> str:
        """Who is still there: each process that met an error writes its name on the board that all share."""
        answers: dict[int, str] = {}
        end = time.monotonic() + self._roll_call_seconds
        try:
            self._board.set(f"{self.rank}", "")
            while len(answers) < self.size and time.monotonic() < end:
                for rank in set(range(self.size)) - answers.keys():
                    if self._board.check([f"{rank}"]):
                        answers[rank] = self._board.get(f"{rank}").decode()
                time.sleep(0.02)
        except RuntimeError:
            return f"training cannot go on: process 0 ({self._names[0]}), which holds the processes' store, has ended"
        ends = [f"process {r} ({self._names[r]}) ended: {why}" for r, why in sorted(answers.items()) if why]
        silent = sorted(set(range(self.size)) - answers.keys())
        ends += [f"process {rank} ({self._names[rank]}) was killed or hangs" for rank in silent]
        reason = (
            "; ".join(ends)
            or f"all processes answer, but not within {self._limit.total_seconds():g} s of each other: {error}"
        )
        return f"training cannot go on: {reason}"


def _board() -> Any:
    """A part of the store through which the processes found each other."""
    c10d: Any = dist.distributed_c10d
    return c10d.PrefixStore(f"pqk-group-{next(_GROUPS)}", c10d._get_default_store())
