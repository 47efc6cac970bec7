"""``run``, ``inspect``, ``bench``, ``verify``, and ``eval`` of a file: results, JSON, and no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pqk_ext import runtime
from pqk_ext.data import keyword_spotting_arrays
from pqk_ext.rivals import has_zstd

from .conftest import Result

Pqk = Callable[..., Result]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, keyword_spotting_arrays("test")[0][:20])
    return path


def test_run_writes_what_the_runtime_computes(
    pqk_without_torch: Pqk, network: Path, clips: Path, tmp_path: Path
) -> None:
    done = pqk_without_torch("run", network, clips, "-o", tmp_path / "y.npy", "--threads", 2, "--json", "-")
    assert (done.code, done.err) == (0, "")
    expected = runtime.load(network)(np.load(clips))
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)
    values = json.loads(done.out)
    assert values["predictions"] == expected.argmax(1).tolist()
    assert values["output"] == str(tmp_path / "y.npy")


def test_verify_prints_the_sum_of_the_file(pqk_without_torch: Pqk, network: Path) -> None:
    expected = hashlib.sha256(network.read_bytes()).hexdigest()
    done = pqk_without_torch("verify", network, "--sha256", expected.upper())
    assert (done.code, done.out) == (0, f"{expected}  {network}\n")


def test_inspect_counts_every_byte(pqk_without_torch: Pqk, network: Path) -> None:
    done = pqk_without_torch("inspect", network, "--json", "-")
    assert done.code == 0
    values = json.loads(done.out)
    total = values["header_bytes"] + sum(tensor["payload_bytes"] for tensor in values["tensors"])
    assert total == values["total_bytes"] == network.stat().st_size
    assert len(values["nodes"]) == len(runtime.load(network).graph.nodes)


def test_inspect_tells_what_bytes_are_for(pqk_without_torch: Pqk, network: Path) -> None:
    done = pqk_without_torch("inspect", network, "--rivals", "--json", "-")
    assert done.code == 0
    values = json.loads(done.out)
    assert sum(values["parts"].values()) == values["total_bytes"] == network.stat().st_size
    graph = runtime.load(network).graph
    assert len(values["layers"]) == len(values["rivals"]) == 10
    for layer, elsewhere in zip(values["layers"], values["rivals"], strict=True):
        weight = graph.nodes[layer["node"]].tensors["weight"]
        tensor = next(t for t in values["tensors"] if t["name"] == f"{layer['node']}.weight")
        assert sum(tensor["parts"].values()) == tensor["payload_bytes"] == elsewhere["here"]
        assert layer["total_bytes"] == elsewhere["here"] + 8 * weight.shape[0]
        assert elsewhere["int8"] == weight.size
        assert ("zstd -19" in elsewhere) == has_zstd()


def test_inspect_sums_up_layers(pqk: Pqk, network: Path) -> None:
    done = pqk("inspect", network, "--rivals")
    assert done.code == 0
    info = runtime.format.inspect(network)
    coded = sum(t.payload_bytes for t in info.weights)
    line = next(line for line in done.out.splitlines() if line.startswith("│ all layers") and str(coded) in line)
    assert str(sum(t.count for t in info.weights)) in line
    assert f"│ file        │ {info.total_bytes} │" in done.out
    assert ("zstandard is not installed" in done.out) == (not has_zstd())


def test_inspect_shows_tables(pqk: Pqk, network: Path) -> None:
    done = pqk("inspect", network)
    assert done.code == 0
    for tensor in runtime.format.inspect(network).tensors:
        assert tensor.name in done.out
    assert hashlib.sha256(network.read_bytes()).hexdigest() in done.out


def test_bench_writes_times(pqk_without_torch: Pqk, network: Path, tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    words = ("bench", network, "--batch", 2, "--rounds", 3, "--profile", "--against", network, "--json", target)
    done = pqk_without_torch(*words)
    assert (done.code, done.err) == (0, "")
    values = json.loads(target.read_text())
    assert 0 < values["min_us"] <= values["median_us"]
    assert values["median_us_per_sample"] == pytest.approx(values["median_us"] / 2)
    assert values["against"]["ratio"] > 0
    assert (values["batch"], values["threads"], values["rounds"]) == (2, 1, 3)


def test_bench_profiles_each_layer(pqk_without_torch: Pqk, network: Path, tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    done = pqk_without_torch("bench", network, "--rounds", 1, "--threads", 2, "--profile", "--json", target)
    assert (done.code, done.err) == (0, "")
    values = json.loads(target.read_text())
    profile, layers = values["profile"], values["layers"]
    assert [layer["node"] for layer in layers] == [name for name, _ in runtime.load(network).kernels]
    assert sum(layer["us"] for layer in layers) == pytest.approx(profile["sum_of_layers_us"])
    assert sum(layer["share"] for layer in layers) == pytest.approx(1)
    assert profile["call_us"] == pytest.approx(profile["sum_of_layers_us"] + profile["overhead_us"])
    assert 0 < profile["empty_call_us"] < profile["call_us"]
    assert profile["macs"] == sum(layer["macs"] for layer in layers) == 2_656_768
    for layer in layers:
        assert layer["gmacs"] == pytest.approx(layer["macs"] / layer["us"] / 1e3)
        assert layer["fraction_of_peak"] == pytest.approx(layer["gmacs"] / profile["peak_gmacs"])
        assert layer["node"] in done.out
    assert "64x25x5 -> 64x25x5, 3x3, depthwise" in done.out
    assert "1x49x10 -> 64x25x5, 10x4 / 2" in done.out
    assert "overhead of the call" in done.out


def test_eval_of_a_file_counts_right_answers(pqk_without_torch: Pqk, network: Path) -> None:
    done = pqk_without_torch("eval", network, "--data", "keyword_spotting", "--split", "validation", "--json", "-")
    assert done.code == 0, done.err
    x, y = keyword_spotting_arrays("validation")
    right = int((runtime.load(network)(x).argmax(1) == y).sum())
    values = json.loads(done.out)
    assert (values["correct"], values["samples"]) == (right, len(y))
    assert values["accuracy"] == right / len(y)


def test_an_older_report_is_replaced(pqk: Pqk, network: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("old")
    assert pqk("verify", network, "--json", report).code == 0
    assert json.loads(report.read_text())["ok"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pqk", "report.json"]
