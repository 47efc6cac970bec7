"""The data sets that a command line can name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pqk_ext.cli.failures import ExitCode, Failure, reading
from pqk_ext.data import named
from pqk_ext.data.named import SPLITS, DataName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch.utils.data import Dataset

__all__ = ["SPLITS", "DataName", "arrays", "open_dataset", "parse"]


def parse(text: str) -> DataName:
    """Reads the value of ``--data``."""
    try:
        return named.parse(text)
    except ValueError as error:
        raise Failure(ExitCode.USAGE, f"--{error}") from error


def open_dataset(name: DataName, split: str) -> Dataset[Any]:
    """One split as a map-style data set of (x, y).

    Raises:
        DataError: the data are missing, damaged or of another kind.
    """
    with reading(name.folder or name.kind):
        return named.open_dataset(name, split)  # type: ignore[no-any-return]


def arrays(name: DataName, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """One split as float32 ``(N, ...)`` and int64 ``(N,)``; needs no torch for the data inside the package."""
    if name.kind == "keyword_spotting":
        from pqk_ext.data import keyword_spotting_arrays

        return keyword_spotting_arrays(split)  # type: ignore[arg-type]
    from torch.utils.data import default_collate

    dataset = open_dataset(name, split)
    x, y = default_collate([dataset[i] for i in range(len(dataset))])  # type: ignore[arg-type]
    return x.numpy(), y.numpy()
