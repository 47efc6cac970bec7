"""From ``pqk train`` to a file that scores what the run scored, and a very short ``pqk demo``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .conftest import Result

Pqk = Callable[..., Result]
TRAIN = ("train", "--data", "keyword_spotting", "--model", "ds_cnn", "--pretrained")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "pqk.yaml"
    path.write_text("sparsity: 0.5\ntotal_steps: 4\nmask_update_interval: 1\nprune_depthwise: false\n")
    return path


def test_train_eval_export(pqk: Pqk, config: Path, tmp_path: Path) -> None:
    run, net = tmp_path / "run", tmp_path / "net.pqk"
    words = (*TRAIN, "--config", config, "--run-dir", run, "--optimizer", "adamw", "--lr", 0.001, "--batch-size", 16)
    done = pqk(*words, "--json", "-")
    assert done.code == 0, done.err
    trained = json.loads(done.out)

    again = pqk(*words)
    assert again.code == 4
    assert "--resume" in again.err
    assert pqk(*words, "--resume").code == 0
    other = pqk(*words[:-1], 32, "--resume")
    assert other.code == 5
    assert "batch_size was 16, is 32" in other.err
    config.write_text(config.read_text().replace("0.5", "0.6"))
    other = pqk(*words, "--resume")
    assert other.code == 5
    assert "config" in other.err

    assert pqk("export", run, "-o", net).code == 0
    scores = []
    for target in (run, net):
        done = pqk("eval", target, "--data", "keyword_spotting", "--split", "validation", "--json", "-")
        assert done.code == 0, done.err
        scores.append(json.loads(done.out)["accuracy"])
    assert scores == [trained["best_validation_accuracy"]] * 2

    pytest.importorskip("matplotlib", reason="no pqk report without matplotlib")
    pytest.importorskip("jinja2", reason="no pqk report without jinja2")
    done = pqk("report", run, "--file", net, "--json", "-")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["files"][0]["accuracy"] == trained["best_validation_accuracy"]
    assert "pqk train --data keyword_spotting --model ds_cnn --pretrained" in (run / "report.html").read_text()


def test_export_of_a_float_network(pqk: Pqk, tmp_path: Path) -> None:
    net = tmp_path / "net.pqk"
    words = ("export", "--model", "ds_cnn", "--pretrained", "--calibration", "keyword_spotting", "-o", net)
    done = pqk(*words, "--json", "-")
    assert done.code == 0, done.err
    assert json.loads(done.out)["bytes"] == net.stat().st_size
    done = pqk("eval", net, "--data", "keyword_spotting", "--json", "-")
    assert json.loads(done.out)["accuracy"] > 0.89
    assert pqk(*words).code == 4


def test_eval_of_something_else(pqk: Pqk, tmp_path: Path) -> None:
    done = pqk("eval", tmp_path, "--data", "keyword_spotting")
    assert done.code == 3
    assert "run.json" in done.err


def test_demo_writes_its_report(pqk: Pqk, tmp_path: Path) -> None:
    report, folder = tmp_path / "demo.json", tmp_path / "files"
    done = pqk("demo", "--steps", 4, "--output", folder, "--json", report)
    assert done.code == 0, done.err
    assert "PQK" in done.out
    values = json.loads(report.read_text())
    assert {"float", "prune_quantize", "pqk"} <= values["arms"].keys()
    for name, arm in values["arms"].items():
        assert 0 < arm["accuracy"] < 1
        assert arm["latency_us"] > 0
        if name != "float":
            assert arm["bytes"] == (folder / f"{name}.pqk").stat().st_size
    assert values["arms"]["pqk"]["bytes"] <= 18_432
    assert values["arms"]["pqk"]["sparsity"] == pytest.approx(0.8, abs=0.001)
    assert 0.6 < values["arms"]["pqk"]["zeros"] < values["arms"]["pqk"]["sparsity"]
    assert values["parity"] == {"samples": 3 * 980, "different": 0}
    assert values["seconds"] > 0


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
@pytest.mark.parametrize(
    "words",
    [
        ("train", "--data", "keyword_spotting", "--model", "ds_cnn", "--epochs", 1, "--run-dir"),
        ("train", "--recipe", "pqk", "--run-dir"),
        ("demo", "--output"),
    ],
)
def test_a_device_that_is_not_here_is_refused_before_any_work(pqk: Pqk, tmp_path: Path, words: tuple[str, ...]) -> None:
    done = pqk(*words, tmp_path / "new", "--device", "cuda")
    assert done.code == 2
    assert "--device: cuda cannot be used: torch" in done.err
    assert not (tmp_path / "new").exists()
