"""Values from inside a prepared network, compared with hooks on the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pqk_ext
from pqk_ext import models
from pqk_ext.nn import Role
from pqk_ext.preparation import find_taps, stage_outputs
from tests.networks import SmallNet, batch, enliven


def prepared(model: nn.Module, x: Tensor) -> pqk_ext.preparation.PreparedModel:
    return pqk_ext.prepare(model, pqk_ext.PQKConfig(total_steps=10, warmup_fraction=0), example_inputs=x)


@pytest.fixture
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return enliven(models.create("resnet8"), torch.randn(8, 3, 32, 32))


def test_features_of_the_float_network_are_those_of_its_modules(resnet: nn.Module) -> None:
    x = torch.randn(4, 3, 32, 32)
    seen: list[Tensor] = []
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3):
        stage.register_forward_hook(lambda module, inputs, output: seen.append(output))
    expected = resnet(x)
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3):
        stage._forward_hooks.clear()
    model = prepared(resnet, x).eval()
    logits, features = model.run(x, Role.FLOAT, taps=find_taps(model, ["layer1", "layer2", "layer3"]))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert [f.shape[1] for f in features] == [16, 32, 64]
    for feature, value in zip(features, seen, strict=True):
        torch.testing.assert_close(feature, value, rtol=1e-5, atol=1e-5)


def test_values_before_the_activation_give_those_after_it(resnet: nn.Module) -> None:
    x = torch.randn(4, 3, 32, 32)
    model = prepared(resnet, x).eval()
    names = ["bn1", "layer1", "layer3"]
    after = model.run(x, Role.FLOAT, taps=find_taps(model, names)).features
    before = model.run(x, Role.FLOAT, taps=find_taps(model, names, before_activation=True)).features
    for low, high in zip(before, after, strict=True):
        assert (low < 0).any()
        assert torch.equal(torch.relu(low), high)


def test_taps_change_neither_the_student_nor_its_gradients() -> None:
    x, y = batch(0)
    model = prepared(SmallNet(), x)
    model.dropout.p = 0.0
    results = []
    for taps in ((), find_taps(model, ["bn1"]), find_taps(model, ["bn1", "bn2"], before_activation=True)):
        model.zero_grad()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        logits, features = model.run(x, Role.STUDENT, taps=taps)
        assert len(features) == len(taps)
        nn.functional.cross_entropy(logits, y).backward()
        results.append((logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        model.load_state_dict(state)
    for logits, gradients in results[1:]:
        torch.testing.assert_close(logits, results[0][0], rtol=1e-4, atol=1e-4)
        for gradient, expected in zip(gradients, results[0][1], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-3)


def test_the_students_features_are_on_the_grid_of_their_quantizer() -> None:
    x, _ = batch(0)
    model = prepared(SmallNet(), x)
    (tap,) = find_taps(model, ["bn1"])
    (feature,) = model.run(x, Role.STUDENT, taps=(tap,)).features
    scale = model.pqk_quantizers[model.plan[tap.block].quantizer].scale
    codes = feature / scale
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)


def test_gradients_reach_the_network_through_features() -> None:
    x, _ = batch(0)
    model = prepared(SmallNet(), x)
    for before in (False, True):
        model.zero_grad()
        model.run(x, Role.STUDENT, taps=find_taps(model, ["bn1"], before_activation=before)).features[
            0
        ].sum().backward()
        assert model.conv1.weight.grad is not None
        assert model.conv2.weight.grad is None
        assert torch.count_nonzero(model.conv1.weight.grad) > 0


def test_stage_outputs_are_the_last_values_of_each_resolution(resnet: nn.Module) -> None:
    x = torch.randn(2, 3, 32, 32)
    model = prepared(resnet, x)
    assert stage_outputs(model) == find_taps(model, ["layer1", "layer2", "layer3"])
    assert all(tap.before_activation for tap in stage_outputs(model, before_activation=True))


def test_a_name_without_layers_is_refused(resnet: nn.Module) -> None:
    model = prepared(resnet, torch.randn(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"names: no layer of the network lies in 'layer4'; its layers: conv1, bn1"):
        find_taps(model, ["layer4"])
