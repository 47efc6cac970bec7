"""DiffQ's published equations: noise and its gradients, size, levels, bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pqk_ext.pseudo_quantization import (
    MEGABYTE,
    bits_of_logits,
    dequantize,
    logits_of_bits,
    noise,
    pack,
    quantize,
    size_mb,
    true_bits,
    unpack,
    with_noise,
)

VARIANCE = {"gaussian": 1 / 4, "uniform": 1 / 12}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def weights(groups: int = 50, size: int = 8) -> torch.Tensor:
    return torch.randn(groups, size)


@pytest.mark.parametrize("kind", VARIANCE)
def test_mean_and_variance_of_the_noisy_weight(kind: str) -> None:
    weight = weights(2, 4)
    bits = torch.tensor([3.0, 5.5])
    draws = torch.stack([with_noise(weight, bits, 4, noise(weight, kind)) for _ in range(4000)])
    step = (weight.max() - weight.min()) / (2**bits - 1)
    deviation = step[:, None] * math.sqrt(VARIANCE[kind])
    assert ((draws.mean(0) - weight).abs() < 5 * deviation / math.sqrt(4000)).all()
    torch.testing.assert_close(draws.std(0) / deviation, torch.ones_like(weight), rtol=0.06, atol=0)


def test_uniform_noise_stays_within_half_a_step_and_gaussian_has_three_times_its_variance() -> None:
    like = torch.empty(400_000)
    uniform, gaussian = noise(like, "uniform"), noise(like, "gaussian")
    assert uniform.abs().max() <= 0.5
    assert gaussian.abs().max() > 1.5
    assert float(gaussian.var() / uniform.var()) == pytest.approx(3, rel=0.02)
    with pytest.raises(ValueError, match="noise: expected 'gaussian' or 'uniform', got 'laplace'"):
        noise(like, "laplace")


def test_gradients_are_those_of_the_equations() -> None:
    weight = weights(6, 8).double().requires_grad_()
    bits = (2.2 + 6 * torch.rand(6)).double().requires_grad_()
    eps = noise(weight, "gaussian")
    upstream = torch.randn_like(weight)
    of_weight, of_bits = torch.autograd.grad((with_noise(weight, bits, 8, eps) * upstream).sum(), (weight, bits))
    w, b = weight.detach(), bits.detach()
    scale = w.max() - w.min()
    slope = -scale * math.log(2) * 2**b / (2**b - 1) ** 2
    torch.testing.assert_close(of_bits, slope * (eps * upstream).sum(1))
    expected = upstream.clone()
    of_scale = (eps * upstream / (2**b - 1)[:, None]).sum()
    expected.view(-1)[w.argmax()] += of_scale
    expected.view(-1)[w.argmin()] -= of_scale
    torch.testing.assert_close(of_weight, expected)


@pytest.mark.parametrize("bits", range(3, 9))
def test_uniform_noise_has_the_variance_of_rounding(bits: int) -> None:
    weight = weights(4000, 8)
    whole = torch.full((4000,), bits)
    error = dequantize(*(found := quantize(weight, whole, 8))[:1], whole, *found[1:]) - weight
    made = with_noise(weight, whole.float(), 8, noise(weight, "uniform")) - weight
    assert float(made.var() / error.var()) == pytest.approx(1, abs=0.05)


def test_bits_of_logits() -> None:
    assert float(bits_of_logits(torch.zeros(()), 2, 15)) == 8.5
    for bits in (2.5, 8.0, 14.9):
        logit = torch.tensor(logits_of_bits(bits, 2, 15))
        assert float(bits_of_logits(logit, 2, 15)) == pytest.approx(bits, rel=1e-6)
    assert true_bits(torch.tensor([0.2, 2.5, 3.5, 14.6, 99.0])).tolist() == [1, 2, 4, 15, 15]
    with pytest.raises(ValueError, match=r"bits: expected a number in \(2, 15\), got 15"):
        logits_of_bits(15, 2, 15)


def test_size_by_hand() -> None:
    bits = torch.tensor([2.0, 4.5, 9.0], requires_grad=True)
    size = size_mb([(bits, 8)], others=10)
    # 8 weights of each group, 64 + 8, ceil(log2(1 + 9 - 2)) = 3 bits a group, ten floats.
    assert float(size.detach()) == pytest.approx((8 * 15.5 + 72 + 3 * 3 + 320) / 8 / MEGABYTE)
    assert float(size_mb([(bits, 8)], others=10, other_bits=16).detach()) < float(size.detach())
    size.backward()
    torch.testing.assert_close(bits.grad, torch.full((3,), 8 / 8 / MEGABYTE))
    assert float(size_mb([(torch.full((5,), 2.0), 4)])) == pytest.approx((4 * 10 + 72) / 8 / MEGABYTE)


@pytest.mark.parametrize("bits", range(1, 16))
def test_packing_is_undone(bits: int) -> None:
    levels = torch.randint(0, 2**bits, (13, 5))
    levels[0, :2] = torch.tensor([0, 2**bits - 1])
    whole = torch.full((13,), bits)
    data = pack(levels, whole, -1.5, 0.25, min_bits=1)
    found = unpack(data, 13, 5, min_bits=1)
    assert torch.equal(found.levels, levels)
    assert torch.equal(found.bits, whole)
    assert (found.low, found.high) == (-1.5, 0.25)


def test_packed_bytes_are_those_of_the_size() -> None:
    weight = weights(3000, 8)
    bits = torch.randint(2, 16, (3000,))
    levels, low, high = quantize(weight, bits, 8)
    data = pack(levels, bits, low, high)
    assert abs(len(data) - float(size_mb([(bits.float(), 8)])) * MEGABYTE) < 200  # planes are filled up to bytes
    found = unpack(data, 3000, 8)
    values = dequantize(found.levels, found.bits, found.low, found.high)
    assert torch.equal(values, dequantize(levels, bits, low, high))
    step = (high - low) / (2.0**bits - 1)
    assert ((values - weight).abs() <= step[:, None] * 0.5001 + 1e-6).all()


def test_levels_reach_both_ends_and_a_constant_tensor_stays_constant() -> None:
    weight = torch.tensor([[-1.0, 0.5], [2.0, 0.0]])
    levels, low, high = quantize(weight, torch.tensor([2, 3]), 2)
    assert (low, high) == (-1.0, 2.0)
    assert levels.tolist() == [[0, round(1.5)], [7, 2]]
    constant = torch.full((4,), 0.3)
    found = quantize(constant, torch.tensor([4, 4]), 2)
    np.testing.assert_array_equal(dequantize(found[0], torch.tensor([4, 4]), *found[1:]).flatten(), constant)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="group_size: expected a divisor of 10 entries, got 8"):
        with_noise(torch.zeros(10), torch.zeros(2), 8, torch.zeros(10))
    levels, bits = torch.zeros(4, 2, dtype=torch.int64), torch.tensor([2, 3, 15, 9])
    data = pack(levels, bits, 0.0, 1.0)
    with pytest.raises(ValueError, match=f"data: expected {len(data)} bytes, got {len(data) + 1}"):
        unpack(data + b"x", 4, 2)
    for cut in (0, 5, 9, len(data) - 1):
        with pytest.raises(ValueError, match="data: expected at least"):
            unpack(data[:cut], 4, 2)
    with pytest.raises(ValueError, match="bits: expected 2 to 15, got 1 to 16"):
        pack(levels, torch.tensor([1, 16, 2, 2]), 0.0, 1.0)
