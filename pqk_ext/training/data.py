"""Batches in an order that is a function of (seed, epoch) alone, from any position on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate, get_worker_info

__all__ = ["Augment", "Batches", "derived_seed", "fingerprint"]

Batch = tuple[Tensor, Tensor]
# (inputs of one batch, generator of that batch) -> inputs
Augment = Callable[[Tensor, torch.Generator], Tensor]

_FINGERPRINT_SAMPLES = 32


def derived_seed(*parts: int) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    digest = hashlib.sha256(",".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Batches:
    """The batches of one data set; holds no position: ``epoch(e, start)`` begins anywhere.

    A ``TensorDataset``, or a pair of tensors, is indexed directly. Any other map-style data set of (x, y) goes
    through a ``DataLoader``, and the global random generators are seeded for each sample from (seed, epoch, index): a
    random transform gives the same sample with any number of workers, and after any restart.

    Args:
        data: the data set.
        batch_size: samples a batch; a shuffled epoch leaves its last incomplete batch out (other samples each
            time), and a data set smaller than a batch is one batch.
        shuffle: random order, or that of the data set.
        seed: of order and transforms.
        num_workers: loader processes; 0 loads in this one.
        worker_init: called in each new worker process.

    Raises:
        TypeError: no map-style data set.
        ValueError: no samples, or a batch size below 1.
    """

    def __init__(
        self,
        data: Dataset[Any] | Sequence[Tensor],
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        num_workers: int = 0,
        worker_init: Callable[[], None] | None = None,
    ) -> None:
        if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
            data = TensorDataset(*data)
        if not isinstance(data, Dataset) or not hasattr(data, "__len__"):
            raise TypeError(
                f"data: expected a map-style Dataset of (x, y) or a pair of tensors, got {type(data).__name__}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size: expected an integer of at least 1, got {batch_size}")
        self.size = len(data)
        if self.size == 0:
            raise ValueError("data: expected at least one sample, got an empty data set")
        self.dataset: Dataset[Any] = data
        self.batch_size = min(batch_size, self.size)
        self.shuffle, self.seed, self.num_workers, self.worker_init = shuffle, seed, num_workers, worker_init
        self.rank, self.processes = 0, 1

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.size // self.batch_size if self.shuffle else -(-self.size // self.batch_size)

    def share(self, rank: int, size: int) -> None:
        """Restricts this object to the part of process ``rank`` of ``size``.

        Shuffled: an equal part of every batch, so that the steps stay what they are with one process; else every
        ``size``-th batch.

        Raises:
            ValueError: a shuffled batch cannot be divided evenly.
        """
        if self.shuffle and self.batch_size % size:
            raise ValueError(f"batch_size: expected a multiple of the {size} processes, got {self.batch_size}")
        self.rank, self.processes = rank, size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number ``start`` on; nothing is loaded for those before it."""
        order = torch.arange(self.size)
        if self.shuffle:
            order = torch.randperm(self.size, generator=torch.Generator().manual_seed(derived_seed(self.seed, epoch)))
        batches = list(order.split(self.batch_size))[start : len(self)]
        if self.shuffle:
            batches = [batch.chunk(self.processes)[self.rank] for batch in batches]
        else:
            batches = batches[self.rank :: self.processes]
        if isinstance(self.dataset, TensorDataset):
            x, y = self.dataset.tensors
            if x.device.type != "cpu":
                # All indices at once: a copy from pageable memory in each step would wait for the step before.
                batches = list(torch.cat(batches).to(x.device).split([len(chosen) for chosen in batches]))
            return ((x[chosen], y[chosen]) for chosen in batches)
        return iter(self._loader(epoch, [chosen.tolist() for chosen in batches]))

    def move_to(self, device: torch.device) -> None:
        """Puts a data set of tensors on the device whole, if it takes no more than half of the free memory there.

        Batches are then gathered there. Any other data set stays where it is.
        """
        if device.type == "cpu" or not isinstance(self.dataset, TensorDataset):
            return
        tensors = self.dataset.tensors
        wanted = sum(part.numel() * part.element_size() for part in tensors if part.device != device)
        if wanted <= torch.cuda.mem_get_info(device)[0] // 2:
            self.dataset = TensorDataset(*(part.to(device) for part in tensors))

    def first_inputs(self) -> Tensor:
        """Inputs of the first batch of epoch 0."""
        return next(iter(self.epoch(0)))[0]

    def samples(self, count: int) -> Batch:
        """Up to ``count`` samples, spread evenly over the whole data set; the same each time, in every process."""
        chosen = torch.linspace(0, self.size - 1, min(count, self.size), dtype=torch.float64).long()
        if isinstance(self.dataset, TensorDataset):
            x, y = self.dataset.tensors
            return x[chosen], y[chosen]
        samples = _SeededSamples(self.dataset, derived_seed(self.seed, 0))
        x, y = default_collate([samples[index] for index in chosen.tolist()])
        return x, y

    def _loader(self, epoch: int, batches: list[list[int]]) -> DataLoader[Batch]:
        def start_worker(_: int) -> None:
            if self.worker_init is not None:
                self.worker_init()

        return DataLoader(
            _SeededSamples(self.dataset, derived_seed(self.seed, epoch)),
            batch_sampler=batches,
            num_workers=self.num_workers,
            worker_init_fn=start_worker if self.num_workers else None,
            # Without one, each new iterator would draw a number from the global generator.
            generator=torch.Generator().manual_seed(0),
        )


class _SeededSamples(Dataset[Any]):
    """Seeds the global generators from (seed, index) before each sample; the trainer's own states are put back."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, index: int) -> Any:
        if get_worker_info() is not None:
            return self._seeded(index)
        states = torch.get_rng_state(), np.random.get_state(), random.getstate()
        try:
            return self._seeded(index)
        finally:
            torch.set_rng_state(states[0])
            np.random.set_state(states[1])
            random.setstate(states[2])

    def _seeded(self, index: int) -> Any:
        seed = derived_seed(self.seed, index)
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        random.seed(seed)
        return self.dataset[index]


def fingerprint(data: Batches) -> str:
    """SHA-256 of a data set: of all bytes of tensors, else of the length and of 32 samples spread over the set."""
    digest = hashlib.sha256(f"{data.size}".encode())

    def add(value: Any) -> None:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)

    if isinstance(data.dataset, TensorDataset):
        for tensor in data.dataset.tensors:
            add(tensor)
        return digest.hexdigest()
    samples = _SeededSamples(data.dataset, 0)
    for index in np.linspace(0, data.size - 1, min(data.size, _FINGERPRINT_SAMPLES)).astype(int).tolist():
        for value in samples[index]:
            add(value)
    return digest.hexdigest()
