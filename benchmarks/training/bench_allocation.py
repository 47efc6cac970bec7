"""Equal settings for all layers against settings chosen from each layer's sensitivity, at equal file sizes.

`python benchmarks/training/bench_allocation.py` trains MLPerf Tiny's DS-CNN on the data inside the package by PQK, for
half as many steps as `pqk demo` (`--steps`): for each way of equal settings and each seed once with these, and once
with a sparsity and bits of each layer that `choose_config` takes for a file of the same size. They are chosen on the
validation fold; accuracy is that of the integer network on the test fold. It writes
`benchmarks/results/allocation.json` after each run, which takes about a minute of one core; runs that are there are
not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import paired

from pqk_ext import demo, export, models
from pqk_ext.config import PQKConfig
from pqk_ext.sensitivity import Sensitivity, choose_config, sensitivity

STEM = "allocation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm(demo.Recipe):
    """The recipe of `pqk demo` with other bits, or with settings of single layers."""

    steps: int = 460
    bits: int = 8
    layers: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def config(self, *, teacher: bool) -> PQKConfig:
        bits = dict.fromkeys(("weight_bits", "first_layer_bits", "last_layer_bits"), self.bits)
        return dataclasses.replace(super().config(teacher=teacher), layers=self.layers, **bits)


EQUAL = {
    "8 bits, 80 % zeros": Arm(),
    "4 bits, 50 % zeros": Arm(bits=4, sparsity=0.5),
    "3 bits, 80 % zeros": Arm(bits=3),
}


def train(arm: Arm, seed: int) -> dict[str, Any]:
    """Trains one arm; accuracy on the test fold, and the size of its file."""
    model = demo.train("pqk", arm, seed, demo.load_split("train"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pqk"
        export(model, path)
        return {"accuracy": demo.accuracy(model, demo.load_split("test")), "bytes": path.stat().st_size}


def chosen(equal: Arm, table: Sensitivity, target_bytes: int) -> Arm:
    """The arm with settings of each layer for a file of that size."""
    x, y = samples()
    net = models.create("ds_cnn", pretrained=True)
    config = choose_config(net, x, y, equal.config(teacher=True), target_bytes=target_bytes, table=table)
    return dataclasses.replace(equal, layers=config.layers, sparsity=config.sparsity)


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = demo.load_split("validation")
    return x[::2], y[::2]


def summary(runs: Mapping[str, Mapping[str, Any]], name: str) -> str:
    pairs = [(run["equal"], run["chosen"]) for key, run in runs.items() if key.startswith(name) and "chosen" in run]
    equal = statistics.fmean(one["accuracy"] for one, _ in pairs)
    differences = [100 * (other["accuracy"] - one["accuracy"]) for one, other in pairs]
    sizes = [statistics.fmean(pair[i]["bytes"] for pair in pairs) / 1000 for i in range(2)]
    points = ", ".join(f"{difference:+.2f}" for difference in differences)
    return f"{name}: {equal:.2%} with {sizes[0]:.1f} kB; chosen for {sizes[1]:.1f} kB: {points} points"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Arm.steps, help="optimizer steps of each run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = paired.RESULTS / f"{STEM}.json"
    runs = json.loads(path.read_text()).get("runs", {}) if path.exists() else {}
    table = sensitivity(models.create("ds_cnn", pretrained=True).eval(), *samples())
    for seed in range(arguments.seeds):
        for name, arm in EQUAL.items():
            key = f"{name}, {arguments.steps} steps, seed {seed}"
            run = runs.setdefault(key, {})
            equal = dataclasses.replace(arm, steps=arguments.steps)
            if "equal" not in run:
                run["equal"] = train(equal, seed)
                paired.merge_results(STEM, "runs", {key: run}, torch=torch.__version__)
            if "chosen" not in run:
                other = chosen(equal, table, run["equal"]["bytes"])
                run["chosen"] = train(other, seed) | {"layers": other.layers}
                paired.merge_results(STEM, "runs", {key: run}, torch=torch.__version__)
            print(summary(runs, name), flush=True)


if __name__ == "__main__":
    main()
