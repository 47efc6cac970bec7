"""The data sets that a command line can name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pqk_ext.cli.failures import ExitCode, Failure, reading

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch.utils.data import Dataset

__all__ = ["SPLITS", "DataName", "arrays", "open_dataset", "parse"]

SPLITS = ("train", "validation", "test")
_CLASSES = {"keyword_spotting": 12, "cifar10": 10, "cifar100": 100, "speech_commands": 12}
_CIFAR_VALIDATION = 5000  # of the 50,000 training images, the last ones


class DataName(NamedTuple):
    """A data set as ``--data`` names it: ``kind`` or ``kind:folder``."""

    kind: str
    folder: str

    @property
    def classes(self) -> int:
        """Number of labels."""
        return _CLASSES[self.kind]


def parse(text: str) -> DataName:
    """Reads the value of ``--data``."""
    kind, _, folder = text.partition(":")
    if kind not in _CLASSES:
        raise Failure(ExitCode.USAGE, f"--data: expected one of {', '.join(_CLASSES)}, got {kind!r}")
    if kind == "keyword_spotting" and folder:
        raise Failure(ExitCode.USAGE, f"--data: keyword_spotting is inside the package and takes no folder: {folder!r}")
    if kind != "keyword_spotting" and not folder:
        raise Failure(ExitCode.USAGE, f"--data: expected {kind}:DIR with the folder of the data, got {text!r}")
    return DataName(kind, folder)


def open_dataset(name: DataName, split: str) -> Dataset[Any]:
    """One split as a map-style data set of (x, y).

    CIFAR has no validation split of its own: the last 5,000 training images serve as one.

    Raises:
        DataError: the data are missing, damaged or of another kind.
    """
    from torch.utils.data import Subset

    from pqk_ext import data

    if name.kind == "keyword_spotting":
        return data.keyword_spotting(split)  # type: ignore[arg-type]
    with reading(name.folder):
        if name.kind == "speech_commands":
            return data.speech_commands(name.folder, split)  # type: ignore[arg-type]
        images = getattr(data, name.kind)(name.folder, train=split != "test")
    if split == "test":
        return images  # type: ignore[no-any-return]
    border = len(images) - _CIFAR_VALIDATION
    return Subset(images, range(border) if split == "train" else range(border, len(images)))


def arrays(name: DataName, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """One split as float32 ``(N, ...)`` and int64 ``(N,)``; needs no torch for the data inside the package."""
    if name.kind == "keyword_spotting":
        from pqk_ext.data import keyword_spotting_arrays

        return keyword_spotting_arrays(split)  # type: ignore[arg-type]
    from torch.utils.data import default_collate

    dataset = open_dataset(name, split)
    x, y = default_collate([dataset[i] for i in range(len(dataset))])  # type: ignore[arg-type]
    return x.numpy(), y.numpy()
