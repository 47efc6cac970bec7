"""A small run on disk, as `fit` leaves it, and copies of it that tests may spoil."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pqk_ext
from pqk_ext.training import fit

CONFIG = pqk_ext.PQKConfig(
    sparsity=0.7, weight_bits=4, total_steps=48, warmup_fraction=0.125, mask_update_interval=4, temperature=3.0
)


def _data() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(352, 1, 6, 6, generator=generator)
    y = (x.mean((1, 2, 3)) > 0).long()
    return (x[:256], y[:256]), (x[256:], y[256:])


def _train(run_dir: Path, config: pqk_ext.PQKConfig | None) -> nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = [nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    layers += [nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2)]
    return fit(
        nn.Sequential(*layers),
        *_data(),
        config,
        run_dir,
        epochs=None if config else 3,
        batch_size=32,
        log_every=3,
        diagnose_every=8,
        checkpoint_steps=24,
        tensorboard=False,
        progress=False,
    ).model


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with both phases, an exported file in it. Not to be changed."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    pqk_ext.export(_train(run_dir, CONFIG), run_dir / "net.pqk")
    return run_dir


@pytest.fixture(scope="session")
def float_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without PQK. Not to be changed."""
    run_dir = tmp_path_factory.mktemp("runs") / "float"
    _train(run_dir, None)
    return run_dir


@pytest.fixture
def copy_run(tmp_path: Path) -> Callable[..., Path]:
    """Copies a run, some of its files only if they are named."""

    def copy(source: Path, *names: str, to: str = "run") -> Path:
        target = tmp_path / to
        target.mkdir()
        for path in source.iterdir():
            if not names or path.name in names:
                shutil.copy(path, target / path.name)
        return target

    return copy


@pytest.fixture
def described() -> dict[str, Any]:
    """What ``pqk train`` writes to ``run.json``."""
    return {"model": "ds_cnn", "options": {"num_classes": 12}, "data": "keyword_spotting", "config": CONFIG.to_dict()}


def change_lines(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Applies ``change`` to the object of every line."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    for line in lines:
        change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
