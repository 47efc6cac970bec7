"""Pseudo quantization noise on the nested grid: its equations, its sizes, and what whole bits make of them."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pqk_ext.deploy.lower import weight_codes
from pqk_ext.nn import PQKLayer
from pqk_ext.nn.noisy_weight import RANGES, NoisyWeight
from pqk_ext.nn.weight_grid import bits_of_groups

from ..test_entropy import entropy
from ..test_phases import CONFIG, prepared, trained


def noisy(layer: PQKLayer, bits: Tensor | float | None = None, **settings: object) -> NoisyWeight:
    """With random bits, or those."""
    torch.manual_seed(0)
    weight = NoisyWeight([layer], **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        if bits is None:
            weight.logits.normal_()
        else:
            share = (torch.as_tensor(bits) - weight.min_bits) / (weight.max_bits - weight.min_bits)
            weight.logits.copy_(torch.logit(share.expand(weight.logits.shape)))
    weight.draw()
    return weight


def pruned_layer() -> PQKLayer:
    return trained(steps=24).pqk.layers()[1]


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
@pytest.mark.parametrize("range", RANGES)
def test_value_and_gradients_are_those_of_the_equations(kind: str, range: str) -> None:
    layer = pruned_layer()
    weight = noisy(layer, kind=kind, range=range)
    with torch.no_grad():
        layer.weight_scale.mul_(0.6)  # so that weights lie beyond the reach of their bits
    upstream = torch.randn_like(layer.weight)
    value = weight()
    parameters = [layer.weight, weight.logits] + ([layer.weight_scale] if range == "learned" else [])
    ours = torch.autograd.grad((value * upstream).sum(), parameters)

    mask = layer.weight_mask
    w, logits, own = (p.detach().double().requires_grad_() for p in (layer.weight, weight.logits, layer.weight_scale))
    largest = (w.abs() * mask).flatten(1).amax(1)
    scale = {
        "fitted": own.detach(),
        "learned": own,
        "channel": largest / 127,
        "tensor": (largest.max() / 127).expand(8),
    }[range]
    b = bits_of_groups(2 + 6 * torch.sigmoid(logits), w.shape, 8)
    s, step = scale.view(-1, 1, 1, 1), 2 ** (8 - b)
    u, reach = w / s, 128 - step
    inside = (u.abs() <= reach).detach()
    codes = torch.where(inside, u, u.sign().detach() * reach)
    expected = torch.where(mask, s * (codes + step * weight._eps), 0.0)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)  # it is computed in float32
    assert not value[~mask].any()
    if range in ("fitted", "learned"):
        assert (~inside & mask).any()
    theirs = list(torch.autograd.grad((expected * upstream).sum(), [w, logits] + ([own] if range == "learned" else [])))
    if range == "learned":
        theirs[2] = theirs[2] / math.sqrt(w[0].numel() * 127)
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-3, atol=1e-4)
    assert not ours[0][~mask].any()


def test_noise_of_whole_bits_has_the_variance_of_rounding() -> None:
    for bits in (3, 4, 6):
        layer = trained(steps=24).pqk.layers()[1]
        layer.weight_mask.fill_(True)
        with torch.no_grad():
            layer.weight.uniform_(-0.5, 0.5)
        weight = noisy(layer, float(bits), kind="uniform", range="channel")
        weight.settle()
        made, errors = [], []
        for seed in range(60):
            torch.manual_seed(seed)
            with torch.no_grad():
                layer.weight.uniform_(-0.5, 0.5)
                weight.draw()
                weight.settle()
                reach = (128 - 2 ** (8 - bits)) * layer.weight_scale.view(-1, 1, 1, 1)
                within = layer.weight.abs() < reach
                made.append((weight() - layer.weight)[within])
                errors.append((layer.student_weight() - layer.weight)[within])
        ratio = torch.cat(made).var() / torch.cat(errors).var()
        assert float(ratio) == pytest.approx(1, abs=0.05)


def test_settling_gives_the_layer_whole_bits_and_evaluation_goes_by_them() -> None:
    model = prepared(CONFIG.from_dict({**CONFIG.to_dict(), "warmup_fraction": 0.0}))
    layer = model.pqk.layers()[1]
    weight = noisy(layer, range="tensor")
    weight.attach(True)
    drawn = layer.student_weight()
    assert torch.equal(drawn, layer.student_weight())  # the same noise until the next draw
    weight.draw()
    assert not torch.equal(drawn, layer.student_weight())
    weight.settle()
    bits = bits_of_groups(weight.bits().detach().round().to(torch.uint8), layer.weight.shape, 8)
    assert layer.weight_bits is not None
    assert torch.equal(layer.weight_bits, bits)
    assert float(layer.weight_scale.detach().max()) == pytest.approx(float(layer.weight.detach().abs().max()) / 127)
    model.eval()
    codes = torch.from_numpy(weight_codes(layer)).int()
    step = torch.bitwise_left_shift(torch.ones_like(codes), 8 - bits.int())
    assert not (codes % step).any()
    assert torch.equal(layer.student_weight(), codes * layer.weight_scale.view(-1, 1, 1, 1))
    weight.attach(False)
    assert layer.noisy_weight is None
    assert "noisy_weight" not in "".join(model.state_dict())


def test_copies_have_noise_of_their_own() -> None:
    model = prepared()
    layer = model.pqk.layers()[1]
    weight = noisy(layer)
    weight.attach(True)
    other = copy.deepcopy(model).pqk.layers()[1]
    with torch.no_grad():
        layer.weight.zero_()
    assert other.noisy_weight is not weight
    assert not torch.equal(other.student_weight(), layer.student_weight())


def test_size_counts_unpruned_weights_and_the_overhead_of_groups() -> None:
    layer = pruned_layer()
    weight = noisy(layer)
    groups = weight.logits.numel()
    assert groups == 8 * 8 * 9 // 8
    kept = torch.nn.functional.pad(layer.weight_mask.flatten().float(), (0, 0)).view(groups, 8).sum(1)
    width = math.ceil(math.log2(1 + round(float(weight.bits().max().detach())) - 2))
    size = weight.size_bits()
    assert float(size.detach()) == pytest.approx(float((kept * weight.bits().detach()).sum()) + 72 + width * groups)
    (gradient,) = torch.autograd.grad(size, weight.logits)
    share = torch.sigmoid(weight.logits.detach())
    torch.testing.assert_close(gradient, kept * 6 * share * (1 - share))


def test_coded_size_is_the_entropy_of_the_codes_in_the_file() -> None:
    layer = pruned_layer()
    sizes = []
    for bits in (3, 5):
        weight = noisy(layer, float(bits))
        weight.settle()
        counts = np.unique(weight_codes(layer), return_counts=True)[1]
        sizes.append(float(weight.coded_bits().detach()))
        assert sizes[-1] == pytest.approx(layer.weight.numel() * entropy(counts), rel=1e-3)
    middle = noisy(layer, 4.0)
    with torch.no_grad():
        layer.weight_scale.copy_(noisy(layer, 5.0).scale())
    assert sizes[0] < float(middle.coded_bits().detach()) < sizes[1]


def test_the_coded_size_grows_with_the_bits_of_every_group_that_has_weights() -> None:
    layer = pruned_layer()
    with torch.no_grad():
        layer.weight_mask[0, 0] = False
    weight = noisy(layer, group_size=9)
    (gradient,) = torch.autograd.grad(weight.coded_bits(), weight.logits)
    kept = layer.weight_mask.view(-1, 9).any(1)
    assert not kept.all()
    assert not gradient[~kept].any()
    assert float((gradient[kept] > 0).float().mean()) > 0.8
    before, size = weight.logits.detach().clone(), []
    for sign in (-1, 1):
        with torch.no_grad():
            weight.logits.copy_(before + sign * 1e-2 * gradient / gradient.norm())
            size.append(float(weight.coded_bits()))
    assert (size[1] - size[0]) / 2e-2 == pytest.approx(float(gradient.norm()), rel=0.05)


def test_groups_of_any_size() -> None:
    layer = prepared().pqk.layers()[0]  # 8 x 27 weights
    for size, groups in ((1, 216), (8, 27), (16, 14), (0, 1)):
        assert noisy(layer, group_size=size).logits.shape == (groups,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_bits": 1}, "expected 2 <= min_bits < max_bits <= 8, the layer's, got 1 and 8"),
        ({"max_bits": 9}, "got 2 and 9"),
        ({"initial_bits": 8.0}, r"bits: expected a number in \(2, 8\), got 8.0"),
        ({"range": "row"}, "range: expected one of fitted, learned, channel, tensor, got 'row'"),
        ({"kind": "laplace"}, "noise: expected 'gaussian' or 'uniform', got 'laplace'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoisyWeight([prepared().pqk.layers()[0]], **settings)  # type: ignore[arg-type]
