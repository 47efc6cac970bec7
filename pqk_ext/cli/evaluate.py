"""``pqk eval``: the accuracy of a file, or of a run, on one split of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pqk_ext.cli.failures import ExitCode, Failure
from pqk_ext.cli.options import DataSpec, JsonPath, Threads, load_network
from pqk_ext.cli.output import check_json, emit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BATCH = 256


def evaluate(
    target: Annotated[Path, typer.Argument(metavar="FILE|RUN_DIR", help="A .pqk file, or a directory of pqk train.")],
    data: DataSpec,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    threads: Threads = 1,
    json: JsonPath = None,
) -> None:
    """Score a file (without torch, if the data are those in the package) or the best weights of a run."""
    from pqk_ext.cli import datasets

    check_json(json)
    if split not in datasets.SPLITS:
        raise Failure(ExitCode.USAGE, f"--split: expected one of {', '.join(datasets.SPLITS)}, got {split!r}")
    name = datasets.parse(data)
    predict = _RunPredictor(target) if target.is_dir() else _FilePredictor(target, threads)
    x, y = datasets.arrays(name, split)
    try:
        right = sum(int((predict(x[i : i + _BATCH]) == y[i : i + _BATCH]).sum()) for i in range(0, len(x), _BATCH))
    except (TypeError, ValueError, RuntimeError) as error:
        raise Failure(
            ExitCode.BAD_FILE, f"{target}: does not take samples of {data}, {x.shape[1:]}: {error}"
        ) from error
    values = {
        "target": str(target),
        "data": data,
        "split": split,
        "samples": len(y),
        "correct": right,
        "accuracy": right / len(y),
    }
    emit(values, json, f"{right / len(y):.2%} of {len(y)} samples ({split}) are right")


class _FilePredictor:
    def __init__(self, path: Path, threads: int) -> None:
        self._network = load_network(path, threads=threads)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = self._network(x).argmax(1)
        return labels


class _RunPredictor(_FilePredictor):
    def __init__(self, run_dir: Path) -> None:
        from pqk_ext.cli import run_folder

        self._model = run_folder.trained_model(run_dir)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        import torch

        with torch.no_grad():
            labels: NDArray[np.int64] = self._model(torch.from_numpy(x)).argmax(1).numpy()
        return labels
