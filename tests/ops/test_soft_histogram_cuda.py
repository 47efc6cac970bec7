"""soft_histogram on CUDA: the bits of the CPU's counts and gradients, and deterministic sums for the scales."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.cuda_ops import CudaOps

SHAPES = [(3,), (0, 4), (4, 0), (1, 1), (5, 7), (4, 3, 3, 3), (37, 36), (1, 1301), (3, 4, 300), (2, 2052)]


def sample(shape: tuple[int, ...], quant_max: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, some beyond the codes, some on a code, some 0; scales; a mask."""
    generator = torch.Generator().manual_seed(quant_max)
    scale = torch.rand(shape[0], generator=generator) * 0.1 + 0.05
    weight = torch.randn(shape, generator=generator) * quant_max * 0.06
    flat = weight.view(-1)
    flat[::5] = 0.0
    flat[2::7] = float(scale[0]) if len(scale) else 0.0
    return weight, scale, torch.rand(shape, generator=generator) > 0.4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quant_max", [1, 7, 127])
def test_equals_the_cpu(cuda_ops: CudaOps, shape: tuple[int, ...], quant_max: int) -> None:
    weight, scale, mask = sample(shape, quant_max)
    grad = torch.arange(2 * quant_max + 1, dtype=torch.float64).sin()
    for given in (None, mask):
        args = (weight, scale, quant_max, given)
        counts = cuda_ops.call("soft_histogram", *args, 1.0)
        assert torch.equal(counts, torch.ops.pqk.soft_histogram(*args, 1.0))
        of_weight, of_scale = cuda_ops.call("soft_histogram_backward", grad, *args, 0.3)
        expected_weight, expected_scale = torch.ops.pqk.soft_histogram_backward(grad, *args, 0.3)
        assert torch.equal(of_weight, expected_weight)
        torch.testing.assert_close(of_scale, expected_scale, rtol=1e-6, atol=1e-9)
        assert torch.equal(of_scale, cuda_ops.call("soft_histogram_backward", grad, *args, 0.3)[1])


def test_special_values(cuda_ops: CudaOps) -> None:
    values = [[torch.inf, -torch.inf, -0.0, 1e-45, -1e-45, 3e38, 2.0, 2.5, torch.nan]]
    special, ones = torch.tensor(values), torch.ones(1)
    grad = torch.arange(7, dtype=torch.float64)
    for weight, mask in [(special[:, :-1], None), (special, None), (special, ~special.isnan())]:
        args = (weight, ones, 3, mask, 1.0)
        expected = torch.ops.pqk.soft_histogram(*args)
        torch.testing.assert_close(cuda_ops.call("soft_histogram", *args), expected, rtol=0, atol=0, equal_nan=True)
        of_weight, _ = cuda_ops.call("soft_histogram_backward", grad, *args)
        assert torch.equal(of_weight, torch.ops.pqk.soft_histogram_backward(grad, *args)[0])


def test_other_layouts(cuda_ops: CudaOps) -> None:
    weight, scale, mask = sample((6, 40), 7)
    device = cuda_ops.device
    strided = weight.T.contiguous().to(device).T
    shifted = torch.cat([torch.zeros(1), weight.flatten()]).to(device)[1:].view(6, 40)
    expected = torch.ops.pqk.soft_histogram(weight, scale, 7, mask)
    for view in (strided, shifted):
        counts = cuda_ops.soft_histogram(view, scale.to(device), 7, mask.T.contiguous().to(device).T)
        assert torch.equal(counts.cpu(), expected)


def test_many_equal_elements_are_counted_exactly(cuda_ops: CudaOps) -> None:
    columns = 20_000 if cuda_ops.emulated else 40_000_000
    weight = torch.full((2, columns), 0.75, device=cuda_ops.device)
    counts = cuda_ops.soft_histogram(weight, torch.ones(2, device=cuda_ops.device), 1)
    assert counts.tolist() == [0, columns // 2, columns * 3 // 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.tensor(1.0)}, "input must have at least 1 dimension, got a scalar"),
        ({"input": torch.ones(2, 4).double()}, "input must be Float, got Double"),
        ({"scale": torch.ones(3)}, r"scale must have shape \[2\] for axis 0 of input of shape \[2, 4\], got \[3\]"),
        ({"quant_max": 128}, "expected -127 <= quant_min <= quant_max <= 127, got quant_min -128"),
        ({"mask": torch.ones(2, 4)}, "mask must be Bool, got Float"),
    ],
)
def test_bad_arguments_are_named(cuda_ops: CudaOps, change: dict[str, object], message: str) -> None:
    arguments = {"input": torch.ones(2, 4), "scale": torch.ones(2), "quant_max": 7, **change}
    with pytest.raises(RuntimeError, match=f"pqk::soft_histogram: {message}"):
        cuda_ops.call("soft_histogram", **arguments)
