"""masked_weight on CUDA against its CPU results."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cuda_ops import CudaOps


@pytest.mark.parametrize("shape", [(1,), (0, 3), (5, 7), (6, 3, 3, 3), (3, 1400)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_the_cpu(cuda_ops: CudaOps, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    weight.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -0.0], dtype=dtype)[: weight.numel()]
    mask = torch.rand(shape, generator=generator) > 0.5
    pairs = [(weight, mask), (weight.T if weight.dim() == 2 else weight, mask.T if mask.dim() == 2 else mask)]
    if weight.dim() == 4:
        pairs.append((weight.contiguous(memory_format=torch.channels_last), mask))
    for weights, masks in pairs:
        expected = torch.ops.pqk.masked_weight(weights, masks)
        actual = cuda_ops.call("masked_weight", weights, masks)
        assert actual.stride() == expected.stride()
        bits = {4: torch.int32, 8: torch.int64, 2: torch.int16}[weight.element_size()]
        assert torch.equal(actual.view(bits), expected.view(bits))


def test_a_view_at_an_odd_address(cuda_ops: CudaOps) -> None:
    weight, mask = torch.randn(701), torch.rand(701) > 0.5
    on_device = weight.to(cuda_ops.device), mask.to(cuda_ops.device)
    for first in (1, 3, 4):
        actual = cuda_ops.masked_weight(on_device[0][first:], on_device[1][first:])
        assert torch.equal(actual.cpu(), torch.ops.pqk.masked_weight(weight[first:], mask[first:]))


def test_bad_arguments(cuda_ops: CudaOps) -> None:
    with pytest.raises(RuntimeError, match="mask must be Bool"):
        cuda_ops.call("masked_weight", torch.ones(3), torch.ones(3))
    with pytest.raises(RuntimeError, match="mask must have weight's shape"):
        cuda_ops.call("masked_weight", torch.ones(3), torch.ones(2).bool())
