"""Training on a GPU's stand-in: what `fit`, recipes and the demo do there, and that it is what they do on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pqk_ext
from pqk_ext import demo, runtime
from pqk_ext.training import TrainingInterrupted
from pqk_ext.training.checkpoint import read_checkpoint
from pqk_ext.training.signals import stop_after_step
from tests.stand_in.device import DEVICE, stand_in


@pytest.fixture
def gpu() -> Iterator[Any]:
    with stand_in() as mode:
        yield mode


def classes(count: int, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (count,), generator=generator)
    return torch.randn(count, *shape, generator=generator) + y.view(-1, 1, 1, 1), y


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


CONFIG = pqk_ext.PQKConfig(sparsity=0.5, total_steps=20, warmup_fraction=0.2, mask_update_interval=2)


def train(folder: Path, device: str, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """One run; the model, and the state that its last checkpoint holds."""
    arguments: dict[str, Any] = {"batch_size": 16, "lr": 0.05, "tensorboard": False, "progress": False, "keep": "last"}
    arguments |= {
        "diagnose_every": 8,
        "log_every": 3,
        "checkpoint_steps": 7,
        "device": device,
        "config": CONFIG,
    } | changes
    result = pqk_ext.fit(
        arguments.pop("model", None) or network(), classes(64), classes(32, seed=1), run_dir=folder, **arguments
    )
    return result.model, read_checkpoint(result.checkpoint)


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5, x.flip(3), x)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value.cpu(), b[name].cpu(), rtol=0, atol=0, equal_nan=True, msg=name)


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Off the CPU other operators compute the same, with other roundings, and a rounding may move a weight's code."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.cpu(), b[name].cpu(), rtol=0.05, atol=0.02, msg=name)


@pytest.mark.parametrize("config", [None, CONFIG], ids=["float", "pqk"])
def test_trains_as_on_the_cpu(gpu: Any, tmp_path: Path, config: Any) -> None:
    settings = {"config": config, "epochs": None if config else 6}
    model, on_gpu = train(tmp_path / "gpu", "cuda", **settings)
    _, on_cpu = train(tmp_path / "cpu", "cpu", **settings)
    assert next(model.parameters()).device == DEVICE
    close(on_gpu["model"], on_cpu["model"])
    assert on_gpu["facts"]["environment"]["device"] != on_cpu["facts"]["environment"]["device"]
    lines = [
        [json.loads(line) for line in (tmp_path / d / "metrics.jsonl").read_text().splitlines()] for d in ("gpu", "cpu")
    ]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for ours, theirs in zip(*lines, strict=True):
        assert ours.keys() == theirs.keys()
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)


@pytest.mark.parametrize("stop", [3, 17])
def test_a_stopped_run_ends_with_the_same_bits(gpu: Any, tmp_path: Path, stop: int) -> None:
    _, whole = train(tmp_path / "whole", "cuda", augment=flip)
    token = stop_after_step.set(stop)
    with pytest.raises(TrainingInterrupted):
        train(tmp_path / "parts", "cuda", augment=flip)
    stop_after_step.reset(token)
    _, parts = train(tmp_path / "parts", "cuda", augment=flip)
    same(whole["model"], parts["model"])
    same_lines = [(tmp_path / d / "metrics.jsonl").read_text() for d in ("whole", "parts")]
    assert same_lines[0] == same_lines[1]


def test_data_lie_on_the_device_in_the_order_of_the_cpu(gpu: Any) -> None:
    from pqk_ext.training.data import Batches

    batches = {name: Batches(classes(40), 16, shuffle=True, seed=3) for name in ("gpu", "cpu")}
    batches["gpu"].move_to(DEVICE)
    for (x, y), (own_x, own_y) in zip(batches["gpu"].epoch(1), batches["cpu"].epoch(1), strict=True):
        assert x.device == y.device == DEVICE
        assert torch.equal(x.cpu(), own_x)
        assert torch.equal(y.cpu(), own_y)


def test_data_larger_than_half_of_the_memory_stay_on_the_host(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pqk_ext.training.data import Batches

    batches = Batches(classes(40), 16, shuffle=True, seed=3)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (40 * 3 * 64 * 4, 1 << 30))
    batches.move_to(DEVICE)
    assert next(iter(batches.epoch(0)))[0].device.type == "cpu"


def test_divergence_is_found_before_it_is_saved(gpu: Any, tmp_path: Path) -> None:
    with pytest.raises(pqk_ext.training.DivergedError, match="diverged at step"):
        train(tmp_path, "cuda", lr=1e30, config=None, epochs=6, checkpoint_steps=None)


def test_file_of_a_model_on_the_device_has_its_bits(gpu: Any, tmp_path: Path) -> None:
    model, _ = train(tmp_path / "run", "cuda")
    pqk_ext.export(model, tmp_path / "x.pqk")
    x = classes(16, seed=2)[0]
    pqk_ext.assert_parity(model, tmp_path / "x.pqk", x)
    own = model.eval()(x.to(DEVICE)).cpu()
    assert torch.equal(own, torch.from_numpy(runtime.load(tmp_path / "x.pqk")(x.numpy())))


def test_bfloat16(gpu: Any, tmp_path: Path) -> None:
    _, state = train(tmp_path, "cuda", autocast="bf16")
    assert state["facts"]["settings"]["autocast"] == "bf16"
    assert all(v.dtype == torch.float32 for v in state["model"].values() if v.is_floating_point())


def test_a_step_as_a_graph(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording and replay are played: a graph computes nothing while it is recorded, and reads its own memory."""
    recorded = []

    def record(compute: Any) -> tuple[Any, Tensor]:
        with torch.random.fork_rng(devices=[]):
            before = {name: v.clone() for name, v in state(compute).items()}
            result = compute()
            for name, v in state(compute).items():
                v.copy_(before[name])
        gradients = [p.grad for p in parameters(compute)]
        recorded.append(0)

        def replay() -> None:
            recorded[-1] += 1
            for p in parameters(compute):
                p.grad = None
            result.copy_(compute())
            for gradient, p in zip(gradients, parameters(compute), strict=True):
                if gradient is not None:
                    gradient.copy_(p.grad)

        return replay, result

    def owner(compute: Any) -> nn.Module:
        cells = compute.__closure__[0].cell_contents, compute.__closure__[1].cell_contents
        bound = next(cell for cell in cells if callable(cell))
        return bound.__self__._model  # type: ignore[no-any-return]

    def state(compute: Any) -> dict[str, Tensor]:
        return dict(owner(compute).named_buffers())

    def parameters(compute: Any) -> list[nn.Parameter]:
        return list(owner(compute).parameters())

    monkeypatch.setattr("pqk_ext.training.step_loss._record", record)
    monkeypatch.setattr("pqk_ext.training.step_loss._on_side_stream", lambda compute: compute())
    _, plain = train(tmp_path / "plain", "cuda")
    _, graphs = train(tmp_path / "graphs", "cuda", cuda_graphs=True)
    same(plain["model"], graphs["model"])
    assert len(recorded) >= 2, "a graph for each phase"
    assert sum(recorded) >= 10
    same_lines = [(tmp_path / d / "metrics.jsonl").read_text() for d in ("plain", "graphs")]
    assert same_lines[0] == same_lines[1]


def test_demo(gpu: Any, tmp_path: Path) -> None:
    recipe = demo.Recipe(steps=8, batch_size=8)
    x, y = demo.load_split("train")
    data = x[:64], y[:64]
    on_gpu = demo.train("pqk", recipe, 0, data, device="cuda")
    on_cpu = demo.train("pqk", recipe, 0, data)
    assert next(on_gpu.parameters()).device.type == "cpu"
    ours, theirs = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (on_gpu, on_cpu))
    # Adam makes whole steps of gradients that are rounding alone, so that single weights may differ by much.
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05
