"""Quantization after training keeps the accuracy of published networks within half a point."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pqk_ext import data, models
from pqk_ext.deploy import quantize_post_training
from pqk_ext.models.pretrained import load_mlperf_tiny


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(250), y.split(250), strict=True))
    return 100 * right / len(x)


def assert_within_half_a_point(model: nn.Module, calibration: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
    quantized = quantize_post_training(model, example_inputs=x[:1], calibration=calibration.split(128))
    before, after = accuracy(model, x, y), accuracy(quantized, x, y)
    print(f"float {before:.2f} %, int8 {after:.2f} %")
    assert before > 80, "a network that has not learnt anything loses nothing"
    assert after > before - 0.5


def test_ds_cnn() -> None:
    calibration, _ = data.keyword_spotting("train").tensors
    held_out = [data.keyword_spotting(split).tensors for split in ("validation", "test")]
    x, y = (torch.cat(parts) for parts in zip(*held_out, strict=True))
    assert_within_half_a_point(models.create("ds_cnn", pretrained=True), calibration[:2048], x, y)


@pytest.mark.long
def test_resnet8(
    data_dir: Path, cifar10_train: tuple[torch.Tensor, torch.Tensor], cifar10_test: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model = load_mlperf_tiny(models.create("resnet8_mlperf"), data_dir / "mlperf_tiny_weights.npz.xz")
    assert_within_half_a_point(model, cifar10_train[0][:1024], *cifar10_test)
