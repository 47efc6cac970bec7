"""The data sets that a command line or a recipe can name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch.utils.data import Dataset

__all__ = ["SPLITS", "DataName", "open_dataset", "parse"]

SPLITS = ("train", "validation", "test")
_CLASSES = {"keyword_spotting": 12, "cifar10": 10, "cifar100": 100, "speech_commands": 12}
_CIFAR_VALIDATION = 5000  # of the 50,000 training images, the last ones


class DataName(NamedTuple):
    """A data set by name: ``kind`` or ``kind:folder``."""

    kind: str
    folder: str

    @property
    def classes(self) -> int:
        """Number of labels."""
        return _CLASSES[self.kind]


def parse(text: str) -> DataName:
    """Reads ``keyword_spotting``, ``cifar10:DIR``, ``cifar100:DIR`` or ``speech_commands:DIR``.

    Raises:
        ValueError: something else.
    """
    kind, _, folder = text.partition(":")
    if kind not in _CLASSES:
        raise ValueError(f"data: expected one of {', '.join(_CLASSES)}, got {kind!r}")
    if kind == "keyword_spotting" and folder:
        raise ValueError(f"data: keyword_spotting is inside the package and takes no folder: {folder!r}")
    if kind != "keyword_spotting" and not folder:
        raise ValueError(f"data: expected {kind}:DIR with the folder of the data, got {text!r}")
    return DataName(kind, folder)


def open_dataset(name: DataName, split: str, scaling: tuple[Sequence[float], Sequence[float]] | None = None) -> Any:
    """One split as a map-style data set of (x, y).

    CIFAR has no validation split of its own: the last 5,000 training images serve as one.

    Args:
        name: of the data set.
        split: one of ``SPLITS``.
        scaling: mean and standard deviation of an image's channels, of pixels in 0..1; None: those of the data set.

    Raises:
        DataError: the data are missing, damaged or of another kind.
    """
    from torch.utils.data import Subset

    from pqk_ext import data

    if name.kind == "keyword_spotting":
        return data.keyword_spotting(split)  # type: ignore[arg-type]
    if name.kind == "speech_commands":
        return data.speech_commands(name.folder, split)  # type: ignore[arg-type]
    own = {} if scaling is None else {"mean": scaling[0], "std": scaling[1]}
    images: Dataset[Any] = getattr(data, name.kind)(name.folder, train=split != "test", **own)
    if split == "test":
        return images
    count = len(images)  # type: ignore[arg-type]
    border = count - _CIFAR_VALIDATION
    return Subset(images, range(border) if split == "train" else range(border, count))
