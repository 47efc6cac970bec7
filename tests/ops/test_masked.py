"""Gradients, the sparse forward pass and refused arguments of the masked ops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pqk_ext.ops import masked_conv2d, masked_linear, masked_weight

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=dtype)


def random_mask(*shape: int, density: float) -> Tensor:
    return torch.rand(shape, generator=GENERATOR) < density


# (40, 80) at density 0.15 runs the sparse kernel forward.
@pytest.mark.parametrize(("batch", "in_features", "density"), [((2, 3), 7, 0.5), ((40,), 80, 0.15), ((), 5, 0.5)])
def test_linear_gradients(batch: tuple[int, ...], in_features: int, density: float) -> None:
    mask = random_mask(2, in_features, density=density)
    leaves = [leaf.requires_grad_() for leaf in (randn(*batch, in_features), randn(2, in_features), randn(2))]
    assert torch.autograd.gradcheck(
        lambda input, weight, bias: masked_linear(input, weight, mask, bias), leaves, fast_mode=in_features > 10
    )
    assert torch.autograd.gradcheck(
        lambda input, weight: masked_linear(input, weight, mask), leaves[:2], fast_mode=in_features > 10
    )


@pytest.mark.parametrize(
    ("shape", "weight_shape", "density", "convolution"),
    [
        ((2, 4, 4, 5), (4, 2, 2, 3), 0.5, {"stride": (2, 1), "padding": (0, 1), "dilation": (1, 2), "groups": 2}),
        ((1, 8, 7, 7), (3, 8, 3, 3), 0.16, {"padding": 1}),
    ],
)
def test_conv2d_gradients(
    shape: tuple[int, ...], weight_shape: tuple[int, ...], density: float, convolution: dict[str, Any]
) -> None:
    mask = random_mask(*weight_shape, density=density)
    leaves = [leaf.requires_grad_() for leaf in (randn(*shape), randn(*weight_shape), randn(weight_shape[0]))]
    assert torch.autograd.gradcheck(
        lambda input, weight, bias: masked_conv2d(input, weight, mask, bias, **convolution), leaves, fast_mode=True
    )


@pytest.mark.parametrize("density", [0.0, 0.15, 0.6, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_conv2d_trains_like_torch(density: float, dtype: torch.dtype, layout: torch.memory_format, isa: str) -> None:
    input = randn(2, 16, 9, 9, dtype=torch.float32).to(dtype).to(memory_format=layout)
    weight, bias = randn(8, 16, 3, 3, dtype=torch.float32).to(dtype), randn(8, dtype=torch.float32).to(dtype)
    mask = random_mask(8, 16, 3, 3, density=density)
    ours = [leaf.clone().requires_grad_() for leaf in (input, weight, bias)]
    theirs = [leaf.clone().requires_grad_() for leaf in (input, weight, bias)]
    output = masked_conv2d(ours[0], ours[1], mask, ours[2], padding=1)
    expected = torch.nn.functional.conv2d(theirs[0], theirs[1] * mask, theirs[2], padding=1)
    upstream = torch.randn(output.shape, generator=GENERATOR).to(dtype)
    output.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(output, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)
    for leaf, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(leaf.grad, other.grad)
    assert not ours[1].grad[~mask].any()
    assert output.stride() == expected.stride()


def test_second_derivative() -> None:
    mask = random_mask(3, 4, density=0.5)
    leaves = [randn(2, 4).requires_grad_(), randn(3, 4).requires_grad_()]
    assert torch.autograd.gradgradcheck(lambda input, weight: masked_linear(input, weight, mask).square(), leaves)


def test_masked_nan_is_zero(isa: str) -> None:
    weight = torch.full((3, 65), torch.nan)
    mask = torch.zeros(3, 65, dtype=torch.bool)
    assert torch.equal(masked_weight(weight, mask), torch.zeros(3, 65))
    assert torch.equal(masked_linear(torch.ones(2, 65), weight, mask), torch.zeros(2, 3))


def test_no_gradient_when_none_is_wanted() -> None:
    output = masked_linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4, 3, dtype=torch.bool))
    assert not output.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.ones(4, 3)}, "mask must be Bool, got Float"),
        ({"mask": torch.ones(3, 4, dtype=torch.bool)}, r"mask must have weight's shape \[4, 3\], got \[3, 4\]"),
        ({"weight": torch.ones(4, 3, dtype=torch.float16)}, "weight must be Float, Double or BFloat16, got Half"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Tensor], message: str) -> None:
    arguments = {"weight": torch.ones(4, 3), "mask": torch.ones(4, 3, dtype=torch.bool), **change}
    with pytest.raises(RuntimeError, match=f"pqk::masked_linear: {message}"):
        masked_linear(torch.ones(2, 3), **arguments)
    with pytest.raises(RuntimeError, match=f"pqk::masked_weight: {message}"):
        masked_weight(**arguments)
    with pytest.raises(RuntimeError, match=f"pqk::masked_conv2d: {message}"):
        masked_conv2d(torch.ones(2, 3), **arguments)
