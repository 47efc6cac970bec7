"""The kernels of kept weights: results against float64, the same bits everywhere, the choice of kernels."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pqk_ext import _core
from pqk_ext.ops import masked_conv2d, masked_linear
from pqk_ext.ops.masked_conv2d import skips_zeros

CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((33, 17, 9, 11), (19, 17, 3, 3), {"padding": 1}),
    "1x1": ((64, 8, 5, 25), (20, 8, 1, 1), {}),
    "1x1 of every third pixel": ((17, 3, 7, 8), (5, 3, 1, 1), {"stride": 3, "padding": 1}),
    "stride 2": ((16, 5, 8, 8), (16, 5, 3, 3), {"stride": 2, "padding": 1}),
    "odd everything": ((40, 20, 12, 7), (5, 20, 4, 2), {"stride": (2, 3), "padding": (4, 1), "dilation": (2, 3)}),
    "more padding than kernel": ((3, 2, 2, 3), (2, 2, 2, 2), {"padding": 3}),
    "wide rows": ((18, 2, 3, 70), (3, 2, 3, 3), {"padding": 1}),
    "one image": ((1, 4, 6, 5), (17, 4, 3, 3), {}),
    "one pixel": ((130, 40, 1, 1), (7, 40, 1, 1), {}),
    "window of the whole image": ((20, 6, 4, 4), (9, 6, 4, 4), {}),
    "rows that no window reaches": ((16, 2, 7, 9), (3, 2, 2, 2), {"stride": 4}),
}
LAYOUTS = ("contiguous", "channels_last", "transposed")


def lay(tensor: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    return tensor.contiguous(memory_format=getattr(torch, f"{layout}_format" if layout == "contiguous" else layout))


def problem(name: str, density: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, mask, bias and the gradient of the output."""
    generator = torch.Generator().manual_seed(len(name))
    shape, weight_shape, convolution = CASES[name]
    input, weight = torch.randn(shape, generator=generator), torch.randn(weight_shape, generator=generator)
    mask = torch.rand(weight_shape, generator=generator) < density
    bias = torch.randn(weight_shape[0], generator=generator)
    grad = torch.randn(torch.nn.functional.conv2d(input, weight, bias, **convolution).shape, generator=generator)
    return input, weight, mask, bias, grad


def train(name: str, density: float, layout: str = "contiguous", weight_layout: str = "contiguous") -> list[Tensor]:
    input, weight, mask, bias, grad = problem(name, density)
    leaves = [lay(input, layout).requires_grad_(), lay(weight, weight_layout).requires_grad_(), bias.requires_grad_()]
    output = masked_conv2d(leaves[0], leaves[1], mask, leaves[2], **CASES[name][2], kernel="sparse")
    output.backward(lay(grad, layout))
    gradients = [leaf.grad for leaf in leaves]
    assert all(gradient is not None for gradient in gradients)
    return [output.detach(), *gradients]  # type: ignore[list-item]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_against_dense_float64(name: str, density: float, isa: str) -> None:
    input, weight, mask, bias, grad = problem(name, density)
    exact = [leaf.double().requires_grad_() for leaf in (input, weight, bias)]
    expected = torch.nn.functional.conv2d(exact[0], exact[1] * mask, exact[2], **CASES[name][2])
    expected.backward(grad.double())
    # |error| <= terms * 2^-24 * sum of |products|, for any order of a sum; here for sums of absolute values.
    bounds = [leaf.detach().double().abs().requires_grad_() for leaf in (input, weight, bias)]
    bound = torch.nn.functional.conv2d(bounds[0], bounds[1] * mask, bounds[2], **CASES[name][2])
    bound.backward(grad.double().abs())
    results = train(name, density)
    limits = [bound.detach(), *(leaf.grad for leaf in bounds)]
    terms = [weight[0].numel() + 1, weight.numel() // weight.shape[1], grad.numel() // grad.shape[1] + 48]
    for result, reference, limit, count in zip(
        results, [expected.detach(), *(leaf.grad for leaf in exact)], limits, [*terms, terms[-1]], strict=True
    ):
        assert reference is not None
        assert limit is not None
        assert ((result.double() - reference).abs() <= count * 2.0**-24 * limit + 1e-30).all()
    assert not results[2][~mask].any()


@pytest.mark.parametrize("name", CASES)
def test_same_bits_for_every_layout(name: str) -> None:
    expected = train(name, 0.2)
    for layout, weight_layout in itertools.product(LAYOUTS, LAYOUTS):
        results = train(name, 0.2, layout, weight_layout)
        # torch's own sum makes the bias's gradient.
        assert all(map(torch.equal, results[:3], expected[:3])), (layout, weight_layout)


@pytest.mark.parametrize("name", CASES)
def test_same_bits_for_every_instruction_set_and_thread_count(name: str) -> None:
    expected = None
    before = torch.get_num_threads()
    try:
        for isa, threads in itertools.product(_core.supported_isas(), (1, 2, 5)):
            _core.force_isa(isa)
            torch.set_num_threads(threads)
            results = train(name, 0.2, "channels_last")[:3]
            expected = expected or results
            assert all(map(torch.equal, results, expected)), (isa, threads)
    finally:
        _core.force_isa("")
        torch.set_num_threads(before)


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_linear_against_float64(density: float, isa: str) -> None:
    generator = torch.Generator().manual_seed(3)
    input, weight = torch.randn(4, 11, 70, generator=generator), torch.randn(33, 70, generator=generator)
    mask, bias = torch.rand(weight.shape, generator=generator) < density, torch.randn(33, generator=generator)
    grad = torch.randn(4, 11, 33, generator=generator)
    ours = [leaf.requires_grad_() for leaf in (input, weight, bias)]
    exact = [leaf.detach().double().requires_grad_() for leaf in ours]
    output = masked_linear(ours[0], ours[1], mask, ours[2], kernel="sparse")
    output.backward(grad)
    expected = torch.nn.functional.linear(exact[0], exact[1] * mask, exact[2])
    expected.backward(grad.double())
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    for leaf, reference in zip(ours, exact, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=1e-5, atol=2e-5)
    assert not ours[1].grad[~mask].any()  # type: ignore[index]


def test_only_wanted_gradients_are_made() -> None:
    input, weight, mask, _, grad = problem("3x3", 0.1)
    expected = train("3x3", 0.1)
    for index, leaves in enumerate(
        [(input.clone().requires_grad_(), weight), (input, weight.clone().requires_grad_())], start=1
    ):
        output = masked_conv2d(*leaves, mask, padding=1, kernel="sparse")
        output.backward(grad)
        gradient = leaves[index - 1].grad
        assert gradient is not None
        assert torch.equal(gradient, expected[index])
        assert leaves[2 - index].grad is None


def test_second_derivative_of_a_sparse_call() -> None:
    input, weight, mask, _, _ = problem("3x3", 0.1)
    leaves = [input[:2].clone().requires_grad_(), weight.clone().requires_grad_()]

    def penalty(kernel: str) -> list[Tensor]:
        output = masked_conv2d(leaves[0], leaves[1], mask, padding=1, kernel=kernel)
        (gradient,) = torch.autograd.grad(output.square().sum(), leaves[0], create_graph=True)
        return list(torch.autograd.grad(gradient.square().sum(), leaves))

    for ours, theirs in zip(penalty("sparse"), penalty("dense"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)


def test_a_mask_may_change_between_calls() -> None:
    input, weight, mask, _, _ = problem("3x3", 0.1)
    first = masked_conv2d(input, weight, mask, padding=1, kernel="sparse")
    mask[0] = False
    second = masked_conv2d(input, weight, mask, padding=1, kernel="sparse")
    assert not second[:, 0].any()
    assert first[:, 0].any()
    assert torch.equal(first[:, 1:], second[:, 1:])


def test_a_mask_that_changes_before_backward_is_refused() -> None:
    input, weight, mask, _, grad = problem("3x3", 0.1)
    output = masked_conv2d(input, weight.requires_grad_(), mask, padding=1, kernel="sparse")
    mask.logical_not_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward(grad)


def test_without_a_mask_pass_the_dense_engine_is_torchs_own() -> None:
    input, weight, mask, _, grad = problem("3x3", 0.5)
    leaves = [input.requires_grad_(), (weight * mask).requires_grad_()]
    output = masked_conv2d(*leaves, mask, padding=1, kernel="dense", assume_masked=True)
    expected = torch.nn.functional.conv2d(*leaves, padding=1)
    assert torch.equal(output, expected)
    for ours, theirs in zip(
        torch.autograd.grad(output, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_rule_knows_when_zeros_pay() -> None:
    def skips(batch: int, kept: float, channels_last: bool = True, stride: int = 1) -> bool:
        geometry = ((stride, stride), (1, 1), (1, 1))
        return skips_zeros((batch, 64, 8, 8), (64, 64, 3, 3), int(kept * 64 * 64 * 9), *geometry, channels_last)

    assert skips(64, 0.1)
    assert skips(64, 0.1, channels_last=False)
    assert skips(64, 0.0)
    assert not skips(64, 1.0)
    assert not skips(64, 0.5)
    assert not skips(8, 0.01)  # fewer images than lanes
    assert skips(64, 0.1, stride=2)
    assert not skips(64, 0.1, channels_last=False, stride=2)
    # Fewer kept weights never turn the choice back.
    choices = [skips(64, kept / 100) for kept in range(101)]
    assert choices == sorted(choices, reverse=True)
    assert not skips_zeros((64, 4, 8, 8), (8, 2, 3, 3), 1, (1, 1), (1, 1), (1, 1), True)  # groups
    assert not skips_zeros((64, 2, 2, 2), (8, 2, 3, 3), 1, (1, 1), (0, 0), (1, 1), True)  # no output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "fast"}, "kernel must be auto, dense or sparse, got fast"),
        ({"kernel": "sparse", "groups": 2}, "kernel sparse is for float32 on the CPU, without groups"),
    ],
)
def test_kernels_that_do_not_exist_are_named(change: dict[str, Any], message: str) -> None:
    weight = torch.ones(4, 2, 3, 3)
    with pytest.raises(RuntimeError, match=f"pqk::masked_conv2d: {message}"):
        masked_conv2d(torch.ones(2, 2 * change.get("groups", 1), 4, 4), weight, weight > 0, **change)


def test_a_gradient_of_another_shape_is_refused() -> None:
    weight = torch.ones(4, 2, 3, 3)
    with pytest.raises(RuntimeError, match=r"grad must have the output's shape \[2, 4, 2, 2\], got \[2, 4, 4, 4\]"):
        torch.ops.pqk.masked_conv2d_backward(
            torch.ones(2, 4, 4, 4), torch.ones(2, 2, 4, 4), weight, weight > 0, [1, 1], [0, 0], [1, 1], 1, "sparse",
            False, True, True,
        )  # fmt: skip
