"""The processes that train together (``torchrun``); a group of one where there is nothing distributed."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Group"]

_TIMEOUT = datetime.timedelta(minutes=10)


class Group:
    """Joins the process group that exists, or the one that ``torchrun`` describes in the environment.

    Every process holds the same weights. Each works on its part of every batch; gradients are averaged, and what is
    computed without gradients (running statistics, ranges of activations) is taken from process 0.

    Attributes:
        rank: number of this process.
        size: how many there are.
    """

    def __init__(self, device: torch.device) -> None:
        self._made_here = False
        if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
            self._made_here = True
        joined = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)
        self.device = device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def close(self) -> None:
        """Leaves the process group, if it was made here."""
        if self._made_here:
            dist.destroy_process_group()

    def all_values(self, values: Sequence[float]) -> list[list[float]]:
        """The numbers of every process, by rank."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64, device=self.device)
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(gathered, mine)
        return [row.tolist() for row in gathered]

    def all_objects(self, value: Any) -> list[Any]:
        """The objects of every process, by rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_main(self, value: Any) -> Any:
        """The object of process 0."""
        if self.size == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, src=0, device=self.device)
        return holder[0]

    def barrier(self) -> None:
        """Waits for every process."""
        self.all_values([0.0])

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by the mean over the processes."""
        if self.size == 1:
            return
        for gradients in _by_dtype(p.grad for p in parameters if p.grad is not None):
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            flat /= self.size
            _copy_back(gradients, flat)

    @torch.no_grad()
    def share_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by that of process 0."""
        if self.size == 1:
            return
        for same in _by_dtype(tensors):
            # Bool tensors cannot be broadcast by every backend.
            flat = torch.cat([tensor.flatten() for tensor in same])
            wire = flat.to(torch.uint8) if flat.dtype == torch.bool else flat
            dist.broadcast(wire, src=0)
            _copy_back(same, wire.to(flat.dtype))

    def check_equal(self, tensors: Iterable[Tensor]) -> None:
        """Raises RuntimeError if the processes do not hold the same bits; names those that differ from process 0."""
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        digests = self.all_objects(digest.hexdigest())
        others = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if others:
            raise RuntimeError(f"the weights of processes {others} differ from those of process 0")


def _by_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def _copy_back(tensors: Sequence[Tensor], flat: Tensor) -> None:
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))
