"""quantize and dequantize on CUDA against their CPU results."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cuda_ops import CudaOps

SHAPES_AND_AXES = [((4097,), None), ((3, 2, 8, 8), 1), ((5, 3, 3, 3), 0), ((70, 20), -1), ((2, 5, 7), 1), ((4, 0), 0)]
SPECIAL = [torch.inf, -torch.inf, 1e30, -1e30, 0.0, -0.0, 0.5, 1.5, 2.5]


@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
def test_equal_the_cpu(cuda_ops: CudaOps, shape: tuple[int, ...], axis: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    channels = 1 if axis is None else shape[axis]
    scale = torch.rand(channels, generator=generator) * 0.02 + 0.005
    for quant_min, quant_max in ((-128, 127), (0, 255), (-4, 3)):
        zero_point = torch.randint(quant_min, quant_max + 1, (channels,), generator=generator, dtype=torch.int32)
        input = torch.randn(shape, generator=generator)
        input.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL)[: input.numel()]
        expected = torch.ops.pqk.quantize(input, scale, zero_point, quant_min, quant_max, axis)
        codes = cuda_ops.call("quantize", input, scale, zero_point, quant_min, quant_max, axis)
        assert codes.dtype == expected.dtype
        assert torch.equal(codes, expected)
        values = torch.ops.pqk.dequantize(expected, scale, zero_point, axis)
        assert torch.equal(cuda_ops.call("dequantize", expected, scale, zero_point, axis), values)


def test_tensors_at_odd_addresses_and_strides(cuda_ops: CudaOps) -> None:
    whole = torch.randn(40, 33, generator=torch.Generator().manual_seed(0))
    scale, zero_point = torch.tensor([0.01]), torch.tensor([7], dtype=torch.int32)
    parameters = scale.to(cuda_ops.device), zero_point.to(cuda_ops.device)
    for view in (lambda x: x.view(-1)[1:], lambda x: x.T, lambda x: x[:, 3:]):
        expected = torch.ops.pqk.quantize(view(whole), scale, zero_point, -128, 127)
        codes = cuda_ops.quantize(view(whole.to(cuda_ops.device)), *parameters, -128, 127)
        assert torch.equal(codes.cpu(), expected)
    codes = torch.randint(0, 256, (400,), dtype=torch.uint8)
    expected = torch.ops.pqk.dequantize(codes[3:], scale, zero_point)
    assert torch.equal(cuda_ops.dequantize(codes.to(cuda_ops.device)[3:], *parameters).cpu(), expected)


def test_a_nan_becomes_quant_min(cuda_ops: CudaOps) -> None:
    input = torch.tensor([1.0, torch.nan, -1.0])
    codes = cuda_ops.call("quantize", input, torch.ones(1), torch.zeros(1, dtype=torch.int32), -8, 7)
    assert codes.tolist() == [1, -8, -1]


def test_bad_arguments(cuda_ops: CudaOps) -> None:
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="input must be Float"):
        cuda_ops.call("quantize", torch.ones(3).double(), one, zero, 0, 255)
    with pytest.raises(RuntimeError, match="quant_min"):
        cuda_ops.call("quantize", torch.ones(3), one, zero, -1, 255)
    with pytest.raises(RuntimeError, match="zero_point must be Int"):
        cuda_ops.call("dequantize", torch.ones(3, dtype=torch.uint8), one, one)
