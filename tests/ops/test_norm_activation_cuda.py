"""norm_activation on CUDA: the CPU's bits of elements given the same statistics; sums that do not change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.cuda_ops import CudaOps

SHAPES = [(2, 3), (7, 40), (70, 17), (2, 3, 5, 7), (3, 17, 9, 2), (2, 1, 6, 6), (4, 32, 4, 4), (3, 5, 24, 24)]
LAYOUTS = ["contiguous", "channels_last", "strided", "shifted"]


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([tensor, tensor], -1)[..., 0]
    if layout == "shifted":  # by less than a vector
        return torch.cat([torch.zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    return tensor


def sample(shape: tuple[int, ...], layout: str = "contiguous", seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]
    return {
        "input": laid_out(torch.randn(shape, generator=generator) * 3 + 5, layout),
        "residual": torch.randn(shape, generator=generator),
        "weight": torch.randn(channels, generator=generator) + 1,
        "bias": torch.randn(channels, generator=generator),
        "mean": torch.randn(channels, generator=generator) + 5,
        "variance": torch.rand(channels, generator=generator) + 1,
        "scale": torch.tensor([0.11]),
        "zero_point": torch.tensor([7], dtype=torch.int32),
    }


def variants(tensors: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything; without a residual or a quantizer; ReLU6; nothing to normalize by."""
    return [
        tensors,
        {**tensors, "residual": None, "high": 6.0},
        {**tensors, "scale": None, "zero_point": None, "weight": None},
        {**tensors, "mean": None, "variance": None, "weight": None, "bias": None, "low": -math.inf},
        {**tensors, "mean": None, "variance": None, "residual": None, "scale": None, "zero_point": None},
    ]


def arguments(given: dict[str, Any], batch_statistics: bool = False) -> tuple[Any, ...]:
    names = ("input", "residual", "weight", "bias", "mean", "variance", "scale", "zero_point")
    low, high = given.get("low", 0.0), given.get("high", math.inf)
    return (*(given[name] for name in names), batch_statistics, 1e-3, low, high, 200, 0.3)


def backward(call: Any, args: tuple[Any, ...], mean: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
    grad = torch.randn(args[0].shape, generator=torch.Generator().manual_seed(9))
    found: tuple[Tensor, ...] = call(grad, *args[:4], mean, variance, *args[6:])
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_cpu_given_the_statistics(cuda_ops: CudaOps, shape: tuple[int, ...], layout: str) -> None:
    for given in variants(sample(shape, layout)):
        args = arguments(given)
        expected = torch.ops.pqk.norm_activation(*args)
        found = cuda_ops.call("norm_activation", *args)
        for ours, cpu in zip(found, expected, strict=True):
            assert torch.equal(ours, cpu)
        assert found[0].stride() == expected[0].stride()
        expected = backward(torch.ops.pqk.norm_activation_backward, args, *expected[1:])
        gradients = backward(lambda *a: cuda_ops.call("norm_activation_backward", *a), args, *found[1:])
        for ours, cpu in zip(gradients[:2], expected[:2], strict=True):  # of the elements
            assert torch.equal(ours, cpu)
        for ours, cpu in zip(gradients[2:], expected[2:], strict=True):  # sums over them
            torch.testing.assert_close(ours, cpu, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_statistics(cuda_ops: CudaOps, shape: tuple[int, ...], layout: str) -> None:
    """Mean and variance against float64; gradients against the CPU's; twice the same bits."""
    given = sample(shape, layout)
    for change in ({}, {"residual": None, "scale": None, "zero_point": None}):
        args = arguments({**given, "mean": None, "variance": None, **change}, batch_statistics=True)
        output, mean, variance = cuda_ops.call("norm_activation", *args)
        rows = args[0].double().transpose(0, 1).flatten(1)
        torch.testing.assert_close(mean.double(), rows.mean(1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(variance.double(), rows.var(1, correction=0), rtol=2e-6, atol=1e-7)
        fixed = arguments({**given, "mean": mean, "variance": variance, **change})
        assert torch.equal(output, torch.ops.pqk.norm_activation(*fixed)[0])
        call = lambda *a: cuda_ops.call("norm_activation_backward", *a)  # noqa: E731
        gradients = backward(call, args, mean, variance)
        expected = backward(torch.ops.pqk.norm_activation_backward, args, mean, variance)
        for ours, cpu, again in zip(gradients, expected, backward(call, args, mean, variance), strict=True):
            torch.testing.assert_close(ours, cpu, rtol=1e-5, atol=1e-4)
            assert torch.equal(ours, again)


def test_means_far_from_zero_lose_nothing(cuda_ops: CudaOps) -> None:
    input = torch.randn(64, 6, 5, 5, generator=torch.Generator().manual_seed(2)) + 3e4
    for layout in ("contiguous", "channels_last"):
        none = (None,) * 7
        args = (laid_out(input, layout), *none, True, 1e-5, -math.inf, math.inf, 255, 1.0)
        _, mean, variance = cuda_ops.call("norm_activation", *args)
        rows = input.double().transpose(0, 1).flatten(1)
        torch.testing.assert_close(mean.double(), rows.mean(1), rtol=1e-7, atol=0)
        torch.testing.assert_close(variance.double(), rows.var(1, correction=0), rtol=1e-5, atol=0)


def test_nan_and_infinity(cuda_ops: CudaOps) -> None:
    given = sample((2, 4, 3, 3))
    given["input"].view(-1)[:5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38, -3e38])
    for variant in variants(given)[:4]:
        args = arguments(variant)
        expected, found = torch.ops.pqk.norm_activation(*args), cuda_ops.call("norm_activation", *args)
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0, equal_nan=True)
        of_input, cpu = (
            backward(call, args, *expected[1:])[0]
            for call in (
                lambda *a: cuda_ops.call("norm_activation_backward", *a),
                torch.ops.pqk.norm_activation_backward,
            )
        )
        torch.testing.assert_close(of_input, cpu, rtol=0, atol=0, equal_nan=True)


def test_empty(cuda_ops: CudaOps) -> None:
    for shape in [(0, 3, 2, 2), (2, 3, 0, 2), (2, 0, 3)]:
        args = arguments(sample(shape))
        output, *statistics = cuda_ops.call("norm_activation", *args)
        assert output.shape == shape
        found = backward(lambda *a: cuda_ops.call("norm_activation_backward", *a), args, *statistics)
        expected = backward(torch.ops.pqk.norm_activation_backward, args, *statistics)
        assert all(torch.equal(ours, cpu) for ours, cpu in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.ones(3)}, r"input must have at least 2 dimensions, got \[3\]"),
        ({"residual": torch.ones(2, 4)}, r"residual must have the shape of input, \[2, 3\], got \[2, 4\]"),
        ({"weight": torch.ones(4)}, r"weight must be contiguous of shape \[3\], got \[4\]"),
        ({"variance": None}, "mean and variance must be given together"),
        ({"scale": None}, "scale and zero_point must be given together"),
        ({"zero_point": torch.zeros(1)}, "zero_point must be Int, got Float"),
    ],
)
def test_bad_arguments_are_named(cuda_ops: CudaOps, change: dict[str, object], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"pqk::norm_activation: {message}"):
        cuda_ops.call("norm_activation", *arguments({**sample((2, 3)), **change}))


def test_batch_statistics_need_values(cuda_ops: CudaOps) -> None:
    given = {**sample((1, 3)), "mean": None, "variance": None}
    with pytest.raises(RuntimeError, match="batch statistics need more than 1 value per channel"):
        cuda_ops.call("norm_activation", *arguments(given, batch_statistics=True))
