"""Ops and evaluation on a GPU's stand-in: what is Python there gives what the CPU's kernels give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pqk_ext
from pqk_ext import models
from pqk_ext.device import usable_device
from pqk_ext.ops import masked_conv2d, masked_linear, masked_weight
from tests.stand_in.device import DEVICE, stand_in


@pytest.fixture
def gpu() -> Iterator[Any]:
    with stand_in() as mode:
        yield mode


def test_the_stand_in_refuses_what_a_gpu_refuses(gpu: Any) -> None:
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="expected all tensors on cuda:0"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, generator=torch.Generator("cuda"))
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()
    generator = torch.Generator("cuda").manual_seed(5)
    first = torch.randn(3, device="cuda", generator=generator)
    assert not torch.equal(first, torch.randn(3, device="cuda", generator=generator))
    assert torch.equal(first, torch.randn(3, device="cuda", generator=generator.manual_seed(5)))
    with torch.inference_mode():
        assert torch.ones(3).to("cuda", torch.float64).device == DEVICE


@pytest.mark.parametrize("assume_masked", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_masked_conv2d(gpu: Any, groups: int, assume_masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 7, 6, generator=generator)
    weight = torch.randn(6, 4 // groups, 3, 3, generator=generator)
    mask = torch.rand(weight.shape, generator=generator) < 0.4
    weight = torch.where(mask, weight, 0.0) if assume_masked else weight
    bias, results = torch.randn(6, generator=generator), []
    for device in ("cpu", "cuda"):
        leaves = [t.detach().to(device).requires_grad_() for t in (x, weight, bias)]
        out = masked_conv2d(leaves[0], leaves[1], mask.to(device), leaves[2], 2, 1, 1, groups, "dense", assume_masked)
        out.square().sum().backward()
        results.append([out.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves if leaf.grad is not None)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    if not assume_masked:
        assert torch.equal(results[1][2] != 0, mask & (results[0][2] != 0))
    assert {"pqk::masked_conv2d", "pqk::masked_conv2d_backward"} <= gpu.own_operators


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (0, 5)])
def test_masked_linear(gpu: Any, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(*shape, generator=generator), torch.randn(4, 5, generator=generator)
    mask, results = torch.rand(4, 5, generator=generator) < 0.5, []
    for device in ("cpu", "cuda"):
        leaves = [t.detach().to(device).requires_grad_() for t in (x, weight)]
        out = masked_linear(*leaves, mask.to(device), kernel="dense")
        out.square().sum().backward()
        results.append([out.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves if leaf.grad is not None)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_masked_ops_name_what_is_wrong(gpu: Any) -> None:
    weight = torch.ones(2, 2, device="cuda")
    mask = weight > 0
    with pytest.raises(RuntimeError, match="mask must be Bool"):
        masked_linear(weight, weight, weight)
    with pytest.raises(RuntimeError, match="mask must have weight's shape"):
        masked_linear(weight, weight, mask[:1])
    with pytest.raises(RuntimeError, match="kernel sparse is for float32 on the CPU"):
        masked_linear(weight, weight, mask, kernel="sparse")
    with pytest.raises(RuntimeError, match="kernel must be auto or dense"):
        masked_linear(weight, weight, mask, kernel="x")
    assert torch.equal(masked_weight(weight, ~mask).cpu(), torch.zeros(2, 2))


@pytest.mark.parametrize("name", ["resnet8", "ds_cnn"])
def test_evaluation_has_the_bits_of_the_cpu(gpu: Any, name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, *((1, 49, 10) if name == "ds_cnn" else (3, 32, 32)))
    config = pqk_ext.PQKConfig(sparsity=0.5, total_steps=8, warmup_fraction=0.0)
    model = pqk_ext.prepare(models.create(name, num_classes=10), config, example_inputs=x)
    model.train().pqk.loss(x, torch.zeros(4, dtype=torch.int64))
    expected = model.eval()(x)
    model.to("cuda")
    assert torch.equal(model.eval()(x.to("cuda")).cpu(), expected)


@pytest.mark.parametrize("device", ["cuda:1", "cuda:-1", "meta", "gpu", "mps"])
def test_devices_that_cannot_be_used(gpu: Any, device: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match="device: "):
        usable_device(device)


def test_the_present_device_is_chosen(gpu: Any) -> None:
    assert usable_device("cuda") == usable_device("cuda:0") == DEVICE
    assert usable_device(None) == torch.device("cpu")
