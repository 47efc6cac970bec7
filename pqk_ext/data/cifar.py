"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from the folders of their binary version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from pqk_ext.data.augment import crop_and_flip
from pqk_ext.errors import DataError

Bytes = npt.NDArray[np.uint8]
Item = tuple[torch.Tensor, torch.Tensor]

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Layout:
    """One version of CIFAR: a record is `labels` bytes, the last of which is the class, and 3072 pixels."""

    folder: str
    pickle_folder: str
    pickle_files: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]
    records: tuple[int, int]  # in each train file, in the test file
    classes: tuple[int, ...]  # number of values of each label byte


_CIFAR10 = _Layout(
    folder="cifar-10-batches-bin",
    pickle_folder="cifar-10-batches-py",
    pickle_files=("data_batch_1", "test_batch"),
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    records=(10_000, 10_000),
    classes=(10,),
)
_CIFAR100 = _Layout(
    folder="cifar-100-binary",
    pickle_folder="cifar-100-python",
    pickle_files=("train", "test"),
    train=("train.bin",),
    test=("test.bin",),
    records=(50_000, 10_000),
    classes=(20, 100),
)


class ImageDataset(Dataset[Item]):
    """Images in memory as bytes, scaled when they are taken, and changed at random if a seed is given.

    An item is `(x, y)`: `x` float32 (C, H, W), `(pixel / 255 - mean) / std`; `y` int64 scalar.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        mean: Per channel, of pixels in 0..1.
        std: Per channel, of pixels in 0..1; `mean=(0, 0, 0), std=(1 / 255,) * 3` gives pixels in 0..255.
        augment_seed: Seed for `crop_and_flip`, or None for images as they are.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augment_seed: int | None = None,
    ) -> None:
        channels = images.shape[1] if images.dim() == 4 else 0
        if images.dtype != torch.uint8 or channels == 0 or labels.shape != (len(images),):
            raise ValueError(
                f"images, labels: expected uint8 (N, C, H, W) and (N,), got {images.dtype} {tuple(images.shape)} and "
                f"{tuple(labels.shape)}"
            )
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise ValueError(f"mean, std: expected {channels} values each, std above 0, got {mean} and {std}")
        self.images = images
        self.labels = labels
        self.augment_seed = augment_seed
        self.epoch = 0
        self._mean = 255 * torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = 255 * torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def set_epoch(self, epoch: int) -> None:
        """Choose the random changes of pass number `epoch`; call before each pass, as for a distributed sampler."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Item:
        """Return `(x, y)` of several items: float32 (len(indices), C, H, W) and int64 (len(indices),)."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        images = self.images[chosen]
        if self.augment_seed is not None:
            images = crop_and_flip(images, indices, seed=self.augment_seed, epoch=self.epoch)
        return (images.float() - self._mean) / self._std, self.labels[chosen]

    def __getitem__(self, index: int) -> Item:
        x, y = self.batch([range(len(self))[index]])
        return x[0], y[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """What a DataLoader calls instead of one `__getitem__` an item."""
        return list(zip(*self.batch(indices), strict=True))


def cifar10(
    root: str | Path,
    train: bool = True,
    *,
    mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
    std: Sequence[float] = (0.2470, 0.2435, 0.2616),
    augment_seed: int | None = None,
) -> ImageDataset:
    """Read CIFAR-10: 50,000 training or 10,000 test images, 32x32 RGB, 10 classes.

    Args:
        root: Folder with the unpacked binary version (`data_batch_1.bin` ..., or the folder that holds
            `cifar-10-batches-bin`).
        train: Training images, otherwise test images.
        mean: Per channel, of pixels in 0..1; the default is that of the training images.
        std: Likewise.
        augment_seed: Seed for random shifts and mirroring (`crop_and_flip`), or None.

    Raises:
        DataError: A file is missing or cut, a label is out of range, the classes are not equally frequent, or only the
            Python version (pickles) is there. The message names file, record and byte.
    """
    images, labels = _read(Path(root), _CIFAR10, train)
    return ImageDataset(images, labels, mean=mean, std=std, augment_seed=augment_seed)


def cifar100(
    root: str | Path,
    train: bool = True,
    *,
    mean: Sequence[float] = (0.5071, 0.4865, 0.4409),
    std: Sequence[float] = (0.2673, 0.2564, 0.2762),
    augment_seed: int | None = None,
) -> ImageDataset:
    """Read CIFAR-100: 50,000 training or 10,000 test images, 32x32 RGB, 100 classes (the "fine" labels).

    Args:
        root: Folder with the unpacked binary version (`train.bin`, `test.bin`, or the folder that holds
            `cifar-100-binary`).
        train: Training images, otherwise test images.
        mean: Per channel, of pixels in 0..1; the default is that of the training images.
        std: Likewise.
        augment_seed: Seed for random shifts and mirroring (`crop_and_flip`), or None.

    Raises:
        DataError: As for `cifar10`; also where one class appears under two superclasses.
    """
    images, labels = _read(Path(root), _CIFAR100, train)
    return ImageDataset(images, labels, mean=mean, std=std, augment_seed=augment_seed)


def _read(root: Path, layout: _Layout, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    folder = _folder(root, layout, train)
    files = layout.train if train else layout.test
    parts = [_read_file(folder / name, layout, layout.records[0 if train else 1]) for name in files]
    labels = np.concatenate([part[:, len(layout.classes) - 1] for part in parts])
    counts = np.bincount(labels, minlength=layout.classes[-1])
    expected = len(labels) // layout.classes[-1]
    if (counts != expected).any():
        label = int(np.argmax(counts != expected))
        where = folder / files[0] if len(files) == 1 else folder
        raise DataError(where, f"{expected} images of class {label}", f"{counts[label]}: labels were changed")
    pixels = np.concatenate([part[:, len(layout.classes) :] for part in parts])
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32)), torch.from_numpy(labels.astype(np.int64))


def _folder(root: Path, layout: _Layout, train: bool) -> Path:
    first = (layout.train if train else layout.test)[0]
    for folder in (root, root / layout.folder):
        if (folder / first).is_file():
            return folder
    for folder in (root, root / layout.pickle_folder):
        if any((folder / name).is_file() for name in layout.pickle_files):
            raise DataError(
                folder,
                f"the binary version ({layout.folder})",
                "the Python version, whose files are pickles; unpickling runs any code they hold, so they are not read",
            )
    if not root.is_dir():
        raise DataError(root, "an unpacked folder", "a file" if root.exists() else "nothing of that name")
    raise DataError(root / first, "a file", f"none, nor {Path(layout.folder) / first} in that folder")


def _read_file(path: Path, layout: _Layout, records: int) -> Bytes:
    """Return uint8 (records, label bytes + 3072), checked."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(path, "a readable file", error.strerror or str(error)) from error
    size = len(layout.classes) + _PIXELS
    if len(content) != records * size:
        whole = min(len(content) // size, records)
        expected = f"{records} records of {size} bytes ({records * size})"
        raise DataError(path, expected, f"{len(content)} bytes", record=whole, offset=whole * size)
    table = np.frombuffer(content, np.uint8).reshape(records, size)
    for column, classes in enumerate(layout.classes):
        bad = np.flatnonzero(table[:, column] >= classes)
        if len(bad):
            record = int(bad[0])
            got = str(table[record, column])
            raise DataError(path, f"a label below {classes}", got, record=record, offset=record * size + column)
    if len(layout.classes) == 2:
        _check_superclasses(path, table)
    return table


def _check_superclasses(path: Path, table: Bytes) -> None:
    """Every class belongs to one superclass: that of the majority of its images."""
    coarse, fine = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    votes = np.bincount(fine * 20 + coarse, minlength=2000).reshape(100, 20)
    bad = np.flatnonzero(coarse != votes.argmax(1)[fine])
    if len(bad):
        record = int(bad[0])
        expected = f"superclass {votes[fine[record]].argmax()} with class {fine[record]}"
        raise DataError(path, expected, str(coarse[record]), record=record, offset=record * table.shape[1])
