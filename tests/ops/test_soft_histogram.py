"""Gradients, determinism and refused arguments of the soft histogram."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from pqk_ext.ops import soft_histogram
from pqk_ext.ops.soft_histogram import soft_histogram_reference


def weights(*shape: int, spread: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, scale and mask; w / scale has about the given standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(shape[0], generator=generator) * 0.05 + 0.02
    weight = torch.randn(shape, generator=generator) * spread * scale.view(-1, *[1] * (len(shape) - 1))
    return weight.requires_grad_(), scale.requires_grad_(), torch.rand(shape, generator=generator) > 0.4


def by_hand(weight: Tensor, scale: Tensor, quant_max: int, mask: Tensor) -> list[float]:
    """One element at a time, in double precision."""
    counts: dict[int, float] = defaultdict(float)
    for row, row_scale, row_mask in zip(weight.tolist(), scale.tolist(), mask.tolist(), strict=True):
        for x, kept in zip(row, row_mask, strict=True):
            u = max(-quant_max, min(quant_max, x / row_scale)) if kept else 0.0
            counts[math.floor(u)] += 1 - (u - math.floor(u))
            counts[math.floor(u) + 1] += u - math.floor(u)
    return [counts[code] for code in range(-quant_max, quant_max + 1)]


@pytest.mark.parametrize("quant_max", [1, 7, 127])
def test_counts_are_those_of_the_definition(quant_max: int, isa: str) -> None:
    weight, scale, mask = weights(6, 333)
    counts = soft_histogram(weight, scale, quant_max=quant_max, mask=mask).tolist()
    assert counts == pytest.approx(by_hand(weight, scale, quant_max, mask), abs=2e-3)
    assert sum(counts) == weight.numel()


def test_integers_are_counted_exactly(isa: str) -> None:
    codes = torch.randint(-7, 8, (5, 4001), generator=torch.Generator().manual_seed(1))
    counts = soft_histogram(codes * 0.25, torch.full((5,), 0.25), quant_max=7)
    assert counts.tolist() == torch.bincount(codes.flatten() + 7, minlength=15).tolist()


def test_more_elements_than_one_word_can_count(isa: str) -> None:
    counts = soft_histogram(torch.full((2, 1_100_000), 0.75), torch.ones(2), quant_max=1)
    assert counts.tolist() == [0, 550_000, 1_650_000]


def gradients(function: object, weight: Tensor, scale: Tensor, mask: Tensor, quant_max: int) -> tuple[Tensor, ...]:
    counts = function(weight, scale, quant_max=quant_max, mask=mask, grad_scale=0.3)  # type: ignore[operator]
    upstream = torch.arange(counts.numel(), dtype=torch.float64).sin()
    return torch.autograd.grad((counts * upstream).sum(), (weight, scale))


@pytest.mark.parametrize("shape", [(4, 9), (3, 700), (8, 4, 3, 3)])
@pytest.mark.parametrize("quant_max", [1, 7, 127])
def test_gradients_equal_autograd_s_of_the_plain_formula(shape: tuple[int, ...], quant_max: int, isa: str) -> None:
    weight, scale, mask = weights(*shape, spread=0.5 * quant_max)
    ours = gradients(soft_histogram, weight, scale, mask, quant_max)
    plain = gradients(soft_histogram_reference, weight, scale, mask, quant_max)
    torch.testing.assert_close(ours[0], plain[0])
    torch.testing.assert_close(ours[1], plain[1], rtol=1e-4, atol=1e-4)


def test_gradients_equal_finite_differences() -> None:
    weight, scale, mask = weights(3, 40)
    weight, scale = weight.detach().double().requires_grad_(), scale.detach().double().requires_grad_()
    upstream = torch.arange(15, dtype=torch.float64).sin()

    def value(w: Tensor, s: Tensor) -> Tensor:
        return (soft_histogram(w, s, quant_max=7, mask=mask) * upstream).sum()

    found = torch.autograd.grad(value(weight, scale), (weight, scale))
    step = 2e-5  # shares are rounded to 1e-6
    for leaf, gradient in zip((weight, scale), found, strict=True):
        for index in range(0, leaf.numel(), 3):
            change = torch.zeros(leaf.numel(), dtype=torch.float64)
            change[index] = step
            change = change.view_as(leaf)
            above, below = (
                value(*(x + sign * change if x is leaf else x for x in (weight, scale))).item() for sign in (1, -1)
            )
            assert (above - below) / (2 * step) == pytest.approx(gradient.flatten()[index].item(), rel=0.01, abs=0.1)


def test_float32_gradients_equal_those_of_float64() -> None:
    weight, scale, mask = weights(5, 200)
    wide = gradients(soft_histogram, weight.detach().double().requires_grad_(), scale, mask, 7)
    narrow = gradients(soft_histogram, weight, scale, mask, 7)
    torch.testing.assert_close(narrow[0], wide[0].float())
    torch.testing.assert_close(narrow[1], wide[1], rtol=1e-4, atol=1e-4)


def test_no_gradient_where_masked_clamped_or_on_a_code(isa: str) -> None:
    weight = torch.tensor([[0.0, 1.0, -2.0, 3.5, 9.0, -torch.inf, 0.5, 0.5]]).requires_grad_()
    scale = torch.ones(1).requires_grad_()
    mask = torch.tensor([[True] * 7 + [False]])
    of_weight, of_scale = gradients(soft_histogram, weight, scale, mask, 3)
    assert of_weight[0].nonzero().flatten().tolist() == [6]
    assert of_scale.item() == pytest.approx(-0.3 * 0.5 * of_weight[0, 6].item())


def test_gradients_have_the_same_bits_for_any_thread_count() -> None:
    weight, scale, mask = weights(96, 4000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gradients(soft_histogram, weight, scale, mask, 127)
        torch.set_num_threads(2)
        two = gradients(soft_histogram, weight, scale, mask, 127)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.tensor(1.0)}, "input must have at least 1 dimension, got a scalar"),
        ({"scale": torch.ones(3)}, r"scale must have shape \[2\] for axis 0 of input of shape \[2, 4\], got \[3\]"),
        ({"scale": torch.tensor([1.0, 0.0])}, "scale must be finite, positive and normal, got 0 at index 1"),
        ({"scale": torch.ones(2).double()}, "scale must be Float, got Double"),
        ({"quant_max": 128}, "expected -127 <= quant_min <= quant_max <= 127, got quant_min -128"),
        ({"quant_max": 0}, "quant_max must be at least 1, got 0"),
        ({"mask": torch.ones(2, 4)}, "mask must be Bool, got Float"),
        ({"mask": torch.ones(4, 2, dtype=torch.bool)}, r"mask must have input's shape \[2, 4\], got \[4, 2\]"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"input": torch.ones(2, 4), "scale": torch.ones(2), "quant_max": 7, **change}
    with pytest.raises(RuntimeError, match=f"pqk::soft_histogram: {message}"):
        soft_histogram(**arguments)  # type: ignore[arg-type]
