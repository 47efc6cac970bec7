"""How a step's loss is computed: in bfloat16, compiled, and what CUDA graphs are refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pqk_ext
from pqk_ext.training import Trainee
from pqk_ext.training.checkpoint import read_checkpoint
from pqk_ext.training.step_loss import _Graphs

CONFIG = pqk_ext.PQKConfig(sparsity=0.5, total_steps=8, warmup_fraction=0.2, mask_update_interval=2)


def data(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, 6, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    layers = (nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(64, 3))


def train(folder: Path, **settings: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"batch_size": 8, "lr": 0.05, "diagnose_every": 0, "keep": "last", "tensorboard": False}
    result = pqk_ext.fit(network(), data(32), data(8), CONFIG, folder, progress=False, **(arguments | settings))
    return read_checkpoint(result.checkpoint)


def test_bfloat16_leaves_the_state_in_float32(tmp_path: Path) -> None:
    plain, half = train(tmp_path / "plain"), train(tmp_path / "half", autocast="bf16")
    assert half["facts"]["settings"]["autocast"] == "bf16"
    assert "autocast" not in plain["facts"]["settings"]
    for name, value in half["model"].items():
        assert value.dtype == plain["model"][name].dtype
    weights = [torch.cat([v.flatten() for k, v in s["model"].items() if k.endswith("weight")]) for s in (plain, half)]
    assert 0 < float((weights[0] - weights[1]).norm() / weights[0].norm()) < 0.1


def test_a_run_does_not_go_on_in_another_precision(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(pqk_ext.training.ResumeMismatchError, match="autocast was None, is 'bf16'"):
        train(tmp_path, autocast="bf16")


def test_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, compile = [], torch.compile

    def counted(function: Any) -> Any:
        calls.append(function)
        return compile(function, backend="eager")

    monkeypatch.setattr("torch.compile", counted)
    plain, compiled = train(tmp_path / "plain"), train(tmp_path / "compiled", compile=True)
    assert len(calls) == 1
    weights = [
        torch.cat([v.flatten() for k, v in s["model"].items() if k.endswith("weight")]) for s in (plain, compiled)
    ]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"autocast": "fp16"}, "autocast: expected None or 'bf16', got 'fp16'"),
        ({"compile": 1}, "compile: expected True or False, got 1"),
        ({"compile": True, "cuda_graphs": True}, "cuda_graphs: expected False beside compile=True"),
        ({"cuda_graphs": True}, "cuda_graphs: expected False for a model that is not on a GPU"),
    ],
)
def test_what_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **settings)


@pytest.mark.parametrize(("model", "message"), [(Trainee(network()), "for a Trainee"), (network(0.5), "with dropout")])
def test_graphs_are_for_losses_that_are_the_same_work(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, message: str
) -> None:
    class OnGpu:
        device = torch.device("cuda", 0)

    monkeypatch.setattr(model, "parameters", lambda: iter([OnGpu()]))
    with pytest.raises(ValueError, match=message):
        _Graphs(model, lambda x, y: x)
