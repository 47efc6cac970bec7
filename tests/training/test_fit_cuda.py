"""Training on a GPU: the checks of the stand-in on the real one, and what only a GPU can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pqk_ext
from pqk_ext import models
from pqk_ext.ops import masked_conv2d, masked_linear
from tests.ops.cuda_ops import require_gpu
from tests.stand_in.check_fit import (  # noqa: F401  # collected here, with this module's `gpu`
    CONFIG,
    classes,
    same,
    test_a_stopped_run_ends_with_the_same_bits,
    test_bfloat16,
    test_data_larger_than_half_of_the_memory_stay_on_the_host,
    test_data_lie_on_the_device_in_the_order_of_the_cpu,
    test_demo,
    test_divergence_is_found_before_it_is_saved,
    test_file_of_a_model_on_the_device_has_its_bits,
    test_trains_as_on_the_cpu,
    train,
)

pytestmark = pytest.mark.cuda


@pytest.fixture
def gpu() -> Any:
    require_gpu()
    return None


def test_graphs_give_the_bits_of_eager_steps(gpu: Any, tmp_path: Path) -> None:
    _, plain = train(tmp_path / "plain", "cuda")
    _, graphs = train(tmp_path / "graphs", "cuda", cuda_graphs=True)
    same(plain["model"], graphs["model"])


def test_a_compiled_step_trains(gpu: Any, tmp_path: Path) -> None:
    _, plain = train(tmp_path / "plain", "cuda")
    _, compiled = train(tmp_path / "compiled", "cuda", compile=True)
    a, b = (torch.cat([v.flatten() for k, v in s["model"].items() if k.endswith("weight")]) for s in (plain, compiled))
    assert float((a - b).norm() / a.norm()) < 0.05


@pytest.mark.parametrize("name", ["resnet20", "ds_cnn", "mobilenet_v2", "vgg11"])
def test_evaluation_has_the_bits_of_the_cpu(gpu: Any, name: str) -> None:
    torch.manual_seed(0)
    shape = (1, 49, 10) if name == "ds_cnn" else (3, 32, 32)
    x = torch.randn(16, *shape)
    model = pqk_ext.prepare(models.create(name, num_classes=10), CONFIG, example_inputs=x[:2]).train()
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.01), lr=0.01)
    for _ in range(6):
        model.pqk.loss(x, torch.zeros(16, dtype=torch.int64)).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
    expected = model.eval()(x)
    assert torch.equal(model.to("cuda").eval()(x.to("cuda")).cpu(), expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_masked_ops_agree_with_plain_torch(gpu: Any, groups: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8, 9, 7, device="cuda", requires_grad=True)
    weight = torch.randn(6, 8 // groups, 3, 3, device="cuda", requires_grad=True)
    mask = torch.rand(weight.shape, device="cuda") < 0.3
    plain = torch.nn.functional.conv2d(x, weight * mask, None, 2, 1, 1, groups)
    own = masked_conv2d(x, weight, mask, None, 2, 1, 1, groups)
    grad = torch.randn_like(plain)
    with torch.backends.cudnn.flags(allow_tf32=False):
        for ours, theirs in zip(
            (own, *torch.autograd.grad(own, (x, weight), grad)),
            (plain, *torch.autograd.grad(plain, (x, weight), grad)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    rows, matrix = x[0, 0], weight[0, 0, :3, :3].repeat(1, 3)[:, :7]
    kept = torch.rand(matrix.shape, device="cuda") < 0.5
    torch.testing.assert_close(masked_linear(rows, matrix, kept), rows @ (matrix * kept).t(), rtol=1e-3, atol=1e-3)
