"""Weight sharing: accuracy and bytes of each method, with and without pruning, on the network of `pqk demo`.

`python benchmarks/storage/bench_codebooks.py` starts from MLPerf Tiny's trained DS-CNN and trains on the data inside
the package: the float network for a few steps, with pruned weights for more, then the centroids of each method in
`pqk_ext.codebook`, started from both. It writes `benchmarks/results/codebooks.json` after each run (`--seeds`, two
minutes of one core each); runs that are there are not done again.

Accuracy is that on the validation and the test fold together, neither of which is trained on.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import paired

from pqk_ext import codebook, demo, export, models, prune, share_weights
from pqk_ext.data import keyword_spotting
from pqk_ext.runtime import format

STEM = "codebooks"
SPARSITIES = (0.0, 0.5, 0.8)
CLUSTERS = (8, 32)
METHODS = ("kmeans", "entropy", "uniform", "probabilistic")
FLOAT_STEPS, PRUNED_STEPS, CENTROID_STEPS = 60, 300, 45
RATE, PRUNED_RATE, CENTROID_RATE = 1e-3, 2e-3, 5e-4


def train(model: nn.Module, steps: int, rate: float, seed: int, after_step: Callable[[], None] = lambda: None) -> None:
    """Adam, with a rate that falls to 0."""
    recipe = dataclasses.replace(demo.Recipe(), steps=steps)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for step, (x, y) in enumerate(demo.batches(*demo.load_split("train"), recipe, seed)):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        after_step()
    model.eval()


def pruned(model: nn.Module, sparsity: float, seed: int) -> nn.Module:
    """Pruned bit by bit in the first half of a training; without depthwise layers, a tenth of the weights."""
    result = copy.deepcopy(model)
    layers = [m for m in result.modules() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)]
    weights = [layer.weight for layer in layers]
    steps = iter(range(1, PRUNED_STEPS + 1))

    def prune_more() -> None:
        now = prune.cubic_sparsity(next(steps), start=0, end=PRUNED_STEPS // 2, final=sparsity)
        with torch.no_grad():
            # A pruned weight moves by one step at most before it is ranked again, so that few come back.
            for weight, mask in zip(weights, prune.compute_masks(weights, now, ranking="per_layer"), strict=True):
                weight.mul_(mask)

    train(result, PRUNED_STEPS, PRUNED_RATE, seed, prune_more)
    return result


def accuracy(model: nn.Module) -> float:
    folds = [demo.load_split(split) for split in ("validation", "test")]
    return demo.accuracy(model, (torch.cat([fold[0] for fold in folds]), torch.cat([fold[1] for fold in folds])))


def sizes(model: nn.Module, calibration: Tensor | None = None) -> dict[str, Any]:
    """Bytes of the file and of its coded weights."""
    x, _ = keyword_spotting("train").tensors
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pqk"
        export(model, path, example_inputs=x[:1], calibration=calibration)
        info = format.inspect(path)
    return {"file": info.total_bytes, "weights": sum(tensor.payload_bytes for tensor in info.weights)}


def shared_run(source: nn.Module, method: str, k: int, seed: int) -> dict[str, Any]:
    """The weights of ``source`` shared, then the centroids trained."""
    model = share_weights(source, k, method, generator=torch.Generator().manual_seed(seed))
    fitted = accuracy(model)
    train(model, CENTROID_STEPS, CENTROID_RATE, seed)
    found = codebook.shared_layers(model).values()
    count = sum(layer.codes.numel() for layer in found)
    return {
        "fitted": fitted,
        "accuracy": accuracy(model),
        "entropy": sum(layer.entropy * layer.codes.numel() for layer in found) / count,
        "sparsity": sum(layer.sparsity * layer.codes.numel() for layer in found) / count,
        **sizes(model),
    }


def int8_run(source: nn.Module) -> dict[str, Any]:
    """Post-training int8 quantization, for comparison."""
    from pqk_ext.deploy import quantize_post_training

    x, _ = keyword_spotting("train").tensors
    sample = x[:: len(x) // 512]
    return {
        "accuracy": accuracy(quantize_post_training(source, example_inputs=sample[:1], calibration=sample)),
        **sizes(source, calibration=sample),
    }


def runs_of(seed: int, done: dict[str, Any]) -> None:
    """All runs of a seed that are not there yet, written one by one."""

    def run(name: str, compute: Callable[[], dict[str, Any]]) -> None:
        key = f"{name}/{seed}"
        if key not in done:
            done[key] = compute()
            paired.merge_results(STEM, "runs", {key: done[key]}, torch=torch.__version__)
            print(key, done[key], flush=True)

    base: nn.Module = models.create("ds_cnn", pretrained=True)
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    train(base, FLOAT_STEPS, RATE, seed)
    for sparsity in SPARSITIES:
        source = pruned(base, sparsity, seed) if sparsity else base
        run(f"{sparsity}/float/0", lambda source=source: {"accuracy": accuracy(source)})
        run(f"{sparsity}/int8/0", lambda source=source: int8_run(source))
        for k in CLUSTERS:
            for method in METHODS:
                arguments = (source, method, k, seed)
                run(f"{sparsity}/{method}/{k}", lambda arguments=arguments: shared_run(*arguments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = paired.RESULTS / f"{STEM}.json"
    done = json.loads(path.read_text()).get("runs", {}) if path.exists() else {}
    for seed in range(arguments.seeds):
        runs_of(seed, done)


if __name__ == "__main__":
    main()
