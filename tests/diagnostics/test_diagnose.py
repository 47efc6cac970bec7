"""Diagnoses against numpy and against the network itself, and that they change nothing."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pqk_ext
from pqk_ext import diagnostics as D
from pqk_ext import models
from pqk_ext.nn import ActivationQuantizer, PQKConv2d, PQKConvTranspose2d, Role
from pqk_ext.preparation import PreparedModel
from tests.networks import SmallNet, batch

# Warm-up of 1 step, phase 2 from step 4.
CONFIG = pqk_ext.PQKConfig(
    sparsity=0.6, weight_bits=4, act_bits=6, total_steps=8, warmup_fraction=0.25, mask_update_interval=1
)


def prepared(config: pqk_ext.PQKConfig = CONFIG) -> PreparedModel:
    torch.manual_seed(0)
    return pqk_ext.prepare(SmallNet(), config, example_inputs=batch(0)[0])


def train(model: PreparedModel, steps: int, between: Callable[[], Any] = lambda: None) -> PreparedModel:
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.05), momentum=0.9)
    for step in range(steps):
        loss = model.pqk.loss(*batch(step))
        loss.backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
        between()
    return model


def evaluation(model: PreparedModel) -> PreparedModel:
    """A copy whose modules are in evaluation mode, without what ``eval()`` does to a prepared model."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.training = False
    return model


def numpy_sqnr(signal: Tensor, approximation: Tensor) -> float:
    s, a = (t.detach().double().numpy() for t in (signal, approximation))
    return float(10 * np.log10((s**2).sum() / ((s - a) ** 2).sum()))


def test_sqnr() -> None:
    signal = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    other = signal + 0.01 * torch.randn(1000, generator=torch.Generator().manual_seed(2))
    assert D.sqnr_db(signal, other) == pytest.approx(numpy_sqnr(signal, other), abs=1e-4)
    assert D.sqnr_db(torch.tensor([10.0]), torch.tensor([9.0])) == pytest.approx(20)
    assert D.sqnr_db(signal, signal) == math.inf
    assert D.sqnr_db(torch.zeros(3), torch.ones(3)) == -math.inf
    assert math.isnan(D.sqnr_db(torch.tensor([math.nan]), torch.zeros(1)))
    assert D.sqnr_db(torch.zeros(0), torch.zeros(0)) == math.inf
    with pytest.raises(ValueError, match=r"approximation: expected the signal's shape \(3,\), got \(3, 1\)"):
        D.sqnr_db(torch.zeros(3), torch.zeros(3, 1))


def test_counts_and_entropy() -> None:
    codes = torch.tensor([-3.0, -3, 0, 2, 7, math.nan])
    assert D.code_counts(codes, -3, 3).tolist() == [2, 0, 0, 1, 0, 1, 0]
    assert D.entropy_bits(torch.tensor([4, 0, 4, 8])) == pytest.approx(1.5)
    assert D.entropy_bits(torch.tensor([9, 0])) == 0
    assert D.entropy_bits(D.code_counts(torch.zeros(0), 0, 3)) == 0


def test_a_layer_by_hand() -> None:
    source = nn.Conv2d(2, 3, 1)
    with torch.no_grad():
        source.weight.copy_(torch.tensor([[4.2, -9.0], [0.2, 5.0], [1.0, 2.0]])[:, :, None, None])
    layer = PQKConv2d(source, 4, True, CONFIG)
    layer.weight_mask[2] = False
    layer.weight_mask[1, 1] = False
    with torch.no_grad():
        layer.weight_scale.copy_(torch.tensor([1.0, 0.5, 2.0]))
    found = D.diagnose_layer(layer, name="a", start=torch.tensor([1.0, 1.0, 1.0]))
    assert D.weight_codes(layer).flatten().tolist() == [4, -7, 0, 0, 0, 0]
    expected = D.LayerDiagnosis(
        name="a",
        op="conv2d",
        shape=(3, 2, 1, 1),
        bits=4,
        prunable=True,
        sqnr_db=10 * math.log10((4.2**2 + 81 + 0.04) / (0.04 + 4 + 0.04)),
        sparsity=0.5,
        rounded_to_zero=1 / 6,
        min=-9.0,
        max=4.2,
        clipped_low=1 / 3,
        clipped_high=0.0,
        scale_min=0.5,
        scale_median=1.0,
        scale_max=2.0,
        drift=1.0,
        drift_min=0.5,
        drift_max=2.0,
        used_codes=3 / 15,
        entropy_bits=math.log2(3),
        dead_channels=2,
        first_dead_channels=(1, 2),
    )
    for field in dataclasses.fields(expected):
        got, want = getattr(found, field.name), getattr(expected, field.name)
        assert got == (pytest.approx(want, rel=1e-5) if isinstance(want, float) else want), field.name


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution(groups: int) -> None:
    torch.manual_seed(0)
    layer = PQKConvTranspose2d(nn.ConvTranspose2d(4, 6, 3, groups=groups), 4, True, CONFIG)
    with torch.no_grad():
        mask = layer.by_channel(layer.weight_mask).clone()
        mask[2] = False
        layer.weight_mask.copy_(layer.from_channels(mask))
    found = D.diagnose_layer(layer)
    assert (found.op, found.shape) == ("conv_transpose2d", (6, 4 // groups, 3, 3))
    assert (found.dead_channels, found.first_dead_channels) == (1, (2,))
    assert found.sparsity == pytest.approx(1 / 6)
    kept = torch.where(layer.weight_mask, layer.weight, 0.0)
    assert found.sqnr_db == pytest.approx(numpy_sqnr(kept, layer.student_weight()), abs=1e-3)
    assert 15 < found.sqnr_db < 25
    codes = D.weight_codes(layer)
    assert torch.equal(codes, codes.round())
    assert float(codes.abs().max()) == 7


def test_an_activation_by_hand() -> None:
    quantizer = ActivationQuantizer(3, nonnegative=False)
    quantizer.zero_point.fill_(2)
    with torch.no_grad():
        quantizer.scale.fill_(0.5)
    value = torch.tensor([[[0.1, -0.2], [-1.0, -3.0]], [[0.0, 0.2], [1.0, 9.0]]]).transpose(0, 1)
    with torch.no_grad():
        output = quantizer(value)
    # Codes stand for -1 to 2.5: of 8 values -3 lies below and 9 above.
    assert output[:, 0].flatten().tolist() == [0.0, 0.0, -1.0, -1.0]
    found = D.diagnose_activation(quantizer, value, output, value + 1, start=torch.tensor(0.25))
    assert (found.range_min, found.range_max, found.min, found.max) == (-1.0, 2.5, -3.0, 9.0)
    assert (found.clipped_low, found.clipped_high) == (1 / 8, 1 / 8)
    assert (found.bits, found.scale, found.zero_point, found.drift) == (3, 0.5, 2, 2.0)
    assert found.used_codes == 4 / 8  # codes 0, 2, 4 and 7: 2, 4, 1 and 1 times
    assert found.entropy_bits == pytest.approx(1.75)
    assert found.sqnr_db == pytest.approx(numpy_sqnr(value, output), abs=1e-4)
    assert found.accumulated_sqnr_db == pytest.approx(numpy_sqnr(value + 1, output), abs=1e-4)
    assert (found.channels, found.zero_channels, found.constant_channels) == (2, 0, 0)
    dead = torch.zeros(2, 3, 4)
    dead[:, 1] = 0.5
    dead[0, 2, 0] = 1
    found = D.diagnose_activation(quantizer, dead, dead, dead)
    assert (found.zero_channels, found.constant_channels, found.first_constant_channels) == (1, 2, (0, 1))
    assert found.sqnr_db == math.inf


@pytest.mark.parametrize("steps", [0, 3, 6], ids=["warm-up", "phase 1", "phase 2"])
def test_walk_computes_what_run_computes(steps: int) -> None:
    model = train(prepared(), steps)
    x, _ = batch(9)
    still = evaluation(model)
    with D.undisturbed(model):
        for role in Role:
            assert torch.equal(D.logits(model, x, role), still.run(x, role)), role
        # Float parts replaced one by one end at the student.
        every = set(model.pqk_quantizers)
        mixed = D.logits(model, x, Role.FLOAT, weights=D.quantized_weights(model), quantize=every)
        assert torch.equal(mixed, D.logits(model, x, Role.STUDENT))
        one = D.logits(model, x, Role.FLOAT, weights={"conv2": D.quantized_weights(model)["conv2"]})
        still.get_submodule("conv2").weight.data.copy_(D.quantized_weights(model)["conv2"])
        assert torch.equal(one, still.run(x, Role.FLOAT))
        with pytest.raises(KeyError, match="conv9"):
            D.logits(model, x, Role.FLOAT, weights={"conv9": x})


@pytest.mark.parametrize("steps", [2, 6], ids=["phase 1", "phase 2"])
def test_the_whole_diagnosis(steps: int) -> None:
    model = prepared()
    start: dict[str, Tensor] = {}

    def remember() -> None:
        if model.pqk.quantizing and not start:
            start.update(D.step_sizes(model))

    train(model, steps, remember)
    x, y = batch(9)
    found = D.diagnose(model, x, y, start=start)
    still = evaluation(model)
    student, dense, teacher = (still.run(x, role) for role in (Role.STUDENT, Role.FLOAT, Role.TEACHER))
    for name, weight in D.important_weights(model).items():
        assert bool((weight[~still.get_submodule(name).weight_mask] == 0).all())
        still.get_submodule(name).weight.data.copy_(weight)
    assert found.logits_sqnr_db == pytest.approx(numpy_sqnr(still.run(x, Role.FLOAT), student), abs=1e-3)
    assert (found.step, found.samples, found.sparsity) == (steps, 16, model.pqk.sparsity)
    assert found.quantizing
    assert [layer.name for layer in found.layers] == ["conv1", "conv2", "fc"]
    assert [layer.bits for layer in found.layers] == [8, 4, 8]
    assert [a.name for a in found.activations] == list(model.pqk_quantizers)
    assert all(a.bits == 6 for a in found.activations[1:])
    for layer in found.layers:
        scale = model.get_submodule(layer.name).weight_scale.detach()
        assert layer.drift_max == pytest.approx(float((scale / start[f"{layer.name}.weight_scale"]).max()))
    # Noise adds up along the network, but each quantizer alone adds some too.
    assert all(a.sqnr_db > 5 for a in found.activations)
    assert found.activations[-1].accumulated_sqnr_db < found.activations[0].accumulated_sqnr_db
    if steps == 2:
        assert found.phase == 1
        assert found.agreement is None
        assert found.dense_logits_sqnr_db == pytest.approx(numpy_sqnr(dense, student), abs=1e-3)
        assert found.dense_logits_sqnr_db < found.logits_sqnr_db
        return
    assert found.phase == 2
    assert found.dense_logits_sqnr_db is None
    assert found.agreement is not None
    assert found.agreement.same_class == float((student.argmax(1) == teacher.argmax(1)).double().mean())
    assert found.agreement.student_accuracy == float((student.argmax(1) == y).double().mean())
    assert found.agreement.teacher_accuracy == float((teacher.argmax(1) == y).double().mean())
    soft = [F.log_softmax(logits.detach() / 2, 1) for logits in (teacher, student)]
    expected = 4 * float((soft[0].exp() * (soft[0] - soft[1])).sum(1).mean())
    assert found.agreement.kl == pytest.approx(expected, rel=1e-4)
    assert D.diagnose(model, x).agreement == dataclasses.replace(
        found.agreement, student_accuracy=None, teacher_accuracy=None
    )


def test_more_bits_lose_less() -> None:
    by_bits = []
    for bits in (2, 4, 8):
        config = dataclasses.replace(CONFIG, weight_bits=bits, act_bits=8, first_layer_bits=bits)
        by_bits.append(D.diagnose(train(prepared(config), 2), batch(9)[0]))
    for less, more in itertools.pairwise(by_bits):
        assert more.layers[1].sqnr_db > less.layers[1].sqnr_db + 6
        assert more.logits_sqnr_db > less.logits_sqnr_db
    assert 30 < by_bits[2].layers[1].sqnr_db < 60


def test_a_diagnosis_changes_nothing() -> None:
    plain = train(prepared(), 8)
    model = prepared()
    x, y = batch(9)
    seen = []

    def between() -> None:
        model.dropout.training = False
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modes = {name: module.training for name, module in model.named_modules()}
        seen.append(D.diagnose(model, x, y))
        assert seen[-1] == D.diagnose(model, x, y)
        assert {name: module.training for name, module in model.named_modules()} == modes
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1] == random.getstate()
        assert bool((states[2] == np.random.get_state()[1]).all())
        assert all(p.grad is None for p in model.parameters())
        model.dropout.training = True

    train(model, 8, between)
    assert [d.quantizing for d in seen] == [True] * 8
    assert [d.phase for d in seen] == [1, 1, 1, 2, 2, 2, 2, 2]
    expected = plain.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_the_model_is_as_before_after_an_error() -> None:
    model = prepared()
    with pytest.raises(RuntimeError):
        D.diagnose(model, torch.zeros(2, 4, 8, 8))
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("name", "shape"), [("ds_cnn", (1, 49, 10)), ("resnet20", (3, 32, 32))])
def test_networks_of_the_zoo(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, *shape)
    model = pqk_ext.prepare(models.create(name), pqk_ext.PQKConfig(warmup_fraction=0), example_inputs=x)
    found = D.diagnose(model, x, start=D.step_sizes(model))
    assert [layer.name for layer in found.layers] == [b.module for b in model.plan if b.op in ("conv2d", "linear")]
    assert all(layer.drift == 1 and layer.sparsity == 0 for layer in found.layers)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text) == found.to_dict()


def test_json_has_no_infinities() -> None:
    model = train(prepared(), 2)
    with torch.no_grad():
        model.conv2.weight.zero_()
    found = D.diagnose(model, batch(9)[0])
    assert found.layers[1].sqnr_db == math.inf
    assert found.layers[1].dead_channels == 8
    assert found.to_dict()["layers"][1]["sqnr_db"] is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_gradient_norms() -> None:
    model = prepared()
    assert D.gradient_norms(model) == {}
    model.pqk.loss(*batch(0)).backward()
    norms = D.gradient_norms(model)
    assert norms["fc.weight"] == pytest.approx(float(model.fc.weight.grad.norm()))
    assert "conv1.weight_scale" not in norms  # warm-up: no quantization yet


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"model: expected one made by pqk_ext\.prepare, got SmallNet"):
        D.diagnose(SmallNet(), batch(0)[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x: expected a batch of at least one sample"):
        D.diagnose(prepared(), torch.zeros(0, 3, 8, 8))
