"""Bits by output channel and by weight: values, gradients, sizes, states, and the file."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pqk_ext import PQKConfig, coded_size, prepare, runtime
from pqk_ext.deploy import export
from pqk_ext.deploy.lower import weight_codes
from pqk_ext.deploy.parity import assert_parity
from pqk_ext.diagnostics.weights import diagnose_layer
from pqk_ext.entropy import coded_sizes
from pqk_ext.nn import PQKLayer
from pqk_ext.nn.weight_grid import bits_of_groups, steps_and_limits
from pqk_ext.preparation import PreparedModel
from pqk_ext.sensitivity.measure import set_layer

from ..networks import batch
from ..test_entropy import entropy
from ..test_phases import CONFIG, STEPS, optimizer_of, prepared, train_step, trained

MODES = ("channel", "weight")


def random_bits(layer: PQKLayer, mode: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = layer.by_channel(layer.weight).shape
    if mode == "channel":
        return torch.randint(2, 9, shape[:1], generator=generator)
    groups = torch.randint(2, 9, (-(-shape.numel() // 8),), generator=generator)
    return bits_of_groups(groups, shape, 8)


def with_grid(mode: str, model: PreparedModel) -> PreparedModel:
    for seed, layer in enumerate(model.pqk.layers()):
        layer.set_weight_bits(random_bits(layer, mode, seed))
    return model


def expected_codes(weight: float, scale: float, bits: int, mode: str) -> int:
    """One weight in plain Python."""
    step = 1 if mode == "channel" else 2 ** (8 - bits)
    limit = 2 ** (bits - 1) - 1
    inv_scale = np.float32(1) / np.float32(scale)
    ratio = float(np.float32(weight) * inv_scale) / step
    return max(-limit, min(limit, round(ratio))) * step  # Python's round is half to even


@pytest.mark.parametrize("mode", MODES)
def test_codes_by_the_definition(mode: str) -> None:
    model = with_grid(mode, trained(steps=20))
    for layer in model.pqk.layers():
        bits = layer.weight_bits
        assert bits is not None
        wide = bits.view(-1, *[1] * (layer.weight.dim() - 1)).expand(layer.weight.shape) if bits.dim() == 1 else bits
        scale = layer.scale_of_weights()
        rows = zip(*(t.flatten().tolist() for t in (layer.weight, scale, wide, layer.weight_mask)), strict=True)
        expected = [expected_codes(w, s, b, mode) if keep else 0 for w, s, b, keep in rows]
        assert layer.weight_codes().flatten().tolist() == expected
        assert weight_codes(layer).reshape(-1).tolist() == expected
        assert torch.equal(layer.student_weight(), layer.from_channels(layer.weight_codes()) * scale)
        assert len(set(expected)) > 8


def plain_student(weight: Tensor, scale: Tensor, bits: Tensor, mask: Tensor) -> Tensor:
    """In torch's own operators: straight-through rounding by detaching, clamping by torch.clamp."""
    spread = [-1, *[1] * (weight.dim() - 1)]
    step, limit = torch.ones(()), 2.0 ** (bits.double().view(spread) - 1) - 1
    if bits.dim() > 1:
        step, limit = 2.0 ** (8 - bits.double()), 2.0 ** (bits.double() - 1) - 1
    u = weight / (scale.view(spread) * step)
    codes = u + (u.round() - u).detach()
    codes = torch.where(codes.detach().abs() <= limit, codes, torch.sign(u.detach()) * limit)
    return torch.where(mask, codes * step * scale.view(spread), 0.0)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_equal_torch_s_autograd(mode: str) -> None:
    model = with_grid(mode, trained(steps=24))
    torch.manual_seed(0)
    for layer in model.pqk.layers():
        assert layer.weight_bits is not None
        with torch.no_grad():
            layer.weight_scale.mul_(0.7)  # so that many weights lie beyond their limit
        direction = torch.randn_like(layer.weight)
        ours = torch.autograd.grad((layer.student_weight() * direction).sum(), (layer.weight, layer.weight_scale))
        weight, scale = (p.detach().double().requires_grad_() for p in (layer.weight, layer.weight_scale))
        student = plain_student(weight, scale, layer.weight_bits, layer.weight_mask)
        theirs = torch.autograd.grad((student * direction).sum(), (weight, scale))
        limits = 2.0 ** (layer.weight_bits.double() - 1) - 1 if mode == "channel" else torch.tensor(127.0).double()
        factor = (limits * layer.weight[0].numel()).rsqrt()
        torch.testing.assert_close(ours[0].double(), theirs[0])
        torch.testing.assert_close(ours[1].double(), theirs[1] * factor, rtol=1e-3, atol=1e-4)
        assert not ours[0][~layer.weight_mask].any()
        assert ours[0].any()


@pytest.mark.parametrize("mode", MODES)
def test_eight_bits_everywhere_is_the_plain_layer(mode: str) -> None:
    plain = trained(steps=24)
    other = copy.deepcopy(plain)
    for layer in other.pqk.layers():
        shape = layer.weight.shape
        layer.set_weight_bits(torch.full(shape[:1] if mode == "channel" else shape, 8), keep_scale=True)
    for a, b in zip(plain.pqk.layers(), other.pqk.layers(), strict=True):
        assert torch.equal(a.student_weight(), b.student_weight())
        assert torch.equal(a.weight_histogram(), b.weight_histogram())
        direction = torch.randn_like(a.weight)
        first, second = (
            torch.autograd.grad((m.student_weight() * direction).sum(), (m.weight, m.weight_scale)) for m in (a, b)
        )
        assert torch.equal(first[0], second[0])
        torch.testing.assert_close(first[1], second[1], rtol=1e-3, atol=1e-5)
    assert coded_size(plain).item() == pytest.approx(coded_size(other).item(), rel=1e-6)
    x, _ = batch(5)
    assert torch.equal(plain.eval()(x), other.eval()(x))


@pytest.mark.parametrize("mode", MODES)
def test_training_goes_on_and_the_file_has_the_same_bits(mode: str, tmp_path: Path, isa: str) -> None:
    model = trained(steps=24)
    with_grid(mode, model)
    optimizer = optimizer_of(model)
    before = [layer.weight_scale.detach().clone() for layer in model.pqk.layers()]
    for step in range(24, STEPS):
        train_step(model, optimizer, step)
    assert all(not torch.equal(a, b.weight_scale) for a, b in zip(before, model.pqk.layers(), strict=True))
    model.eval()
    x, _ = batch(7)
    export(model, tmp_path / "net.pqk")
    engine = runtime.load(tmp_path / "net.pqk")
    assert np.array_equal(engine(x.numpy()), model(x).numpy())
    assert_parity(model, tmp_path / "net.pqk", x)


def test_fewer_bits_make_a_smaller_file(tmp_path: Path) -> None:
    sizes = []
    for bits in (8, 5, 3, 2):
        model = trained()
        for layer in model.pqk.layers():
            layer.set_weight_bits(torch.full(layer.weight.shape, bits))
        export(model.eval(), tmp_path / "net.pqk")
        sizes.append((tmp_path / "net.pqk").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


@pytest.mark.parametrize("mode", MODES)
def test_sizes(mode: str) -> None:
    model = with_grid(mode, trained())
    rounded = coded_sizes(model, rounded=True)
    for name, layer in ((n, m) for n, m in model.named_modules() if isinstance(m, PQKLayer)):
        counts = np.unique(weight_codes(layer), return_counts=True)[1]
        assert rounded[name].item() == pytest.approx(layer.weight.numel() * entropy(counts) / 8, rel=1e-5)
    soft = coded_size(model)
    assert soft.item() == pytest.approx(coded_size(model, rounded=True).item(), rel=0.35)
    soft.backward()
    for layer in model.pqk.layers():
        assert layer.weight.grad is not None
        assert layer.weight.grad.any()
        assert not layer.weight.grad[~layer.weight_mask].any()
        assert layer.weight_scale.grad is not None
        assert layer.weight_scale.grad.any()


def test_nested_codes_are_not_priced_by_codes_that_they_cannot_have() -> None:
    """A layer of 4-bit weights has the same size whether its codes are multiples of 16 or of 1."""
    nested, plain = trained(), trained()
    for a, b in zip(nested.pqk.layers(), plain.pqk.layers(), strict=True):
        a.set_weight_bits(torch.full(a.weight.shape, 4))
        b.set_weight_bits(torch.full(b.weight.shape[:1], 4))
        with torch.no_grad():
            b.weight_scale.copy_(a.weight_scale * 16)
        torch.testing.assert_close(a.student_weight(), b.student_weight())
    assert coded_size(nested).item() == pytest.approx(coded_size(plain).item(), rel=1e-5)


def test_histogram_gradients_equal_a_matrix_of_shares() -> None:
    layer = with_grid("weight", trained(steps=24)).pqk.layers()[1]
    assert layer.weight_bits is not None
    with torch.no_grad():
        layer.weight_scale.mul_(1.013)
    step, limit = (t.double().flatten() for t in steps_and_limits(layer.weight_bits, 8, 4))
    price = torch.randn(255, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = torch.autograd.grad((layer.weight_histogram() * price).sum(), (layer.weight, layer.weight_scale))
    weight, scale = (p.detach().double().requires_grad_() for p in (layer.weight, layer.weight_scale))
    u = (weight / scale.view(-1, 1, 1, 1) * layer.weight_mask).flatten() / step
    u = torch.where(u.abs() > limit, (u.sign() * limit).detach(), u)
    codes = torch.arange(-127, 128).double()
    reachable = (codes[None] % step[:, None] == 0) & (codes[None].abs() <= (limit * step)[:, None])
    share = (1 - (u[:, None] - codes[None] / step[:, None]).abs()).clamp_min(0) * reachable
    share[(u.detach() == 0), :] = (codes == 0).double()
    theirs = torch.autograd.grad((share.sum(0) * price).sum(), (weight, scale))
    factor = 1 / math.sqrt(layer.weight[0].numel() * 127)
    kept = layer.weight_mask & (u.detach().view(weight.shape) % 1 != 0)
    torch.testing.assert_close(ours[0][kept].double(), theirs[0][kept], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours[1].double(), theirs[1] * factor, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_scales_have_the_least_error_of_many(mode: str) -> None:
    for layer in with_grid(mode, trained()).pqk.layers():

        def error(factor: float, layer: PQKLayer = layer) -> Tensor:
            other = copy.deepcopy(layer)
            with torch.no_grad():
                other.weight_scale.mul_(factor)
                kept = other.weight * other.weight_mask
                return (other.by_channel(other.student_weight() - kept)).flatten(1).square().sum(1)

        best = error(1.0)
        for factor in (0.5, 0.8, 1.25, 2.0):
            assert bool((best <= error(factor) * 1.05 + 1e-9).all())


@pytest.mark.parametrize("mode", MODES)
def test_states_carry_the_bits(mode: str) -> None:
    model = with_grid(mode, trained())
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    fresh = prepared()
    fresh.load_state_dict(torch.load(stream))
    x, _ = batch(3)
    assert torch.equal(model.eval()(x), fresh.eval()(x))
    for a, b in zip(model.pqk.layers(), fresh.pqk.layers(), strict=True):
        assert a.weight_bits is not None
        assert b.weight_bits is not None
        assert b.weight_bits.dtype == torch.uint8
        assert torch.equal(a.weight_bits, b.weight_bits)
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_bits"):
        model.load_state_dict(prepared().state_dict())


def test_evaluation_notices_other_bits() -> None:
    model = trained().eval()
    x, _ = batch(3)
    before = model(x)
    layer = model.pqk.layers()[0]
    layer.set_weight_bits(torch.full(layer.weight.shape, 2), keep_scale=True)
    coarse = model(x)
    assert not torch.equal(before, coarse)
    assert layer.weight_bits is not None
    layer.weight_bits.fill_(8)
    assert torch.equal(model(x), before)
    layer.weight_bits.fill_(2)
    layer.set_weight_bits(None, keep_scale=True)
    assert torch.equal(model(x), before)


def test_bad_bits_are_named() -> None:
    layer = prepared().pqk.layers()[0]
    for bits, message in (
        (torch.full((8,), 9), "bits: expected 2 to 8, those of the layer, got 9 to 9"),
        (torch.full((8,), 1), "got 1 to 1"),
        (torch.full((7,), 4), r"bits: expected shape \(8,\) or \(8, 3, 3, 3\), got \(7,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.set_weight_bits(bits)
    with pytest.raises(TypeError, match=r"bits: expected a tensor of integers, got torch.float32"):
        layer.set_weight_bits(torch.full((8,), 4.0))
    with pytest.raises(ValueError, match=r"bits: expected shape \(2,\) for 9 weights, got \(3,\)"):
        bits_of_groups(torch.full((3,), 4), (3, 3), 8)
    assert layer.weight_bits is None
    state = prepared().state_dict()
    state["conv1.weight_bits"] = torch.full((8,), 200, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"conv1.weight_bits: expected 2 to 8, those of the layer, got 200"):
        prepared().load_state_dict(state)


def test_bits_above_the_layer_s_own_are_refused() -> None:
    model = prepared(CONFIG.from_dict({**CONFIG.to_dict(), "weight_bits": 4}))
    layer = model.pqk.layers()[1]
    assert layer.widest_bits == 4
    with pytest.raises(ValueError, match="expected 2 to 4, those of the layer, got 5 to 5"):
        layer.set_weight_bits(torch.full((8,), 5))
    layer.set_weight_bits(torch.full(layer.weight.shape, 3))
    assert set(layer.weight_codes().unique().tolist()) <= {-6, -4, -2, 0, 2, 4, 6}


def test_groups_cross_rows_and_the_last_may_be_short() -> None:
    bits = bits_of_groups(torch.tensor([2, 3, 4]), (2, 5), 4)
    assert bits.tolist() == [[2, 2, 2, 2, 3], [3, 3, 3, 4, 4]]


@pytest.mark.parametrize("mode", MODES)
def test_diagnosis_and_sensitivity(mode: str) -> None:
    model = with_grid(mode, trained())
    layer = model.pqk.layers()[1]
    with torch.no_grad():
        layer.weight_scale.mul_(0.5)
    found = diagnose_layer(layer)
    kept = layer.weight_mask
    assert layer.weight_bits is not None
    step, limit = (t.expand_as(layer.weight) for t in layer.steps_and_limits())
    beyond = (layer.weight / (layer.scale_of_weights() * step)).abs() > limit + 0.5
    assert found.clipped_low + found.clipped_high == pytest.approx(float((beyond & kept).sum() / kept.sum()))
    assert found.bits == 8
    set_layer(model, "conv2", 0.5, 4)
    assert layer.weight_bits is None
    assert layer.weight_quant_max == 7


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
        self.sequence = nn.Conv2d(6, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(torch.relu(self.up(x)))


@pytest.mark.parametrize("mode", MODES)
def test_transposed_convolutions(mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 5)
    model = prepare(Transposed(), PQKConfig(sparsity=0.0, teacher=False, warmup_fraction=0.0), example_inputs=x)
    with_grid(mode, model).eval()
    export(model, tmp_path / "net.pqk")
    assert_parity(model, tmp_path / "net.pqk", x)
    layer = model.pqk.layers()[0]
    codes = layer.from_channels(torch.from_numpy(weight_codes(layer)))
    torch.testing.assert_close(layer.student_weight(), codes * layer.scale_of_weights())
