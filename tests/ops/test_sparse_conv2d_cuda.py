"""sparse_conv2d and int8_sparse_conv2d on CUDA against their CPU results, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pqk_ext.ops._sparse import sample_matrix
from pqk_ext.ops._spec import SPECS
from tests.ops.cuda_ops import CudaOps, cuda_ops
from tests.ops.test_sparse_conv2d import convolutions

__all__ = ["cuda_ops"]


def assert_same_bits(cuda_ops: CudaOps, name: str, *args: object) -> Tensor:
    expected = getattr(torch.ops.pqk, name)(*args)
    actual: Tensor = cuda_ops.call(name, *args)
    assert actual.stride() == expected.stride()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    return actual


def geometry(convolution: dict[str, Any]) -> list[Any]:
    return [convolution[name] for name in ("stride", "padding", "dilation", "groups")]


@pytest.mark.parametrize("name", ["sparse_conv2d", "int8_sparse_conv2d"])
def test_samples(cuda_ops: CudaOps, name: str) -> None:
    for args, kwargs in SPECS[name].opcheck_samples():
        assert not kwargs
        assert_same_bits(cuda_ops, name, *(a.detach() if isinstance(a, Tensor) else a for a in args))


@given(convolutions(), st.integers(0, 255))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_layer(cuda_ops: CudaOps, case: dict[str, Any], zero_point: int) -> None:
    generator = torch.Generator().manual_seed(zero_point)
    shape, out_channels, convolution = case["shape"], case["out_channels"], case["convolution"]
    kernel = convolution["kernel_size"]
    columns = shape[1] // convolution["groups"] * kernel[0] * kernel[1]
    layout = torch.channels_last if case["channels_last"] else torch.contiguous_format
    for dtype in (torch.float32, torch.float64):
        input = torch.randn(shape, generator=generator, dtype=dtype).to(memory_format=layout)
        csr = sample_matrix(out_channels, columns, case["sparsity"], dtype, generator)
        bias = torch.randn(out_channels, generator=generator, dtype=dtype)
        assert_same_bits(cuda_ops, "sparse_conv2d", input, *csr, bias, kernel, *geometry(convolution))
    codes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(memory_format=layout)
    csr = sample_matrix(out_channels, columns, case["sparsity"], torch.int8, generator)
    multiplier, bias = torch.rand(out_channels, generator=generator) * 2e-3, torch.full((out_channels,), 120.0)
    for float_output in (False, True):
        arguments = (codes, *csr, multiplier, bias, kernel, zero_point, 2, 250, *geometry(convolution), float_output)
        assert_same_bits(cuda_ops, "int8_sparse_conv2d", *arguments)


def test_an_infinite_weight_on_the_border(cuda_ops: CudaOps) -> None:
    # The border counts as zeros: with an infinite weight its products are NaN, here as on the CPU.
    csr = (
        torch.tensor([0, 2], dtype=torch.int32),
        torch.tensor([0, 4], dtype=torch.int32),
        torch.tensor([torch.inf, 1.0]),
    )
    for size in (3, 9):
        arguments = (torch.ones(1, 1, size, size), *csr, None, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1)
        output = assert_same_bits(cuda_ops, "sparse_conv2d", *arguments)
        assert output[0, 0, 0].isnan().all()
        assert output[0, 0, 1, 1].isinf()


def test_depthwise(cuda_ops: CudaOps) -> None:
    generator = torch.Generator().manual_seed(5)
    csr = sample_matrix(24, 9, 0.4, torch.int8, generator)
    codes = torch.randint(0, 256, (2, 24, 8, 8), generator=generator, dtype=torch.uint8)
    arguments = (codes, *csr, torch.full((24,), 0.01), torch.full((24,), 100.0), [3, 3], 9, 0, 255)
    assert_same_bits(cuda_ops, "int8_sparse_conv2d", *arguments, [1, 1], [1, 1, 1, 1], [1, 1], 24, False)
