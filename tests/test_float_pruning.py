"""Pruning of the float network, with quantization after it: ``PQKConfig(float_fraction=)``."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from pqk_ext.config import PQKConfig
from pqk_ext.deploy import assert_parity, export
from pqk_ext.deploy.exporter import calibrate
from pqk_ext.nn import Role
from pqk_ext.preparation import PreparedModel, prepare
from pqk_ext.quant import per_channel_scale

from .networks import SmallNet, batch

CONFIG = PQKConfig(
    sparsity=0.75, total_steps=32, mask_update_interval=2, warmup_fraction=0.15, float_fraction=1.0, teacher=False
)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = SmallNet()
    model.dropout.p = 0.0
    return model


def prepared(config: PQKConfig = CONFIG) -> PreparedModel:
    return prepare(network(), config, example_inputs=batch(0)[0])


def train(model: PreparedModel, steps: range) -> list[float]:
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.05, weight_decay=5e-3), momentum=0.9)
    losses = []
    for step in steps:
        loss = model.pqk.loss(*batch(step))
        loss.backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(("fraction", "steps"), [(0.0, 2), (0.1, 2), (0.5, 8), (0.99, 15), (1.0, 16)])
def test_float_steps_are_a_share_of_phase_1_and_the_warm_up_at_least(fraction: float, steps: int) -> None:
    assert PQKConfig(total_steps=32, warmup_fraction=0.15, float_fraction=fraction).float_steps == steps


@pytest.mark.parametrize("wrong", [-0.1, 1.1, True, "1"])
def test_a_wrong_fraction_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="float_fraction: expected a number in"):
        PQKConfig(float_fraction=wrong)


def test_a_fraction_inside_the_warm_up_changes_nothing() -> None:
    one, other = (prepared(PQKConfig(**{**CONFIG.to_dict(), "float_fraction": f})) for f in (0.0, 0.15))
    assert train(one, range(20)) == train(other, range(20))


def test_the_float_network_is_pruned_along_the_cubic_schedule() -> None:
    model = prepared()
    sparsities, roles = [], []
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.05), momentum=0.9)
    for step in range(20):
        roles.append(model.pqk.student_role)
        model.pqk.loss(*batch(step)).backward()
        optimizer.step()
        model.pqk.step()
        sparsities.append(model.pqk.sparsity)
    assert roles == [Role.FLOAT] * 2 + [Role.PRUNED] * 14 + [Role.STUDENT] * 4
    count = sum(layer.weight.numel() for layer in model.pqk.prunable_layers())
    for step in range(2, 16, 2):  # ranked at even steps; the ramp goes from step 2 to step 12
        at = min(1.0, (step - 2) / 10)
        assert sparsities[step - 1] == pytest.approx(0.75 * (1 - (1 - at) ** 3), abs=1 / count)


def test_its_loss_is_that_of_a_plain_network_with_zeros() -> None:
    model = prepared()
    train(model, range(10))
    assert not model.pqk.quantizing
    assert 0.3 < model.pqk.sparsity < 0.75
    plain = network()
    plain.load_state_dict(model.float_state_dict())
    x, y = batch(77)
    expected = nn.functional.cross_entropy(plain.train()(x), y)
    expected.backward()
    loss = model.pqk.loss(x, y)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    gradients = dict(plain.named_parameters())
    for name, module in model.named_modules():
        if module in model.pqk.prunable_layers():
            gradient = gradients[f"{name}.weight"].grad
            assert gradient is not None
            torch.testing.assert_close(module.weight.grad, gradient * module.weight_mask, rtol=1e-4, atol=1e-6)


def test_pruned_weights_are_held_in_float_too() -> None:
    model = prepared()
    moved = 0
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.05, weight_decay=5e-3), momentum=0.9)
    for step in range(CONFIG.float_steps):
        masks = [layer.weight_mask.clone() for layer in model.pqk.prunable_layers()]
        before = [layer.weight.detach().clone() for layer in model.pqk.prunable_layers()]
        model.pqk.loss(*batch(step)).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
        for layer, mask, old in zip(model.pqk.prunable_layers(), masks, before, strict=True):
            assert torch.equal(layer.weight.detach()[~mask], old[~mask])
            moved += int((layer.weight.detach()[mask] != old[mask]).sum())
    assert moved > 0


def test_quantization_begins_with_the_scales_of_the_kept_weights_and_masks_stay() -> None:
    model = prepared()
    train(model, range(CONFIG.phase1_steps))
    assert model.pqk.quantizing
    assert model.pqk.phase == 2
    masks = [layer.weight_mask.clone() for layer in model.pqk.layers()]
    for layer in model.pqk.layers():
        expected = per_channel_scale(layer.weight, layer.weight_mask, layer.weight_quant_max)
        assert torch.equal(layer.weight_scale.detach(), expected)
    train(model, range(CONFIG.phase1_steps, CONFIG.total_steps))
    for layer, mask in zip(model.pqk.layers(), masks, strict=True):
        assert torch.equal(layer.weight_mask, mask)
        assert int(layer.student_weight().detach()[~mask].count_nonzero()) == 0


def test_ranges_are_those_of_the_pruned_network() -> None:
    """Calibration looks at what is deployed, not at the weights that were pruned away."""
    model = prepared(PQKConfig(**{**CONFIG.to_dict(), "phase1_fraction": 1.0}))
    train(model, range(CONFIG.total_steps))
    plain = network()
    plain.load_state_dict(model.float_state_dict())
    fresh = prepare(plain, CONFIG, example_inputs=batch(0)[0])
    batches = [batch(seed)[0] for seed in range(40, 44)]
    calibrate(model, batches)
    calibrate(fresh, batches)
    for got, expected in zip(model.pqk.quantizers(), fresh.pqk.quantizers(), strict=True):
        torch.testing.assert_close(got.scale, expected.scale, rtol=1e-6, atol=0)
        assert torch.equal(got.zero_point, expected.zero_point)


def test_a_network_that_was_only_pruned_in_float_is_exported(tmp_path: Path) -> None:
    model = prepared(PQKConfig(**{**CONFIG.to_dict(), "phase1_fraction": 1.0}))
    train(model, range(CONFIG.total_steps - 1))
    assert not model.pqk.quantizing
    train(model, range(CONFIG.total_steps - 1, CONFIG.total_steps))
    model.eval()
    export(model, tmp_path / "pruned.pqk")
    assert_parity(model, tmp_path / "pruned.pqk", batch(5)[0])


def test_a_resumed_state_goes_on_in_the_same_role() -> None:
    model = prepared()
    train(model, range(10))
    other = prepared()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert other.pqk.student_role is Role.PRUNED
    assert train(model, range(10, 20)) == train(other, range(10, 20))
