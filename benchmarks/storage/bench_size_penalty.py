"""File size against accuracy: the size penalty, fewer bits, and more zeros, on the network of `pqk demo`.

`python benchmarks/storage/bench_size_penalty.py` trains MLPerf Tiny's DS-CNN on the data inside the package by PQK,
once for each arm and each seed, for half as many steps as `pqk demo` (`--steps`). It writes
`benchmarks/results/size_penalty.json` after each run, which takes about a minute of one core. Runs that are there are
not done again; their files, in the folder that `PQK_BENCH_CACHE` names, are coded again by the present codecs.

Accuracy is that of the integer network on the validation and the test fold together, neither of which is trained on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import paired

from pqk_ext import coded_size, demo, export
from pqk_ext.config import PQKConfig
from pqk_ext.runtime import format

STEM = "size_penalty"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm(demo.Recipe):
    """The recipe of `pqk demo` with other bits, and the penalty in loss per kB."""

    steps: int = 460
    bits: int = 8
    size_penalty: float = 0.0
    step_size_lr_factor: float = 0.1  # AdamW moves a step size by its rate at most: this much lets it double

    def config(self, *, teacher: bool) -> PQKConfig:
        bits = dict.fromkeys(("weight_bits", "first_layer_bits", "last_layer_bits"), self.bits)
        return dataclasses.replace(
            super().config(teacher=teacher),
            size_penalty=self.size_penalty,
            step_size_lr_factor=self.step_size_lr_factor,
            **bits,
        )


# The first is `pqk demo`. Each other one is named by what differs from it, beside the rate of its step sizes: 0.1 where
# none is given.
ARMS = {
    "8 bits, default": Arm(step_size_lr_factor=0.01),
    "4 bits": Arm(bits=4),
    "3 bits": Arm(bits=3),
    "8 bits, penalty 0.3, rate 1": Arm(size_penalty=0.3, step_size_lr_factor=1),
    "4 bits, penalty 0.3, rate 1": Arm(bits=4, size_penalty=0.3, step_size_lr_factor=1),
    "3 bits, penalty 0.3, rate 1": Arm(bits=3, size_penalty=0.3, step_size_lr_factor=1),
    "5 bits": Arm(bits=5),
    "8 bits, penalty 1": Arm(size_penalty=1),
    "5 bits, penalty 1": Arm(bits=5, size_penalty=1),
    "4 bits, penalty 1": Arm(bits=4, size_penalty=1),
    "3 bits, penalty 1": Arm(bits=3, size_penalty=1),
    "8 bits, penalty 3": Arm(size_penalty=3),
    "4 bits, penalty 3": Arm(bits=4, size_penalty=3),
    "90 % zeros": Arm(sparsity=0.9),
    "4 bits, 70 % zeros, penalty 1": Arm(bits=4, sparsity=0.7, size_penalty=1),
}


def cache() -> Path:
    folder = Path(os.environ.get("PQK_BENCH_CACHE", "~/.cache/pqk_bench")).expanduser() / STEM
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def file_of(name: str, steps: int, seed: int) -> Path:
    return cache() / f"{name.replace(' ', '_').replace(',', '').replace('%', 'percent')}-{steps}-{seed}.pqk"


def train(arm: Arm, seed: int, path: Path) -> dict[str, Any]:
    """Trains one arm and writes its file."""
    folds = [demo.load_split(split) for split in ("validation", "test")]
    model = demo.train("pqk", arm, seed, demo.load_split("train"))
    export(model, path)
    accuracies = [demo.accuracy(model, fold) for fold in folds]
    clips = [len(fold[0]) for fold in folds]
    return {
        "validation": accuracies[0],
        "test": accuracies[1],
        "accuracy": sum(a * n for a, n in zip(accuracies, clips, strict=True)) / sum(clips),
        "estimate": coded_size(model).item(),
    }


def sizes(path: Path) -> dict[str, Any]:
    """Bytes with the present codecs: of the file, of its coded weights, and of their entropy."""
    format.write(format.read(path), path)
    info = format.inspect(path)
    weights = info.weights
    return {
        "file": info.total_bytes,
        "weights": sum(tensor.payload_bytes for tensor in weights),
        "entropy": sum(tensor.entropy_bits * tensor.count for tensor in weights) / 8,
        "zeros": 1 - sum(tensor.nonzeros for tensor in weights) / sum(tensor.count for tensor in weights),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Arm.steps, help="optimizer steps of each run")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = paired.RESULTS / f"{STEM}.json"
    done = json.loads(path.read_text()).get("runs", {}) if path.exists() else {}
    for seed in range(arguments.seeds):
        for name in arguments.arms:
            key = f"{name}/{arguments.steps}/{seed}"
            file, run = file_of(name, arguments.steps, seed), done.get(key)
            if run is None:
                run = train(dataclasses.replace(ARMS[name], steps=arguments.steps), seed, file)
            if file.exists():
                run |= sizes(file)
            run = {"arm": name, "steps": arguments.steps, "seed": seed} | run
            print(f"{key}: {run['weights']} bytes of weights, accuracy {run['accuracy']:.2%}", flush=True)
            paired.merge_results(STEM, "runs", {key: run}, torch=torch.__version__)


if __name__ == "__main__":
    main()
