"""Which findings a run has, and which not."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib", reason="no report without matplotlib")
pytest.importorskip("jinja2", reason="no report without jinja2")

from pqk_ext.diagnostics import diagnose_layer, weight_codes
from pqk_ext.nn import PQKConvTranspose2d
from pqk_ext.report import Run, measure, read_run
from pqk_ext.report.findings import findings
from pqk_ext.report.histograms import _codes
from pqk_ext.report.repeat import command
from tests.report.conftest import CONFIG


@pytest.fixture
def healthy(finished_run: Path) -> Run:
    """The run, its figures set to what nobody would look at twice."""
    run = read_run(finished_run)
    last = copy.deepcopy(run.diagnoses[-1])
    last["logits_sqnr_db"] = 20.0
    last["agreement"] |= {"student_accuracy": 0.8, "teacher_accuracy": 0.8}
    for layer in last["layers"]:
        fine = {"sqnr_db": 20.0, "dead_channels": 0, "clipped_low": 0.0, "clipped_high": 0.0}
        layer |= fine | {"drift_min": 0.9, "drift_max": 1.1}
    for quantizer in last["activations"]:
        fine = {"sqnr_db": None, "constant_channels": 0, "clipped_low": 0.0, "clipped_high": 0.0, "drift": 1.0}
        quantizer |= fine
    metrics = [{"step": 48, "val_loss": 0.4, "val_accuracy": 0.9, "sparsity": 0.7}]
    best = {"step": 48, "accuracy": 0.9, "loss": 0.4}
    return dataclasses.replace(run, diagnoses=[last], metrics=metrics, best=best)


def test_nothing_stands_out(healthy: Run) -> None:
    assert findings(healthy) == []


def _layer(**values: Any) -> Callable[[Run], Any]:
    return lambda run: run.diagnoses[-1]["layers"][1].update(values)


def _quantizer(**values: Any) -> Callable[[Run], Any]:
    return lambda run: run.diagnoses[-1]["activations"][1].update(values)


def _last(**values: Any) -> Callable[[Run], Any]:
    return lambda run: run.diagnoses[-1].update(values)


def _metrics(*lines: dict[str, Any]) -> Callable[[Run], Any]:
    return lambda run: run.metrics.extend(lines)


@pytest.mark.parametrize(
    ("change", "severe", "where", "text"),
    [
        (_layer(sqnr_db=9.9), True, "3", "9.9 dB"),
        (_layer(dead_channels=8), True, "3", "All its weights are 0"),
        (_layer(dead_channels=3), False, "3", "3 of 8 output channels"),
        (_layer(clipped_low=0.15, clipped_high=0.06), False, "3", "21.0%"),
        (_layer(drift_max=4.1), False, "3", "ran away"),
        (_layer(drift_min=0.2), False, "3", "ran away"),
        (_quantizer(sqnr_db=11.9), True, "activations", "11.9 dB"),
        (_quantizer(constant_channels=5), False, "activations", "one value"),
        (_quantizer(clipped_high=0.06), False, "activations", "6.0%"),
        (_quantizer(drift=0.1), False, "activations", "ran away"),
        (_last(logits_sqnr_db=7.9), False, "logits", "7.9 dB"),
        (lambda run: run.diagnoses[-1]["agreement"].update(teacher_accuracy=0.9), False, "student", "10% more often"),
        (_metrics({"step": 49, "val_loss": 0.7}), False, "run", "rose from 0.4"),
        (_metrics({"step": 49, "val_accuracy": 0.8}), False, "run", "80.0%, the best was 90.0%"),
        (_metrics({"step": 49, "sparsity": 0.6}), True, "run", "70.0% was asked for"),
        (lambda run: run.notes.append("resumed inexactly"), False, "run", "resumed inexactly"),
        (lambda run: run.damaged.append("x"), True, "run", "Damaged: x"),
    ],
)
def test_each_finding(healthy: Run, change: Callable[[Run], Any], severe: bool, where: str, text: str) -> None:
    change(healthy)
    (found,) = findings(healthy)
    assert found.severe is severe
    assert found.where.startswith(where)
    assert text in found.text


def test_a_loss_that_rises_while_weights_go_is_no_finding(healthy: Run) -> None:
    healthy.metrics.insert(0, {"step": 8, "val_loss": 0.01})
    assert findings(healthy) == []


def test_a_file_of_other_weights(healthy: Run, finished_run: Path) -> None:
    same = dataclasses.replace(measure(finished_run / "net.pqk", None), accuracy=0.9)
    assert findings(healthy, [same, dataclasses.replace(same, accuracy=None)]) == []
    (found,) = findings(healthy, [dataclasses.replace(same, accuracy=0.8)])
    assert found.where == "net.pqk"
    assert "right on 80.00%" in found.text


def test_figures_of_the_warm_up_are_no_findings(healthy: Run) -> None:
    healthy.diagnoses[-1]["quantizing"] = False
    _layer(sqnr_db=1.0)(healthy)
    assert findings(healthy) == []


def test_the_command_of_pqk_train(healthy: Run, described: dict[str, Any]) -> None:
    run = dataclasses.replace(healthy, described=described | {"data": "cifar10:/my data"}, path=Path("runs/a b"))
    assert command(run) == (
        "pqk train --data 'cifar10:/my data' --model ds_cnn --config pqk.yaml --run-dir 'runs/a b' --batch-size 32 "
        "--lr 0.1 --weight-decay 0.0001 --momentum 0.9 --seed 0 --diagnose-every 8"
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_codes_of_a_transposed_convolution(groups: int) -> None:
    layer = PQKConvTranspose2d(nn.ConvTranspose2d(4, 6, 3, groups=groups), 4, True, CONFIG)
    found = dataclasses.asdict(diagnose_layer(layer))
    assert torch.equal(_codes(layer.weight.detach(), layer.weight_scale.detach(), found), weight_codes(layer))
