"""Whole training runs on a GPU's stand-in, through the emulated CUDA kernels: from `fit` down to each thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pqk_ext
from pqk_ext.deploy.evaluate import TorchGraph
from pqk_ext.training.checkpoint import read_checkpoint
from tests.ops.cuda_ops import emulated_namespace
from tests.stand_in.device import stand_in


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (count,), generator=generator)
    return torch.randn(count, 2, 5, 5, generator=generator) + y.view(-1, 1, 1, 1), y


def train(folder: Path, device: str, **settings: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    layers = (nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(150, 3))
    config = pqk_ext.PQKConfig(sparsity=0.5, total_steps=8, warmup_fraction=0.25, mask_update_interval=1, **settings)
    arguments: dict[str, Any] = {"batch_size": 4, "lr": 0.05, "diagnose_every": 0, "device": device, "keep": "last"}
    result = pqk_ext.fit(
        nn.Sequential(*layers), data(16, 0), data(4, 1), config, folder, tensorboard=False, progress=False, **arguments
    )
    state: dict[str, Tensor] = read_checkpoint(result.checkpoint)["model"]
    return state


def test_integer_ops_of_the_device_give_the_evaluation(tmp_path: Path) -> None:
    kernels = emulated_namespace()
    torch.manual_seed(0)
    x = data(3, 2)[0]
    layers = (nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.Flatten())
    config = pqk_ext.PQKConfig(sparsity=0.5, total_steps=4, warmup_fraction=0.0)
    model = pqk_ext.prepare(nn.Sequential(*layers, nn.Linear(32, 3)), config, example_inputs=x).eval()
    pqk_ext.export(model, tmp_path / "network.pqk")
    graph = pqk_ext.runtime.load(tmp_path / "network.pqk").graph
    with stand_in(kernels) as mode:
        native = TorchGraph(graph, "cuda", native=True)(x.to("cuda")).cpu()
    assert {"pqk::int8_conv2d", "pqk::int8_linear"} <= mode.emulated
    assert torch.equal(native, model(x))


def test_training_through_the_kernels(tmp_path: Path) -> None:
    kernels = emulated_namespace()
    with stand_in(kernels) as mode:
        through_kernels = train(tmp_path / "kernels", "cuda", size_penalty=1.0)
    with stand_in():
        through_torch = train(tmp_path / "torch", "cuda", size_penalty=1.0)
    names = ("fake_quantize", "norm_activation", "soft_histogram")
    assert {f"pqk::{name}{step}" for name in names for step in ("", "_backward")} <= mode.emulated
    for name, value in through_kernels.items():
        assert value.dtype == through_torch[name].dtype
        if value.is_floating_point():
            torch.testing.assert_close(value, through_torch[name], rtol=1e-3, atol=1e-4, msg=name)
        else:
            assert torch.equal(value, through_torch[name]), name
