"""The benchmarks' own logic: masks, the contest, results on disk, tables. No timing is asserted."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pqk_ext.compare import read_experiment
from pqk_ext.compare.cells import load_recipes

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (BENCHMARKS, BENCHMARKS / "nets", BENCHMARKS / "ops", BENCHMARKS / "storage"):
        monkeypatch.syspath_prepend(folder)


def load(name: str) -> Any:
    return importlib.import_module(name)


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (10, 64), (7, 4, 1, 1)])
def test_masks_keep_the_largest(shape: tuple[int, ...]) -> None:
    networks = load("networks")
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kept = networks.mask(weight, "unstructured")
    assert kept.sum() == round(0.1 * weight.numel())
    assert weight[kept].abs().min() >= weight[~kept].abs().max()

    blocks = networks.mask(weight, "1x4")
    assert blocks.shape == weight.shape
    grouped = blocks.reshape(shape[0], shape[1] // 4, 4, -1)
    assert (grouped.all(2) == grouped.any(2)).all()
    assert grouped.any(2).sum() == round(0.1 * weight.numel() / 4)
    sums = weight.abs().reshape(grouped.shape).sum(2)
    assert sums[grouped.any(2)].min() >= sums[~grouped.any(2)].max()


def test_pruning_leaves_the_first_and_depthwise_layers() -> None:
    networks = load("networks")
    model = networks.models.create("mobilenet_v1")
    networks.prune(model, "1x4")
    shares = [
        (layer.groups == 1 and layer.in_channels > 3, float((layer.weight == 0).float().mean()))
        for layer in model.modules()
        if isinstance(layer, torch.nn.Conv2d)
    ]
    assert all(share == pytest.approx(0.9, abs=0.01) if is_pruned else share == 0 for is_pruned, share in shares)


def test_networks_are_alive_and_the_same_each_time() -> None:
    networks = load("networks")
    case = networks.Case("resnet8", "1x4")
    output = case.reference(8)
    assert output.std(0).max() > 0.01 * np.abs(output).max()  # it depends on the input
    assert np.array_equal(output, networks.Case("resnet8", "1x4").reference(8))


class Clock:
    """An engine whose calls take a given time, without waiting for it."""

    def __init__(self, seconds: float) -> None:
        self.each, self.calls = seconds, 0

    def seconds(self, calls: int) -> float:
        self.calls += calls
        return calls * self.each


def test_contest_finds_the_best_peer() -> None:
    rounds = load("rounds")
    peers = {"slow": Clock(9e-3), "near": Clock(2.1e-3), "best": Clock(2e-3)}
    outcome = rounds.contest(Clock(1e-3), peers, seconds_a_round=0.0, seconds=0.0)
    assert outcome.best == "best"
    assert outcome.ratio == pytest.approx(2)
    assert outcome.interval == pytest.approx((2, 2))
    assert len(outcome.ours.seconds) == rounds.ROUNDS == len(outcome.peers["near"].seconds)
    assert len(outcome.peers["slow"].seconds) == 1  # hopeless: not timed again


def test_one_row_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, report = load("bench_nets"), load("report_nets")
    monkeypatch.setenv("PQK_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(bench.peers, "PEERS", {"torch_eager": bench.peers.PEERS["torch_eager"]})
    found = bench.measure(bench.Case("resnet8", "1x4"), 2, 0.0)
    assert found["best"] == "torch_eager"
    assert not found["failed"]
    assert found["peers"]["torch_eager"]["difference"] == 0
    assert 0 < found["pqk"]["difference"] < 0.2
    assert found["pqk"]["bytes"] == next(tmp_path.rglob("net.pqk")).stat().st_size
    assert sum(found["pqk"]["kernels"].values()) > 10
    text = "\n".join(report.section({"rows": {"resnet8/2/1x4": found}}))
    assert "| ResNet-8, 2 | " in text
    assert "torch, " in text


def test_a_wrong_peer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load("bench_nets")

    class Wrong(bench.peers.InProcess):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(lambda: None, lambda: np.zeros((1, 10), np.float32))

    def crash(case: Any, batch: int) -> Any:
        raise RuntimeError("no such thing")

    peers = {"wrong_int8": (lambda case, batch: Wrong(), (), None), "crashes_f32": (crash, (), None)}
    monkeypatch.setattr(bench.peers, "PEERS", peers | {"lacks_f32": (crash, ("no_such_module",), None)})
    engines, failed = bench.load_peers(bench.Case("resnet8", "dense"), 1)
    assert engines == {}
    assert failed == {
        "wrong_int8": "its output is 100.0% from torch's",
        "crashes_f32": "RuntimeError: no such thing",
    }


def test_worker_answers_after_an_error() -> None:
    worker = load("workers").Worker(sys.executable)
    with worker.process:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="worker: time: KeyError: 5"):
                worker.ask("time", key=5, calls=1)
        worker.process.stdin.close()


def test_results_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paired = load("paired")
    monkeypatch.setattr(paired, "RESULTS", tmp_path)
    paired.merge_results("nets", "rows", {"a": {"ratio": 1}, "b": {"ratio": 2}}, versions={"x": "1"})
    path = paired.merge_results("nets", "rows", {"b": {"ratio": 3}}, versions={"x": "2"})
    document = json.loads(path.read_text())
    assert document["rows"] == {"a": {"ratio": 1}, "b": {"ratio": 3}}
    assert document["versions"] == {"x": "2"}


@pytest.mark.parametrize("pattern", ["unstructured", "1x4"])
def test_layers_have_the_density(pattern: str) -> None:
    layers = load("layers")
    layer = layers.Layer("", 16, 6, 5, 24, (3, 3), 2, 1, 1)
    codes = layers.weights(layer, pattern, 0.25)
    assert (codes != 0).mean() == 0.25
    assert (layers.block_density(codes) == 0.25) == (pattern == "1x4")
    model = layers.model(layer, codes)
    assert model(layers.model_input(layer)).shape == (1, 24, *layer.out_size)


def test_shapes_can_be_run_and_are_named_once() -> None:
    layers = load("layers")
    found = layers.read_layers()
    assert len({layer.name for layer in found}) == len(found) > 40
    linear = next(layer for layer in found if (layer.height, layer.width) == (1, 1))
    assert layers.model(linear, layers.weights(linear)).output_shape == (linear.out_channels,)


def row(network: str, batch: int, variant: str, ratio: float) -> dict[str, Any]:
    ours = {"median_us": 12.34, "isa": "avx2", "bytes": 5000, "load_ms": 1.5, "difference": 0.01}
    return {
        "network": network,
        "batch": batch,
        "variant": variant,
        "pqk": ours | {"kernels": {"direct": 3}},
        "peers": {"openvino_int8": {"median_us": 12340.0}},
        "best": "openvino_int8",
        "ratio": ratio,
        "ratio_low": 1.0,
        "ratio_high": 9.0,
    }


def test_report_of_networks() -> None:
    report = load("report_nets")
    rows = {
        f"{network}/{batch}/{variant}": row(network, batch, variant, ratio)
        for network, batch, variant, ratio in [
            ("resnet20", 1, "dense", 4.0),
            ("resnet8", 32, "dense", 1.0),
            ("resnet8", 1, "1x4", 3.0),
            ("res15", 1, "dense", 100.0),
        ]
    }
    lines = report.section({"rows": rows, "ceilings": {"avx2": {"int8_macs": 1e11}}})
    text = "\n".join(lines)
    assert "dense 2.00 (lowest 1.00, 2 rows)" in text  # res15 is not among those summed up
    assert "One core's ceilings in the same run (avx2), a second: 100 G int8 multiply-adds." in text
    assert "| ResNet-8, 32 | 12.3 us | OpenVINO int8, 12.3 ms | 1.00 [1.00, 9.00] |" in lines
    dense = [line.split(",")[0] for line in lines[lines.index("Dense networks:") :][:8] if line.startswith("| ")]
    assert dense[-3:] == ["| ResNet-8", "| ResNet-20", "| res15"]


def test_report_of_layers() -> None:
    report = load("report_int8")
    peer = {"us": 2.0, "ratio": 2.0, "ratio_low": 1.9, "ratio_high": 2.1}
    dense = {"us": 1.0, "peak_share": 0.9, "kernel": "direct", "channels": 32, "kernel_size": [3, 3], "groups": 1}
    sparse = {"us": 1.0, "kernel": "gather", "executed_share": 0.5, "lost_by_choice": 0.01}
    document = {
        "build": {"isa": "avx2"},
        "torch_call_us": 14.2,
        "dense": {"a": dense | {"fbgemm": peer}},
        "sparse": {
            "a/1x4/0.5": sparse | {"dense": peer | {"ratio": 4.0}, "fbgemm_sparse": peer},
            "b/1x4/0.5": sparse | {"dense": peer | {"ratio": 1.0}, "lost_by_choice": 0.2},
        },
    }
    lines = report.section(document)
    text = "\n".join(lines)
    assert "of 32 and more input channels: 90% to 90%." in text
    assert "| a | 1.00 us | 90% | direct | 2.00 [1.90, 2.10] |" in lines
    assert "| 1x4 blocks | 2.00 (1.00) |" in lines
    assert "In 1 of 2 cases the kernel that was chosen is within 5 % of the fastest one; at worst" in text
    assert "| a, 0.5 | 1.00 us | 2.00 [1.90, 2.10] |" in lines


def test_one_load_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, report = load("bench_load"), load("report_load")
    monkeypatch.setenv("PQK_BENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("PQK_KERNEL_TABLE", str(tmp_path / "kernels.json"))
    monkeypatch.setattr(bench, "PEERS", {"torch": bench.PEERS["torch"]})
    network = bench.Network(bench.Layers((256, 64, 32), "unstructured"), 4, "bitmask")
    found = bench.measure(network, rounds=2)
    assert found["weights"] == 256 * 64 + 64 * 32
    assert found["bytes"] == network.path.stat().st_size
    assert found["codecs"] == {"bitmask": 2}
    weights = [node.tensors["weight"] for node in bench.format.read(network.path).nodes if "weight" in node.tensors]
    assert all((abs(weight) <= 7).all() and 0.85 < (weight == 0).mean() < 0.95 for weight in weights)
    assert set(found["stages"]) == set(report.STAGES)
    assert all(0 < row["best_us"] <= row["median_us"] for row in (found["stages"] | found["times"]).values())
    document = {"rows": {network.name: found}}
    text = "\n".join(report.section(document))
    assert "| two linear layers, 90 % zeros, 4 bits, bitmask | 0.0 M | 0.0" in text
    assert "safetensors, float32 weights only | " in text
    assert "<summary>1 loads by stages</summary>" in text


def test_report_of_codebooks() -> None:
    report = load("report_codebooks")
    runs = {}
    for sparsity in (0.0, 0.8):
        runs |= {f"{sparsity}/float/0/{seed}": {"accuracy": 0.9 + seed / 100} for seed in (0, 1)}
        for k in (8, 32):
            run = {"accuracy": 0.91, "fitted": 0.5, "weights": 10 * k, "file": 1000 * k * (1 - sparsity)}
            runs |= {f"{sparsity}/kmeans/{k}/{seed}": run for seed in (0, 1)}
    lines = report.section({"runs": runs})
    assert "| 80%, kmeans, k = 32 | 91.0% | +0.5 ± 0.5 | 50.0% | 320 B | 6,400 B |" in lines
    assert "| 0%, float | 90.5% |  |  |  |  |" in lines
    assert "Pruned before sharing, 2 of 2 files are smaller than without pruning." in lines[0]
    assert "<summary>k = 8</summary>" in lines


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_of_methods_can_be_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PQK_DATA_DIR", str(tmp_path))  # named by experiments on CIFAR; no data are read here
    experiment = read_experiment(path)
    assert load_recipes(experiment).keys() == experiment.arms.keys()  # recipes, settings and equal costs are checked
    assert experiment.pairs


def test_experiments_of_methods_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS / "methods")
    run, report = load("run"), load("report_methods")
    figure = {"mean": 0.875, "sd": 0.01, "n": 2, "values": [0.865, 0.885]}
    difference = {"mean": 0.01, "low": -0.001, "high": 0.021, "n": 2, "better": 1, "worse": 1}
    summary = {
        "title": "A title",
        "about": "",
        "complete": True,
        "seeds": 2,
        "versions": {"pqk_ext": "1", "torch": "2"},
        "machine": {"cpu": "a CPU"},
        "latency": {"rounds": 15, "others": 0.04},
        "arms": {"a": {}},
        "rows": [{"row": "a", "seeds": [0, 1], "test_accuracy": figure, "bytes": {**figure, "mean": 12345.0}}],
        "pairs": [{"first": "a", "second": "b", "test_accuracy": difference}],
        "cells": [{"arm": "a", "seed": 0, "state": "done", "command": "pqk train --recipe a"}],
    }
    work, results = tmp_path / "work", tmp_path / "results"
    work.mkdir()
    (work / "summary.json").write_text(json.dumps(summary))
    (work / "pareto.svg").write_text("<svg/>")
    run.publish("name", work, results)
    assert sorted(path.name for path in results.iterdir()) == ["name.json", "name.md", "name.svg"]
    page = (results / "name.md").read_text()
    assert "![Accuracy against bytes](name.svg)" in page
    assert "```sh\npqk train --recipe a\n```" in page
    text = report.report(results, "methods")
    assert "### A title" in text
    assert "| a | 87.50 \u00b1 1.00 % | 12,345 |" in text
    assert "| a \u2212 b | +1.00 [-0.10, +2.10] | 1 of 2 |" in text  # not bold: the interval holds 0
    assert "[Every cell's command](methods/name.md)" in text
    assert report.report(results, "methods", ["other"]) == "Also:\n\n- [A title](methods/name.md)\n"


def test_readme_tables_are_those_of_the_results() -> None:
    report = load("report")
    readme = report.README.read_text()
    assert f"{report.BEGIN}\n\n{report.readme_tables()}\n{report.END}" in readme
    assert f"{report.METHODS_BEGIN}\n\n{report.readme_methods()}\n{report.METHODS_END}" in readme
    assert report.ALL.read_text().endswith(report.all_tables())


def test_long_tables_stand_with_the_results_only() -> None:
    report = load("report")
    fold = report.folded("2 rows", ["| a |", "| - |"])
    text = "\n".join(["before", *fold, "between", *fold, "after"])
    link = "[2 rows](benchmarks/results/README.md)"
    assert report.without_long_tables(text) == f"before\n{link}\nbetween\n{link}\nafter"


def test_every_python_file_is_found() -> None:
    """Benchmarks import each other by plain names: none may hide another."""
    stems = [path.stem for path in BENCHMARKS.rglob("*.py")]
    assert len(set(stems)) == len(stems)
    assert not set(stems) & set(sys.stdlib_module_names)


def test_size_penalty_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, report = load("bench_size_penalty"), load("report_size_penalty")
    monkeypatch.setattr(bench.paired, "RESULTS", tmp_path)
    monkeypatch.setenv("PQK_BENCH_CACHE", str(tmp_path / "cache"))
    trained = []
    train = bench.demo.train
    monkeypatch.setattr(bench.demo, "train", lambda *args: trained.append(args[:3]) or train(*args))
    monkeypatch.setattr(bench.demo, "load_split", lambda split: (torch.randn(16, 1, 49, 10), torch.arange(16) % 12))
    arms = ["8 bits, default", "4 bits, penalty 3"]
    for seeds in ("1", "2", "2"):
        monkeypatch.setattr(sys, "argv", ["bench", "--steps", "4", "--seeds", seeds, "--arms", *arms])
        bench.main()
    assert [(arm.bits, arm.size_penalty, seed) for _, arm, seed in trained] == [
        (8, 0, 0),
        (4, 3, 0),
        (8, 0, 1),
        (4, 3, 1),
    ]
    document = json.loads((tmp_path / "size_penalty.json").read_text())
    runs = list(document["runs"].values())
    assert all(run["entropy"] < run["weights"] < run["file"] for run in runs)
    lines = report.section(document)
    assert [line.split(" | ")[:2] for line in lines[2:4]] == [["| 8 bits, default", "2"], ["| 4 bits, penalty 3", "2"]]
    assert f"| {sum(run['weights'] for run in runs[::2]) / 2:,.0f} B |" in lines[2]


def test_report_of_sizes() -> None:
    report = load("report_size")
    rivals = {"gzip -9": 3000, "zstd -19": 2500, "xz -9e": 2400, "HAM": 3000, "sHAM": 4000}
    row = {
        "count": 8192,
        "density": 0.1,
        "codec": "ans",
        "bytes": 1010,
        "coded": 1005,
        "bound": 1000.0,
        "ideal": 1000.0,
    }
    row |= {"codecs": {"huffman": 2020, "ans": 1010}, "rivals": rivals}
    other = row | {"bytes": 2450, "codecs": {"huffman": 2450, "ans": 2500}}
    layers = {f"gaussian/{bits}/{zeros}/8192": row for bits in (4, 8) for zeros in (0.0, 0.8, 0.9, 0.95)}
    document = {"layers": layers | {"laplace/8/0.9/8192": other}, "networks": {"net/0.9/4": {"conv": row}}}
    lines = report.section(document)
    assert "| 90% zeros | 0.986 (1.010) | 0.986 (1.010) | 2.393 (2.450) |" in lines
    assert "| 4 bits, 90% zeros | 1.005, 1.010 |" in lines
    assert (
        "| net, 90% zeros, 4 bits | 1,010 | 0.986 | 1.005 | 1.010 | 2.000 | 0.990 | 2.97 | 2.48 | 2.38 | 3.96 |"
        in lines
    )
    text = "\n".join(lines)
    assert "1 are larger than a compressor makes them: laplace/8/0.9/8192 (0.980);" in text
    assert "sHAM takes at least 1.63 times as much (laplace/8/0.9/8192), less than 2 times in 1:" in text


def test_sizes_of_one_layer() -> None:
    bench = load("bench_size")
    weight = bench.synthetic("gaussian", 0.9, 4, 16_384).reshape(64, -1)
    assert (weight != 0).mean() == pytest.approx(0.1, abs=1e-4)
    assert np.abs(weight).max() == 7
    found = bench.measure(weight)
    assert found["bytes"] == min(found["codecs"].values())
    assert found["bound"] <= found["coded"] + 64 <= found["bytes"] + 64
    assert found["bound"] <= found["ideal"] <= 1.1 * found["bound"]
    assert min(found["rivals"].values()) > found["bytes"]
    names = bench.stored_networks.names()
    assert [name for name in names if name.startswith("ds_cnn/")] == names[:6]


def test_alphabets_are_what_they_are_called() -> None:
    alphabets = load("alphabets").all_alphabets()
    for name, weights in alphabets.items():
        assert weights.dtype == np.int8
        assert weights.shape == (1024, 4096)
        if "zeros," in name:
            assert (weights == 0).mean() == pytest.approx(int(name[:2]) / 100, abs=0.001)
            assert abs(weights).max() <= 2 ** (int(name[-6]) - 1) - 1
    assert len(np.unique(alphabets["32 clusters"])) == 31


@pytest.mark.parametrize("percentile", [0, 50, 99])
@pytest.mark.parametrize("count", [2, 32, 256])
def test_weights_share_values(percentile: float, count: int) -> None:
    product = load("bench_product")
    weight = np.random.default_rng(0).normal(size=(200, 300)).astype(np.float32)
    codes, codebook, zero = product.shared_values(weight, percentile, count)
    shared = codebook[codes.astype(np.int64) + zero]
    assert (np.diff(codebook) >= 0).all()
    assert len(np.unique(shared)) <= count + (percentile > 0)
    if percentile:
        assert (shared == 0).mean() == pytest.approx(percentile / 100, abs=0.01)
        assert codebook[zero] == 0
        kept = shared != 0
        assert abs(weight[kept]).min() >= abs(weight[~kept]).max()
    error = 0.9 if count == 2 else 0.4
    assert abs(shared - weight)[shared != 0].mean() < error
    run, codec, bits = product.float_product(codes, codebook, zero, np.ones(300, np.float32))
    np.testing.assert_allclose(run()[0].numpy(), shared.sum(1), rtol=1e-4, atol=1e-3)
    assert bits < 10
    assert codec.startswith("interleaved")


def test_goals_of_fake_quantization_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, paired = load("bench_fake_quantize"), load("paired")
    shape = {"tiny": (8, 16)}
    monkeypatch.setattr(bench, "SHAPES", shape)
    data = bench.Data(shape["tiny"])
    for subject, baseline, _ in bench.CASES.values():
        subject(data)
        baseline(data)
    names = {f"{case} 2.1M" for case in bench.CASES}
    assert set(bench.GOALS) <= names
    results = [paired.Paired(name, 1, 1, 2.0, 2.0, 2.0, 1) for name in bench.GOALS]
    assert [line.split()[1] for line in bench.verdicts(results)] == ["missed:", "missed:", "held:", "held:", "held:"]
