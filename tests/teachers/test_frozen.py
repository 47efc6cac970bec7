"""A frozen float teacher says what its network says, and learns nothing."""

from __future__ import annotations

import torch

from pqk_ext.teachers import FloatTeacher
from tests.networks import SmallNet, batch, enliven


def test_it_gives_the_networks_logits_and_features_without_gradients() -> None:
    torch.manual_seed(0)
    x, _ = batch(1)
    model = enliven(SmallNet(), x)
    teacher = FloatTeacher(model, x[:1], taps=["bn1"])
    logits, (feature,) = teacher(x, 7)
    # The teacher works in another memory format, whose convolutions may sum in another order.
    torch.testing.assert_close(logits, model(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(feature, torch.relu(model.bn1(model.conv1(x))), rtol=1e-5, atol=1e-5)
    assert not logits.requires_grad
    assert not feature.requires_grad
    assert teacher.feature_shapes == ((8, 8, 8),)


def test_it_is_a_copy_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    x, _ = batch(1)
    model = enliven(SmallNet(), x).train()
    teacher = FloatTeacher(model, x[:1])
    first = teacher(x).logits
    assert model.training
    with torch.no_grad():
        model.fc.weight.zero_()
    assert torch.equal(teacher(x, 1).logits, first)


def test_under_autocast_it_says_what_its_network_says_there_in_float32() -> None:
    torch.manual_seed(0)
    x, _ = batch(1)
    model = enliven(SmallNet(), x)
    teacher = FloatTeacher(model, x[:1], taps=["bn1"], autocast=torch.bfloat16)
    logits, (feature,) = teacher(x)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
    assert expected.dtype == torch.bfloat16
    assert logits.dtype == feature.dtype == torch.float32
    torch.testing.assert_close(logits, expected.float(), rtol=2e-2, atol=2e-2)
    assert not torch.equal(logits, FloatTeacher(model, x[:1])(x).logits)
    assert not torch.is_autocast_enabled("cpu")
