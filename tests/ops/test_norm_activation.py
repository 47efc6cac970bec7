"""The fused batch norm, addition, activation and fake-quantize against torch's own chain in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pqk_ext import _core
from pqk_ext.ops import fake_quantize, norm_activation

CHANNELS_LAST = torch.channels_last
ACTIVATIONS = {None: lambda x: x, "relu": F.relu, "relu6": F.relu6}


class Data:
    """Arguments of one call, in float32, and a gradient for its output."""

    def __init__(self, shape: tuple[int, ...], residual: bool, quantized: bool, memory_format: Any = None) -> None:
        generator = torch.Generator().manual_seed(sum(shape))

        def rand(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        channels = shape[1]
        values = [rand(*shape) * 2 + 3, rand(*shape) if residual else None, rand(channels) + 1, rand(channels)]
        values += [None, None, torch.tensor(0.03) if quantized else None]
        self.leaves = [None if v is None else v.requires_grad_() for v in values]
        if memory_format is not None:
            self.leaves[:2] = [
                None if v is None else v.detach().contiguous(memory_format=memory_format).requires_grad_()
                for v in self.leaves[:2]
            ]
        self.zero_point = torch.tensor(5, dtype=torch.int32) if quantized else None
        self.grad = rand(*shape)

    def gradients(self, **settings: Any) -> list[Tensor]:
        """The output and the gradients of all leaves."""
        output = norm_activation(*self.leaves, self.zero_point, **settings)[0]
        needed = [v for v in self.leaves if v is not None]
        return [output.detach(), *torch.autograd.grad(output, needed, self.grad)]

    def expected(self, activation: str | None, batch_statistics: bool, **settings: Any) -> list[Tensor]:
        """The same by torch's operators in float64."""
        leaves = [None if v is None else v.detach().double().requires_grad_() for v in self.leaves]
        x, residual, weight, bias, _, _, scale = leaves
        value = F.batch_norm(x, None, None, weight, bias, True) if batch_statistics else x
        value = ACTIVATIONS[activation](value if residual is None else value + residual)
        if scale is not None:
            value = fake_quantize(value, scale, self.zero_point, quant_min=0, **settings)
        needed = [v for v in leaves if v is not None]
        found = torch.autograd.grad(value, needed, self.grad.double(), allow_unused=True)
        return [value.detach(), *(torch.zeros_like(v) if g is None else g for v, g in zip(needed, found, strict=True))]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max() + 1e-3))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_gradients_are_those_of_torch(
    residual: bool, quantized: bool, activation: str | None, isa: str
) -> None:
    quantizer = {"quant_max": 63, "grad_scale": 0.25} if quantized else {}
    for shape, memory_format in [
        ((6, 5), None),
        ((3, 20, 7, 5), None),
        ((3, 20, 7, 5), CHANNELS_LAST),
        ((2, 150, 4, 4), CHANNELS_LAST),
        ((2, 3, 90, 91), None),
        ((2, 3, 30, 31), CHANNELS_LAST),
    ]:
        data = Data(shape, residual, quantized, memory_format)
        settings = {"activation": activation, "batch_statistics": True, **quantizer}
        found, expected = data.gradients(**settings), data.expected(**settings)
        assert_close(found, expected)
        assert found[0].stride() == data.leaves[0].stride() == found[1].stride()


def test_without_batch_norm_and_with_given_statistics() -> None:
    data = Data((4, 20, 6, 6), residual=True, quantized=True)
    settings = {"activation": "relu", "batch_statistics": False, "quant_max": 63}
    assert_close(data.gradients(**settings)[:3], data.expected(**settings)[:3])

    data.leaves[4:6] = mean, variance = torch.rand(20), torch.rand(20) + 0.5
    needed = [data.leaves[i] for i in (0, 1, 2, 3, 6)]
    output, *used = norm_activation(*data.leaves, data.zero_point, activation="relu", eps=0.1, quant_max=63)
    assert all(torch.equal(a, b) for a, b in zip(used, (mean, variance), strict=True))
    x, residual, weight, bias, _, _, scale = (None if v is None else v.detach().double() for v in data.leaves)
    leaves = [v.requires_grad_() for v in (x, residual, weight, bias, scale)]
    value = F.relu(F.batch_norm(x, mean.double(), variance.double(), weight, bias, False, 0.0, 0.1) + residual)
    value = fake_quantize(value, scale, data.zero_point, quant_min=0, quant_max=63)
    assert_close(
        [output.detach(), *torch.autograd.grad(output, needed, data.grad)],
        [value.detach(), *torch.autograd.grad(value, leaves, data.grad.double())],
    )


def test_statistics_of_values_far_from_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((16, 5, 20, 20), generator=generator) * 0.01 + 300
    x[:, 1] = 7.0
    x[0, 2, :2] = -1e4
    wide = x.double().transpose(0, 1).flatten(1)
    for values in (x, x.contiguous(memory_format=CHANNELS_LAST)):
        _, mean, variance = norm_activation(values, batch_statistics=True)
        torch.testing.assert_close(mean, wide.mean(1).float(), rtol=1e-6, atol=0)
        torch.testing.assert_close(variance, wide.var(1, correction=0).float(), rtol=1e-4, atol=1e-9)
        assert variance[1] == 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
def test_same_bits_for_any_instruction_set_and_thread_count(memory_format: torch.memory_format) -> None:
    threads = torch.get_num_threads()
    settings = {"activation": "relu", "batch_statistics": True, "quant_max": 63}
    try:
        for shape, residual, quantized in itertools.product([(5, 37, 30, 21), (7, 200, 5, 5)], [0, 1], [0, 1]):
            data = Data(shape, bool(residual), bool(quantized), memory_format)
            results = []
            for name, count in [("baseline", 1), ("avx2", 2), ("avx512vnni", 1), ("avx512vnni", 2)]:
                if name not in _core.supported_isas():
                    continue
                _core.force_isa(name)
                torch.set_num_threads(count)
                results.append(data.gradients(**settings))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(threads)
        _core.force_isa("")


def test_nan_stays_nan() -> None:
    x = torch.randn(2, 3, 4, 4)
    x[1, 2, 0, 0] = torch.nan
    output = norm_activation(x, torch.zeros_like(x), activation="relu")[0]
    assert torch.equal(output.isnan(), x.isnan())


def test_other_dtypes_go_through_torch() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.randn(4, 3, 5, 5, dtype=dtype)
        weight = torch.rand(3, dtype=dtype)
        output, mean, _ = norm_activation(x, None, weight, None, batch_statistics=True, activation="relu6")
        expected = F.relu6(F.batch_norm(x, None, None, weight, None, True))
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(mean, x.float().mean((0, 2, 3)), rtol=1e-3, atol=1e-3)


def test_under_functional_transforms() -> None:
    x, weight = torch.randn(4, 3, 5, 5), torch.rand(3)

    def loss(w: Tensor) -> Tensor:
        return norm_activation(x, None, w, None, batch_statistics=True, activation="relu")[0].sum()

    gradient = torch.func.grad(loss)(weight)
    (expected,) = torch.autograd.grad(loss(leaf := weight.clone().requires_grad_()), leaf)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "tanh"}, "activation: expected one of None, relu, relu6, got 'tanh'"),
        ({"weight": torch.ones(4)}, r"weight must be contiguous of shape \[3\], got \[4\]"),
        ({"residual": torch.ones(2, 3, 4)}, r"residual must have the shape of input, \[2, 3, 4, 4\], got \[2, 3, 4\]"),
        ({"scale": torch.tensor(0.1)}, "scale and zero_point must be given together"),
        ({"mean": torch.ones(3)}, "mean and variance must be given together"),
        ({"scale": torch.tensor(-0.1), "zero_point": torch.tensor(0, dtype=torch.int32)}, "scale must be finite, pos"),
        ({"input": torch.ones(1, 3, 1, 1)}, "batch statistics need more than 1 value per channel"),
        ({"input": torch.ones(3)}, "input must have at least 2 dimensions"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"input": torch.ones(2, 3, 4, 4), "batch_statistics": True}
    with pytest.raises((RuntimeError, ValueError), match=message):
        norm_activation(**arguments | changes)
