"""Averages of a prepared model's weights: what is averaged, what is not, and that the average can be shipped."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from pqk_ext import assert_parity, ema_multi_avg_fn, export
from pqk_ext.config import PQKConfig
from pqk_ext.preparation import PreparedModel, prepare

from ..networks import SmallNet, batch

STEPS = 24
CONFIG = PQKConfig(sparsity=0.6, total_steps=STEPS, mask_update_interval=2, warmup_fraction=0.2)
KINDS = {
    "torch": lambda: {"multi_avg_fn": get_ema_multi_avg_fn(0.6)},
    "swa": dict,
    "buffers": lambda: {"multi_avg_fn": ema_multi_avg_fn(0.6), "use_buffers": True},
}


def averaged(arguments: dict[str, Any], steps: int = STEPS) -> tuple[PreparedModel, AveragedModel]:
    torch.manual_seed(0)
    model = prepare(SmallNet(), CONFIG, example_inputs=batch(0)[0])
    average = AveragedModel(model, **arguments)
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(0.02), momentum=0.9)
    for step in range(steps):
        model.pqk.loss(*batch(step)).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
        average.update_parameters(model)
    return model, average


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [2, STEPS], ids=["warm-up", "end"])
def test_an_average_is_evaluated_and_shipped(kind: str, steps: int, tmp_path: Path) -> None:
    model, average = averaged(KINDS[kind](), steps)
    inner = average.module
    assert not torch.equal(inner.conv1.weight, model.conv1.weight)
    for name, buffer in model.named_buffers():
        if not buffer.is_floating_point():
            assert torch.equal(inner.get_buffer(name), buffer), name
    x, _ = batch(99, 32)
    average.eval()
    assert inner.pqk.global_step == steps
    assert inner.pqk.phase == model.pqk.phase
    assert inner.pqk.sparsity == model.pqk.sparsity
    logits = average(x)
    early = pytest.warns(UserWarning, match=f"exporting at step {steps} of {STEPS}: sparsity is 0.000")
    with early if steps < STEPS else nullcontext():
        export(average, tmp_path / "net.pqk")
    assert_parity(average, tmp_path / "net.pqk", x)
    if steps == STEPS and kind != "swa":  # close to the network that it averages, and another one
        difference = float((logits - model.eval()(x)).norm() / logits.norm())
        assert 0 < difference < 0.5


def test_running_statistics_are_averaged_with_buffers_only() -> None:
    model, copied = averaged(KINDS["torch"]())
    _, averages = averaged(KINDS["buffers"]())
    assert torch.equal(copied.module.bn1.running_mean, model.bn1.running_mean)
    assert not torch.equal(averages.module.bn1.running_mean, model.bn1.running_mean)
    torch.testing.assert_close(averages.module.bn1.running_mean, model.bn1.running_mean, rtol=0.5, atol=0.2)


def test_the_export_of_an_average_in_training_mode_knows_the_phase(tmp_path: Path) -> None:
    _, average = averaged(KINDS["torch"]())
    scale = average.module.conv1.weight_scale.detach().clone()
    export(average.module, tmp_path / "net.pqk")  # the copy was made in the warm-up
    assert torch.equal(average.module.conv1.weight_scale, scale)
    assert_parity(average, tmp_path / "net.pqk", batch(1)[0])


def test_an_average_in_evaluation_mode_follows_its_updates() -> None:
    model, average = averaged(KINDS["buffers"](), 10)
    x, _ = batch(1)
    before = average.eval()(x)
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(0.1), momentum=0.9)
    model.pqk.loss(*batch(10)).backward()
    optimizer.step()
    model.pqk.step()
    average.update_parameters(model)
    after = average(x)
    assert not torch.equal(after, before)
    assert torch.equal(average.eval()(x), after)


def test_weights_put_in_through_data_are_evaluated() -> None:
    """As libraries of averages do it: such a write moves no version counter."""
    model, average = averaged(KINDS["torch"]())
    x, _ = batch(1)
    own, of_average = model.eval()(x), average.eval()(x)
    kept = [parameter.data.clone() for parameter in model.parameters()]
    for parameter, other in zip(model.parameters(), average.module.parameters(), strict=True):
        parameter.data.copy_(other.data)
    assert torch.equal(model(x), of_average)
    for parameter, value in zip(model.parameters(), kept, strict=True):
        parameter.data.copy_(value)
    assert torch.equal(model(x), own)


def test_averages_are_what_they_say() -> None:
    old, new = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 6.0])]
    ema_multi_avg_fn(0.75)(old, new, 1)
    assert old[0].tolist() == [1.5, 3.0]
    for before, after in (([True, False], [False, True]), ([127, 3], [-128, 4])):
        old, new = [torch.tensor(before)], [torch.tensor(after)]
        ema_multi_avg_fn(0.75)(old, new, 1)
        assert torch.equal(old[0], new[0])
    with pytest.raises(ValueError, match=r"decay: expected a number in \[0, 1\], got 1.5"):
        ema_multi_avg_fn(1.5)


def test_update_bn_takes_the_statistics_of_the_quantized_network() -> None:
    """The cumulative mean of the statistics that each batch norm of the student sees in the loader's batches."""
    _, average = averaged(KINDS["torch"]())
    loader = [batch(seed) for seed in range(50, 54)]
    inner, seen = average.module, []
    inner.train()
    with torch.no_grad():
        for x, _ in loader:
            # Of the first convolution alone: what stands before it is the quantized input.
            codes = inner.pqk_quantizers["q0"](x)
            out = nn.functional.conv2d(codes, inner.conv1.student_weight(), None, padding=1)
            seen.append((out.mean((0, 2, 3)), out.transpose(0, 1).flatten(1).var(1)))
    average.eval()
    update_bn(loader, average)
    assert not average.training
    means, variances = (torch.stack(values).mean(0) for values in zip(*seen, strict=True))
    torch.testing.assert_close(inner.bn1.running_mean, means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inner.bn1.running_var, variances, rtol=1e-4, atol=1e-5)
    assert inner.bn1.momentum == SmallNet().bn1.momentum
    assert int(inner.bn1.num_batches_tracked) == 4
    assert bool(average(batch(1)[0]).isfinite().all())
