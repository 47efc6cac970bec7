"""What the papers found, on a trained network and real data: takes minutes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pqk_ext import models

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS / "storage")
    return importlib.import_module("bench_codebooks")


@pytest.mark.long
def test_pruned_and_shared_weights_keep_the_accuracy(bench: Any) -> None:
    base = models.create("ds_cnn", pretrained=True)
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.manual_seed(0)
    bench.train(base, bench.FLOAT_STEPS, bench.RATE, 0)
    pruned = bench.pruned(base, 0.8, 0)
    clusters, pruned_clusters = (bench.shared_run(source, "kmeans", 32, 0) for source in (base, pruned))
    quantiles = bench.shared_run(base, "probabilistic", 32, 0)
    # Within two standard errors of 1,953 clips.
    assert clusters["accuracy"] > bench.accuracy(base) - 0.013
    assert pruned_clusters["accuracy"] > bench.accuracy(pruned) - 0.013
    assert pruned_clusters["file"] < 0.75 * clusters["file"]
    assert clusters["fitted"] > quantiles["fitted"]
    assert clusters["accuracy"] > quantiles["accuracy"] - 0.013
