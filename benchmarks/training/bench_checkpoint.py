"""What checkpoints cost: the time of one save, durable on disk, and its share of a run at the default interval.

`python benchmarks/training/bench_checkpoint.py` takes half a minute and writes `benchmarks/results/checkpoint.json`.
The state is that of a run in phase 1 with SGD and momentum; a new best is saved too each time, which is the worst case.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import paired

from pqk_ext import PQKConfig, build_info, fit, models
from pqk_ext.training.trainer import Trainer

NETWORKS = {"ds_cnn": (1, 49, 10), "resnet20": (3, 32, 32), "mobilenet_v1": (3, 32, 32)}
INTERVAL = inspect.signature(fit).parameters["checkpoint_seconds"].default


class _Timed(Trainer):
    """Takes the time of every save, each with a best network."""

    times: list[float]

    def save(self) -> Path:
        self.best = {"step": self.step, "accuracy": 0.5, "loss": 1.0}
        self.unsaved_best = copy.deepcopy(dict(self.model.state_dict()))
        start = time.perf_counter()
        path = super().save()
        self.times.append(time.perf_counter() - start)
        return path


def measure(network: str, saves: int) -> dict[str, Any]:
    """Seconds of a save (median), bytes of a checkpoint, share of the run."""
    # One batch an epoch: all saves but the first are of a run that is in phase 1 and has momentum.
    data = torch.randn(2, *NETWORKS[network]), torch.zeros(2, dtype=torch.int64)
    config = PQKConfig(total_steps=saves, phase1_fraction=1.0, warmup_fraction=0.0, kd_warmup_fraction=0.0)
    _Timed.times = []
    with tempfile.TemporaryDirectory() as folder, mock.patch("pqk_ext.training.loop.Trainer", _Timed):
        model = models.create(network)
        result = fit(model, data, data, config, folder, batch_size=2, lr=1e-4, checkpoint_steps=1, tensorboard=False)
        size = result.checkpoint.stat().st_size
    seconds = statistics.median(_Timed.times)
    return {"network": network, "seconds": seconds, "bytes": size, "share": seconds / INTERVAL, "interval": INTERVAL}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--saves", type=int, default=15)
    options = parser.parse_args()
    path = None
    for network in options.networks:
        row = measure(network, options.saves)
        print(
            f"{network}: {row['seconds'] * 1e3:.1f} ms for {row['bytes'] / 1e6:.1f} MB, "
            f"{row['share']:.3%} of a run that saves every {row['interval']:g} s"
        )
        path = paired.merge_results("checkpoint", "rows", {network: row}, torch=torch.__version__, build=build_info())
    print(path)


if __name__ == "__main__":
    main()
