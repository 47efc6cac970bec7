"""Networks that were pruned before: ``PQKConfig(ranking="fixed")``, and pruning in one shot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pqk_ext.config import PQKConfig
from pqk_ext.deploy import assert_parity, export
from pqk_ext.preparation import PreparedModel, prepare

from .networks import SmallNet, batch

CONFIG = PQKConfig(
    sparsity=0.7, total_steps=12, mask_update_interval=2, warmup_fraction=0.0, phase1_fraction=1.0, ranking="per_layer"
)
FIXED = PQKConfig(**{**CONFIG.to_dict(), "ranking": "fixed", "sparsity": 0.2})


def pruned(**changes: object) -> tuple[nn.Module, PreparedModel]:
    """A float network with zeros, and the prepared one whose masks they come from."""
    torch.manual_seed(0)
    model = SmallNet()
    source = prepare(model, PQKConfig(**{**CONFIG.to_dict(), **changes}), example_inputs=batch(0)[0])
    source.pqk.update_masks(final=True)
    model.load_state_dict(source.float_state_dict())
    return model, source


def masks(model: PreparedModel) -> list[torch.Tensor]:
    return [layer.weight_mask.clone() for layer in model.pqk.layers()]


def train(model: PreparedModel) -> None:
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.05, weight_decay=5e-3), momentum=0.9)
    for step in range(model.pqk.config.total_steps):
        model.pqk.loss(*batch(step)).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()


def test_one_shot_goes_to_the_final_sparsity_of_each_layer_at_once() -> None:
    _, source = pruned(layers={"conv2": {"sparsity": 0.5}})
    assert source.pqk.global_step == 0
    for layer, share in ((source.conv1, 0.7), (source.conv2, 0.5)):
        kept = round((1 - share) * layer.weight.numel())
        assert abs(int(layer.weight_mask.sum()) - kept) <= 1
        threshold = layer.weight.detach().abs()[layer.weight_mask].min()
        assert (layer.weight.detach().abs()[~layer.weight_mask] <= threshold).all()
    assert bool(source.fc.weight_mask.all())


@pytest.mark.parametrize("granularity", ["unstructured", "1x4", "filter"])
@pytest.mark.parametrize("phase1", [1.0, 0.5])
def test_zeros_are_the_masks_and_stay(granularity: str, phase1: float, tmp_path: Path) -> None:
    model, source = pruned(granularity=granularity)
    config = PQKConfig(**{**FIXED.to_dict(), "granularity": granularity, "phase1_fraction": phase1, "teacher": False})
    fixed = prepare(model, config, example_inputs=batch(0)[0])
    before = masks(fixed)
    for mask, expected in zip(before, masks(source), strict=True):
        assert torch.equal(mask, expected)
    assert fixed.pqk.sparsity == fixed.pqk.final_sparsity == source.pqk.sparsity > 0.5
    for own, other in zip(fixed.pqk.layers(), source.pqk.layers(), strict=True):
        other.initialize_scale()
        assert torch.equal(own.weight_scale, other.weight_scale)
    weights = [layer.weight.detach().clone() for layer in fixed.pqk.layers()]
    train(fixed)
    for layer, mask, old in zip(fixed.pqk.layers(), before, weights, strict=True):
        assert torch.equal(layer.weight_mask, mask)
        assert not bool(layer.weight.detach()[~mask].any())
        assert bool((layer.weight.detach()[mask] != old[mask]).any())
    fixed.eval()
    export(fixed, tmp_path / "fixed.pqk")
    assert_parity(fixed, tmp_path / "fixed.pqk", batch(3)[0])


def test_zeros_of_layers_that_are_not_to_be_pruned_are_weights_like_others() -> None:
    model, _ = pruned()
    fixed = prepare(model, FIXED, example_inputs=batch(0)[0], exclude=["conv2"])
    assert bool(fixed.conv2.weight_mask.all())
    assert not bool(fixed.conv1.weight_mask.all())


def test_ranking_again_changes_nothing() -> None:
    model, _ = pruned()
    fixed = prepare(model, FIXED, example_inputs=batch(0)[0])
    before = masks(fixed)
    with torch.no_grad():
        fixed.conv1.weight.copy_(torch.randn_like(fixed.conv1.weight))
    fixed.pqk.update_masks()
    fixed.pqk.update_masks(final=True)
    assert all(torch.equal(a, b) for a, b in zip(before, masks(fixed), strict=True))
