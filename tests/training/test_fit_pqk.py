"""The training loop with PQK: both phases, every arm, stopped anywhere."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pqk_ext.config import PQKConfig
from pqk_ext.training import FitResult, TrainingInterrupted

Train = Callable[..., FitResult]
Start = Callable[[Callable[[], Any]], BaseProcess]

# 3 epochs a phase of 8 steps: warm-up to step 3, ramp to step 18, phase 2 from step 24.
CONFIG = PQKConfig(
    sparsity=0.7, weight_bits=4, total_steps=48, warmup_fraction=0.125, mask_update_interval=4, kd_warmup_fraction=0.1
)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(8 * 16, 2),
    )


@pytest.fixture
def train_pqk(train: Train) -> Train:
    def run(run_dir: Path, config: PQKConfig = CONFIG, **changes: Any) -> FitResult:
        arguments: dict[str, Any] = {"model": _network(), "config": config, "epochs": None, "log_every": 4}
        return train(run_dir, **arguments | {"checkpoint_steps": 5, "diagnose_every": 10} | changes)

    return run


def _files(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run_dir.iterdir() if path.suffix in (".ckpt", ".jsonl")}


def _stopped_and_resumed(train_pqk: Train, run_dir: Path, noise: Any, steps: list[int], config: PQKConfig) -> None:
    for step in steps:

        def stop(call: int, step: int = step, start: int = max([0, *[s for s in steps if s < step]])) -> None:
            if call == step - start:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(TrainingInterrupted) as stopped:
            train_pqk(run_dir, config, augment=noise(stop))
        assert stopped.value.step == step
        torch.rand(3)
    train_pqk(run_dir, config)


def test_both_phases_run_and_the_result_has_the_sparsity(tmp_path: Path, train_pqk: Train, problem: Any) -> None:
    result = train_pqk(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    phases = {line["step"]: line["phase"] for line in lines if "phase" in line}
    assert phases[20] == 1
    assert phases[28] == 2
    assert not any("kd" in line for line in lines if line["step"] <= 24)
    assert any("kd" in line for line in lines if line["step"] > 28)
    total = sum(layer.weight_mask.numel() for layer in result.model.pqk.prunable_layers())  # type: ignore[union-attr,operator]
    assert abs(result.model.pqk.sparsity - 0.7) <= 1 / total  # type: ignore[union-attr,operator]
    # Weights of a lower sparsity may classify better, but are not what can be deployed.
    assert result.best_step >= CONFIG.ramp_end_step + CONFIG.mask_update_interval
    x, y = problem[1]
    assert (result.model(x).argmax(1) == y).float().mean().item() == pytest.approx(result.best_accuracy)
    assert result.best_accuracy > 0.6


@pytest.mark.parametrize(
    "steps",
    [[1], [2, 3], [4, 7, 9], [23], [24], [25], [26, 27], [47], [48]],
    ids=lambda steps: "-".join(map(str, steps)),
)
def test_stopped_anywhere_and_resumed_equals_uninterrupted(
    tmp_path: Path, train_pqk: Train, noise: Any, steps: list[int]
) -> None:
    expected = train_pqk(tmp_path / "a")
    _stopped_and_resumed(train_pqk, tmp_path / "b", noise, steps, CONFIG)
    a, b = _files(tmp_path / "a"), _files(tmp_path / "b")
    for name in (expected.checkpoint.name, f"best-{expected.best_step:08d}.ckpt", "metrics.jsonl", "diagnostics.jsonl"):
        assert a[name] == b[name], name


@pytest.mark.parametrize(
    "arm",
    [
        {"teacher": False},
        {"routing": "shared"},
        {"kl_direction": "two_way", "teacher_weights": "quantized"},
        {"batch_norm": "shared", "step_size": "freeze"},
        {"ranking": "per_layer", "granularity": "filter", "sparsity": 0.5},
        {"granularity": "1x4"},
        {"phase1_fraction": 1.0, "kd_warmup_fraction": 0.0},
        {"teacher_start": 0.3},
    ],
    ids=str,
)
def test_every_arm_resumes_exactly(tmp_path: Path, train_pqk: Train, noise: Any, arm: dict[str, Any]) -> None:
    config = PQKConfig.from_dict(CONFIG.to_dict() | arm)
    train_pqk(tmp_path / "a", config)
    _stopped_and_resumed(train_pqk, tmp_path / "b", noise, [10, 36], config)
    a, b = _files(tmp_path / "a"), _files(tmp_path / "b")
    assert a["step-00000048.ckpt"] == b["step-00000048.ckpt"]
    assert a["metrics.jsonl"] == b["metrics.jsonl"]
    assert a["diagnostics.jsonl"] == b["diagnostics.jsonl"]


def test_two_processes_hold_the_same_masks_and_scales(tmp_path: Path, train_pqk: Train, child: Start) -> None:
    """Checkpoints compare the bits of all state over the processes: five times here, in both phases."""

    def run(rank: int) -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=rank, world_size=2)
        result = train_pqk(tmp_path / "a", checkpoint_steps=10)
        (tmp_path / f"sparsity{rank}").write_text(str(result.model.pqk.sparsity))  # type: ignore[union-attr]
        torch.distributed.destroy_process_group()

    processes = [child(lambda rank=rank: run(rank)) for rank in range(2)]  # type: ignore[misc]
    for process in processes:
        process.join(60)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "sparsity0").read_text() == (tmp_path / "sparsity1").read_text()
    assert (tmp_path / "a" / "step-00000048.ckpt").exists()


def test_epochs_replace_the_length_of_a_plain_model(tmp_path: Path, train_pqk: Train) -> None:
    result = train_pqk(tmp_path, epochs=2)
    assert result.checkpoint.name == "step-00000016.ckpt"
    assert result.model.pqk.config.total_steps == 16  # type: ignore[union-attr]


def test_a_prepared_model_is_taken_as_it_is(tmp_path: Path, train_pqk: Train, problem: Any) -> None:
    from pqk_ext.preparation import prepare

    model = prepare(_network(), CONFIG, example_inputs=problem[0][0][:4])
    result = train_pqk(tmp_path, None, model=model)
    assert result.model is model
    assert result.checkpoint.name == "step-00000048.ckpt"


def test_a_model_trained_by_hand_for_a_while_goes_on_from_there(tmp_path: Path, train_pqk: Train, problem: Any) -> None:
    from pqk_ext.preparation import prepare

    (x, y), _ = problem
    model = prepare(_network(), CONFIG, example_inputs=x[:4])
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.1), lr=0.1)
    model.train()
    for _ in range(5):
        model.pqk.loss(x[:32], y[:32]).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
    result = train_pqk(tmp_path, None, model=model)
    assert result.checkpoint.name == "step-00000048.ckpt"
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 8


def test_other_config_is_refused_naming_the_key(tmp_path: Path, train_pqk: Train) -> None:
    from pqk_ext.training import ResumeMismatchError

    train_pqk(tmp_path, epochs=1)
    with pytest.raises(ResumeMismatchError, match=r"config\.sparsity was 0\.7, is 0\.6"):
        train_pqk(tmp_path, PQKConfig.from_dict(CONFIG.to_dict() | {"sparsity": 0.6}), epochs=1)
