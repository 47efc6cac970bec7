"""A recipe's data in memory, and what changes a batch of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate

from pqk_ext.data.augment import crop_and_flip, on_cpu, shift_and_noise
from pqk_ext.data.cifar import ImageDataset
from pqk_ext.data.named import open_dataset, parse
from pqk_ext.nn.layout import fast_layout

__all__ = ["Data", "augmentation", "load_data"]

Pair = tuple[Tensor, Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]

_SCALING = {
    "cifar": None,
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "raw": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
_SHIFT = 4  # of 49 frames
_NOISE = 0.1  # of each coefficient's own standard deviation


@dataclasses.dataclass(frozen=True)
class Data:
    """Inputs float32 (N, ...) and labels int64 (N,) of each split.

    Attributes:
        train: what networks learn from.
        validation: what choices are made by.
        test: what is reported.
        classes: number of labels.
    """

    train: Pair
    validation: Pair
    test: Pair
    classes: int

    def to(self, device: torch.device) -> Data:
        """The same on ``device``."""
        train, validation, test = ((x.to(device), y.to(device)) for x, y in (self.train, self.validation, self.test))
        return Data(train, validation, test, self.classes)

    def learning_all(self) -> Data:
        """With the samples of validation among those to learn from; they stay in ``validation`` as well."""
        pairs = zip(self.train, self.validation, strict=True)
        x, y = (torch.cat(parts) for parts in pairs)
        return dataclasses.replace(self, train=(x, y))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.train[0].shape[1:])


@functools.lru_cache(maxsize=1)
def load_data(text: str, pixels: str) -> Data:
    """All splits of a data set as a recipe names it.

    Raises:
        DataError: the data are missing, damaged or of another kind.
        ValueError: no data set of that name.
    """
    name = parse(text)
    train, validation, test = (
        _tensors(open_dataset(name, split, _SCALING[pixels])) for split in ("train", "validation", "test")
    )
    return Data(train, validation, test, name.classes)


def _tensors(dataset: object) -> Pair:
    if isinstance(dataset, TensorDataset):
        x, y = dataset.tensors
        return x, y
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, ImageDataset):
        return dataset.dataset.batch(dataset.indices)
    if isinstance(dataset, ImageDataset):
        return dataset.batch(range(len(dataset)))
    x, y = default_collate([dataset[i] for i in range(len(dataset))])  # type: ignore[index,arg-type]
    return x, y


def augmentation(name: str, data: Data) -> Augment:
    """What a recipe calls ``training.augment``: ``none``, ``keywords`` or ``crop_flip``.

    Batches come in the memory format in which the networks of the zoo train fastest on the CPU.
    """
    if name == "keywords":
        spread = _NOISE * data.train[0].std(dim=(0, 1, 2), keepdim=True)
        return lambda x, generator: fast_layout(shift_and_noise(x, generator, shift=_SHIFT, spread=spread))
    if name == "crop_flip":
        return lambda x, generator: fast_layout(_crop_and_flip(x, generator))
    return lambda x, generator: fast_layout(x)


def _crop_and_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    seed = int(torch.randint(2**31, (), generator=on_cpu(generator)))
    return crop_and_flip(x, range(len(x)), seed=seed, epoch=0)
