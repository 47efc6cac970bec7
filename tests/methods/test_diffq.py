"""DiffQ as a trainee and as a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pqk_ext.config import PQKConfig
from pqk_ext.deploy import export
from pqk_ext.deploy.parity import assert_parity
from pqk_ext.methods import load_recipe, run
from pqk_ext.methods.diffq import DiffQ, DiffQSettings
from pqk_ext.preparation import prepare
from pqk_ext.pseudo_quantization import MEGABYTE
from pqk_ext.training import TrainingInterrupted
from pqk_ext.training.optimizers import sgd
from pqk_ext.training.signals import stop_after_step

STEPS = 16
SHORT = {"training.steps": 8, "training.batch_size": 8, "settings.finetune_fraction": 0.25, "settings.bits_lr": 0.2}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(torch.relu(self.norm(self.conv(x))), 1))


def trainee(config: dict[str, Any] | None = None, **settings: Any) -> DiffQ:
    torch.manual_seed(0)
    values = {"sparsity": 0.5, "teacher": False, "total_steps": STEPS, "mask_update_interval": 2, **(config or {})}
    student = prepare(Net(), PQKConfig(**values), example_inputs=torch.randn(4, 3, 6, 6))
    return DiffQ(student, DiffQSettings(**settings))


def train(model: DiffQ, steps: int = STEPS) -> None:
    optimizer = sgd(model.parameter_groups(0.05, 1e-4), 0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(8, 3, 6, 6, generator=generator), torch.randint(0, 5, (8,), generator=generator)
        model.loss(x, y).backward()
        optimizer.step()
        model.step()
        optimizer.zero_grad()


def test_bits_learn_only_under_noise_and_then_stay() -> None:
    model = trainee({"warmup_fraction": 0.25}, penalty=1e5, bits_lr=0.2, finetune_fraction=0.25)
    seen = []
    optimizer = sgd(model.parameter_groups(0.05, 1e-4), 0.9)
    for _ in range(STEPS):
        seen.append((model.noisy, model.mean_bits(), torch.cat([w.logits.detach() for w in model.weights]).clone()))
        model.loss(torch.randn(8, 3, 6, 6), torch.randint(0, 5, (8,))).backward()
        optimizer.step()
        model.step()
        optimizer.zero_grad()
    assert [noisy for noisy, _, _ in seen] == [False] * 2 + [True] * 10 + [False] * 4
    assert all(torch.equal(logits, seen[0][2]) for _, _, logits in seen[:3])
    assert all(torch.equal(logits, seen[12][2]) for _, _, logits in seen[12:])
    means = [bits for _, bits, _ in seen]
    assert means[2] == 7.0
    assert means[12] < 5.0
    for layer in model.finish().pqk.layers():
        assert layer.noisy_weight is None
        assert layer.weight_bits is not None
        assert not layer.student_weight()[~layer.weight_mask].any()


@pytest.mark.parametrize("penalty_on", ["bits", "coded"])
def test_a_larger_price_gives_fewer_bits(penalty_on: str) -> None:
    means = []
    for penalty in (0.0, 1e6):
        model = trainee(penalty=penalty, penalty_on=penalty_on, bits_lr=0.1)
        train(model)
        means.append(model.mean_bits())
    assert means[1] < means[0] - 1


def test_pqk_s_own_teacher_goes_with_it() -> None:
    model = trainee({"teacher": True, "warmup_fraction": 0.0}, penalty=1e5, bits_lr=0.2)
    train(model, STEPS - 1)
    assert model.student.pqk.phase == 2
    layer = model.student.pqk.prunable_layers()[0]
    before, mask = layer.weight.detach().clone(), layer.weight_mask.clone()
    train(model, 1)
    moved = layer.weight.detach() != before
    assert moved[mask].any()
    assert moved[~mask].any()  # by the teacher alone: the student's noisy weight is 0 there
    assert not layer.student_weight()[~mask].any()
    assert model.mean_bits() < 6
    assert model.metrics()["kd"] > 0


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def test_tied_layers_share_bits_and_noise(tmp_path: Path) -> None:
    config = PQKConfig(sparsity=0.0, teacher=False, total_steps=8, warmup_fraction=0.0)
    x, y = torch.randn(16, 12), torch.randint(0, 5, (16,))
    student = prepare(Tied(), config, example_inputs=x)
    model = DiffQ(student, DiffQSettings(penalty=1e5, bits_lr=0.3))
    assert list(model.noisy_weights) == ["first", "head"]
    optimizer = torch.optim.AdamW(model.parameter_groups(0.01, 0.0))
    for _ in range(6):
        model.loss(x, y).backward()
        optimizer.step()
        model.step()
        optimizer.zero_grad()
    model.loss(x, y)
    first, second, _ = student.pqk.layers()
    assert torch.equal(first.student_weight(), second.student_weight())
    model.finish().eval()
    assert first.weight_bits is not None
    assert second.weight_bits is not None
    assert torch.equal(first.weight_bits, second.weight_bits)
    assert int(first.weight_bits.min()) < 7
    export(student, tmp_path / "net.pqk")
    assert_parity(student, tmp_path / "net.pqk", x)


def test_loss_is_the_student_s_and_the_price() -> None:
    model = trainee({"warmup_fraction": 0.0}, penalty=7.0)
    x, y = torch.randn(8, 3, 6, 6), torch.randint(0, 5, (8,))
    torch.manual_seed(3)
    loss = model.loss(x, y)
    metrics = model.metrics()
    assert float(loss.detach()) == pytest.approx(metrics["student_ce"] + 7.0 * metrics["size_mb"], rel=1e-6)
    # 216 + 640 weights of 7 bits, twice 72 bits and 3 bits a group; batch norm and biases as floats.
    bits = (216 + 640) * 7 + 2 * 72 + 3 * (27 + 80) + 32 * (16 + 5)
    assert metrics["size_mb"] == pytest.approx(bits / 8 / MEGABYTE, rel=1e-5)
    assert metrics["bits"] == 7.0


def test_small_layers_keep_all_bits() -> None:
    model = trainee(min_size=1000 / MEGABYTE)
    assert list(model.noisy_weights) == ["fc"]
    assert [layer.weight_bits is None for layer in model.student.pqk.layers()] == [True, False]
    with pytest.raises(ValueError, match=r"min_size: no layer is larger than 1\.0 times"):
        trainee(min_size=1.0)


def test_the_bits_have_an_adam_of_their_own() -> None:
    groups = trainee(bits_lr=0.03).parameter_groups(0.1, 0.5)
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.001, 0.03])
    assert (groups[-1]["weight_decay"], groups[-1]["adam"], groups[-1]["scheduled"]) == (0.0, True, False)
    parameters = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in parameters}) == len(parameters) == len(list(trainee().parameters()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantizer": "lsq"}, "quantizer: expected one of diffq, qat, post_training, got 'lsq'"),
        ({"noise": "laplace"}, "noise: expected one of gaussian, uniform, got 'laplace'"),
        ({"bits": 9}, "bits: expected an integer from 2 to 8, got 9"),
        ({"group_size": -1}, "group_size: expected an integer of at least 0, got -1"),
        ({"penalty": -1.0}, "penalty: expected a number in \\[0, inf\\), got -1.0"),
        ({"finetune_fraction": 1.5}, r"finetune_fraction: expected a number in \[0, 1\], got 1.5"),
        ({"initial_bits": 8.0}, "initial_bits: expected a number between min_bits = 2 and max_bits = 8, got 8.0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffQSettings(**settings)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_it_ends_in_a_file_with_parity_and_a_stopped_run_in_the_same(tmp_path: Path, optimizer: str) -> None:
    changes: dict[str, Any] = {"training.optimizer": optimizer, "pqk.sparsity": 0.5, "settings.penalty": 1000}
    recipe = load_recipe("diffq", SHORT | changes)
    whole = run(recipe, tmp_path / "whole", progress=False)
    network, facts = whole["networks"]["diffq"], whole["facts"]
    assert network["parity"]["different"] == 0
    assert network["sparsity"] >= 0.45
    assert facts["mean_bits"] < 7
    assert sum(facts["weights_by_bits"].values()) == 22016
    assert facts["coded_size_mb"] * MEGABYTE < network["bytes"]
    token = stop_after_step.set(5)
    try:
        with pytest.raises(TrainingInterrupted):
            run(recipe, tmp_path / "stopped", progress=False)
    finally:
        stop_after_step.reset(token)
    run(recipe, tmp_path / "stopped", progress=False)
    assert (tmp_path / "whole/diffq.pqk").read_bytes() == (tmp_path / "stopped/diffq.pqk").read_bytes()
    again = json.loads((tmp_path / "stopped/result.json").read_text())
    assert again["facts"] == facts


@pytest.mark.parametrize("quantizer", ["qat", "post_training"])
def test_what_it_is_compared_with(tmp_path: Path, quantizer: str) -> None:
    changes: dict[str, Any] = {
        "training.steps": 3,
        "training.batch_size": 8,
        "settings.quantizer": quantizer,
        "settings.bits": 3,
    }
    result = run(load_recipe("diffq", changes), tmp_path, progress=False)
    assert result["networks"]["diffq"]["parity"]["different"] == 0
    assert result["networks"]["diffq"]["bytes"] < 22000
