"""Tensors that several processes hold alike: how they are compared, and sent in few messages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["copy_back", "differing_tensors", "digests", "split_by_dtype"]

_NAMED = 5  # differences that a message names


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of the bytes, type and shape of each tensor."""
    return {name: _digest(tensor) for name, tensor in tensors.items()}


def _digest(tensor: Tensor) -> str:
    value = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
    digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def differing_tensors(by_rank: Sequence[Mapping[str, str]]) -> str:
    """Which digests differ from those of process 0, and where; empty if none does."""
    differences: dict[str, list[int]] = {}
    for rank, mine in enumerate(by_rank):
        for name in by_rank[0].keys() | mine.keys():
            if mine.get(name) != by_rank[0].get(name):
                differences.setdefault(name, []).append(rank)
    named = [f"{name} in {_processes(ranks)}" for name, ranks in sorted(differences.items())[:_NAMED]]
    more = [f"and {len(differences) - _NAMED} more"] if len(differences) > _NAMED else []
    return ", ".join(named + more) + " differ from process 0" if differences else ""


def _processes(ranks: Sequence[int]) -> str:
    return f"process {ranks[0]}" if len(ranks) == 1 else f"processes {', '.join(map(str, ranks))}"


def split_by_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """The tensors of each type together, in the order of their first."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def copy_back(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Copies the parts of a concatenation of flattened tensors into the tensors."""
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))
