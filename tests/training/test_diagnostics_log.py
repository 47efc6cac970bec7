"""Diagnoses while a model trains: when they are taken, what they hold, and that the training does not notice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from pqk_ext.config import PQKConfig
from pqk_ext.training import FitResult, ResumeMismatchError
from pqk_ext.training.checkpoint import read_checkpoint, write_checkpoint
from pqk_ext.training.data import Batches

Train = Callable[..., FitResult]
# 8 steps an epoch: warm-up to step 3, phase 2 from step 24.
CONFIG = PQKConfig(sparsity=0.7, weight_bits=4, total_steps=48, warmup_fraction=0.125, mask_update_interval=4)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "diagnostics.jsonl").read_text().splitlines()]


@pytest.fixture
def train_pqk(train: Train) -> Train:
    def run(run_dir: Path, **changes: Any) -> FitResult:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(96, 2),
        )
        return train(run_dir, **{"model": model, "config": CONFIG, "epochs": None, "diagnose_every": 10} | changes)

    return run


def test_the_weights_are_those_of_a_run_without(tmp_path: Path, train_pqk: Train) -> None:
    states = []
    for every in (0, 1):
        result = train_pqk(tmp_path / f"{every}", diagnose_every=every)
        state = read_checkpoint(result.checkpoint)
        kept = {name: state[name] for name in ("model", "optimizer", "random", "progress", "best")}
        write_checkpoint(tmp_path / "kept", kept)
        states.append((tmp_path / "kept").read_bytes())
        assert (tmp_path / f"{every}" / "diagnostics.jsonl").exists() == bool(every)
    assert states[0] == states[1]
    without, with_ = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in "01")
    assert without == with_


def test_lines_follow_validations_and_tell_of_both_phases(tmp_path: Path, train_pqk: Train) -> None:
    train_pqk(tmp_path)
    found = lines(tmp_path)
    # Validations at 8, 16, ..., 48: those that are the first after a multiple of 10, and the last.
    assert [line["step"] for line in found] == [16, 24, 32, 40, 48]
    assert [line["phase"] for line in found] == [1, 2, 2, 2, 2]
    assert [layer["name"] for layer in found[0]["layers"]] == ["0", "5"]
    assert all(layer["drift"] is not None for line in found for layer in line["layers"])
    assert any(layer["drift"] != 1 for line in found for layer in line["layers"])
    assert found[0]["agreement"] is None
    assert found[-1]["agreement"]["teacher_accuracy"] is not None
    assert found[-1]["samples"] == 64
    assert found[-1]["layers"][0]["sparsity"] == pytest.approx(0.7, abs=0.02)


def test_the_end_is_diagnosed_whatever_the_interval(tmp_path: Path, train_pqk: Train) -> None:
    train_pqk(tmp_path, diagnose_every=1000)
    assert [line["step"] for line in lines(tmp_path)] == [48]


def test_a_plain_model_has_none(tmp_path: Path, train: Train) -> None:
    train(tmp_path, diagnose_every=1)
    assert not (tmp_path / "diagnostics.jsonl").exists()


def test_the_interval_belongs_to_the_run(tmp_path: Path, train_pqk: Train) -> None:
    train_pqk(tmp_path)
    with pytest.raises(ResumeMismatchError, match="diagnose_every was 10, is 20"):
        train_pqk(tmp_path, diagnose_every=20)
    with pytest.raises(ValueError, match="diagnose_every: expected an integer of at least 0, got -1"):
        train_pqk(tmp_path / "other", diagnose_every=-1)


def test_tensorboard_gets_curves_and_histograms(tmp_path: Path, train_pqk: Train) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_pqk(tmp_path, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"weights/0", "codes/5"} <= set(tags["histograms"])
    curve = [(point.step, point.value) for point in events.Scalars("weights_sparsity/0")]
    assert [step for step, _ in curve] == [16, 24, 32, 40, 48]
    assert curve[-1][1] == pytest.approx(lines(tmp_path)[-1]["layers"][0]["sparsity"], rel=1e-5)
    assert "logits/sqnr_db" in tags["scalars"]


class Pairs(Dataset[Any]):
    """A data set that is no ``TensorDataset``, with a random transform."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((2,), float(index)) + torch.rand(2) / 10, index % 2


def test_samples_are_spread_and_always_the_same() -> None:
    tensors = TensorDataset(torch.arange(100.0), torch.arange(100))
    x, y = Batches(tensors, 8, shuffle=False, seed=0).samples(4)
    assert x.tolist() == y.tolist() == [0, 33, 66, 99]
    assert Batches(tensors, 8, shuffle=False, seed=0).samples(500)[0].shape == (100,)
    batches = Batches(Pairs(), 8, shuffle=False, seed=0)
    state = torch.get_rng_state()
    x, y = batches.samples(3)
    assert x[:, 0].floor().tolist() == [0, 4, 9]
    assert y.tolist() == [0, 0, 1]
    assert torch.equal(x, batches.samples(3)[0])
    assert torch.equal(state, torch.get_rng_state())
