"""fake_quantize on CUDA against its CPU results."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pqk_ext.ops import fake_quantize
from tests.ops.cuda_ops import CudaOps, require_gpu

SHAPES_AND_AXES = [
    ((4096 + 5,), None),
    ((3, 4099), 0),
    ((2, 4104), 0),
    ((6, 3, 3, 3), 0),
    ((12, 2, 3, 3), 0),
    ((3, 5, 17, 5), 1),
    ((2, 3, 8, 8), 1),
    ((258, 20), 1),
    ((2, 300), -1),
    ((1, 3), 0),
    ((7, 0, 2), 0),
]
INFINITE = [torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 0.0, -0.0]


def tensors(shape: tuple[int, ...], axis: int | None, dtype: torch.dtype, channels_last: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    channels = 1 if axis is None else shape[axis]
    input = torch.randn(shape, generator=generator).to(dtype)
    input.view(-1)[: len(INFINITE)] = torch.tensor(INFINITE, dtype=dtype)[: input.numel()]
    if channels_last and input.dim() == 4:
        input = input.contiguous(memory_format=torch.channels_last)
    return {
        "grad_output": torch.randn(shape, generator=generator).to(dtype),
        "input": input,
        "scale": (torch.rand(channels, generator=generator) * 0.02 + 0.005).to(parameter_dtype),
        "zero_point": (torch.randn(channels, generator=generator) * 5).to(parameter_dtype),
        "mask": torch.rand(shape, generator=generator) > 0.2,
    }


def combinations(shape: tuple[int, ...]) -> list[tuple[bool, bool]]:
    """Whether the input is channels_last, and whether there is a mask."""
    return list(itertools.product((False, True) if len(shape) == 4 else (False,), (False, True)))


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """To the bit, but for the bits of a NaN; strides too."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert actual.stride() == expected.stride()
    if not actual.is_floating_point():
        assert torch.equal(actual, expected)
        return
    assert torch.equal(actual.isnan(), expected.isnan())
    actual, expected = actual.nan_to_num(nan=0.5), expected.nan_to_num(nan=0.5)
    assert torch.equal(actual, expected)
    assert torch.equal(actual.signbit(), expected.signbit())


@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_the_cpu(cuda_ops: CudaOps, shape: tuple[int, ...], axis: int | None, dtype: torch.dtype) -> None:
    for channels_last, masked in combinations(shape):
        t = tensors(shape, axis, dtype, channels_last)
        mask = t["mask"] if masked else None
        for zero_point in (t["zero_point"], t["zero_point"].int()):
            arguments = t["input"], t["scale"], zero_point, -127, 120, axis, mask
            cpu = torch.ops.pqk.fake_quantize(*arguments)
            assert_equal(cuda_ops.call("fake_quantize", *arguments), cpu)
            cpu, cpu_bits = torch.ops.pqk.fake_quantize_ste(*arguments)
            cuda, cuda_bits = cuda_ops.call("fake_quantize_ste", *arguments)
            assert_equal(cuda, cpu)
            assert_equal(cuda_bits, cpu_bits)
            gradient = torch.empty_like(cpu).copy_(t["grad_output"])
            assert_equal(
                cuda_ops.call("fake_quantize_ste_backward", gradient, cpu_bits),
                torch.ops.pqk.fake_quantize_ste_backward(gradient, cpu_bits),
            )


@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_backward_equals_the_cpu(
    cuda_ops: CudaOps, shape: tuple[int, ...], axis: int | None, dtype: torch.dtype
) -> None:
    for channels_last, masked in combinations(shape):
        t = tensors(shape, axis, dtype, channels_last)
        mask = t["mask"] if masked else None
        for zero_point in (t["zero_point"], t["zero_point"].int()):
            arguments = t["grad_output"], t["input"], t["scale"], zero_point, -127, 127, axis, mask, 0.25
            cpu = torch.ops.pqk.fake_quantize_backward(*arguments)
            cuda = cuda_ops.call("fake_quantize_backward", *arguments)
            assert_equal(cuda[0], cpu[0])
            for actual, expected in zip(cuda[1:], cpu[1:], strict=True):
                # Sums, in another order than the CPU's.
                rtol, atol = (1e-12, 1e-11) if dtype == torch.float64 else (1e-4, 1e-3)
                torch.testing.assert_close(actual, expected, equal_nan=True, rtol=rtol, atol=atol)


def test_sums_of_many_slices(cuda_ops: CudaOps) -> None:
    """So many partial sums that a block, not a warp, adds up those of one channel."""
    numel = 4096 * 64 + 3
    input = torch.full((numel,), 0.3)
    arguments = torch.ones(numel), input, torch.ones(1), torch.zeros(1), 0, 15
    grad_input, grad_scale, grad_zero_point = cuda_ops.call("fake_quantize_backward", *arguments)
    assert torch.equal(grad_input, torch.ones(numel))
    assert grad_zero_point.item() == 0
    torch.testing.assert_close(grad_scale.item(), -0.3 * numel, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_tensors_at_odd_addresses(cuda_ops: CudaOps, shift: int) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(2000 + shift, generator=generator)
    scale, zero_point = torch.tensor([0.01]), torch.tensor([3], dtype=torch.int32)
    device = cuda_ops.device
    x = whole.to(device)[shift:]
    assert x.data_ptr() % 16 == 4 * shift % 16
    expected, bits = torch.ops.pqk.fake_quantize_ste(whole[shift:], scale, zero_point, -128, 127)
    actual, actual_bits = cuda_ops.fake_quantize_ste(x, scale.to(device), zero_point.to(device), -128, 127)
    assert_equal(actual.cpu(), expected)
    assert_equal(actual_bits.cpu(), bits)
    straight = cuda_ops.fake_quantize_ste_backward(x, actual_bits)
    assert_equal(straight.cpu(), torch.ops.pqk.fake_quantize_ste_backward(whole[shift:], bits))


def test_backward_repeats_to_the_bit(cuda_ops: CudaOps) -> None:
    for shape, axis in [((5, 4099), 0), ((600, 40), 1)]:
        t = tensors(shape, axis, torch.float32, False)
        t["input"] = t["input"].nan_to_num()
        arguments = t["grad_output"], t["input"], t["scale"], t["zero_point"], -127, 127, axis
        first, again = (cuda_ops.call("fake_quantize_backward", *arguments) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_out(cuda_ops: CudaOps) -> None:
    t = tensors((5, 60), 0, torch.float32, False)
    device = cuda_ops.device
    moved = [t[name].to(device) for name in ("input", "scale", "zero_point")]
    expected = torch.ops.pqk.fake_quantize(t["input"], t["scale"], t["zero_point"], -8, 7, 0)
    for out in (torch.empty(5, 60, device=device), torch.empty(60, 5, device=device).T, moved[0]):
        cuda_ops.namespace.fake_quantize.out(*moved, -8, 7, 0, out=out)
        assert_equal(out.cpu().contiguous(), expected)


def test_refuses_a_wrong_shape(cuda_ops: CudaOps) -> None:
    with pytest.raises(RuntimeError, match=r"scale must have shape \[3\]"):
        cuda_ops.call("fake_quantize", torch.ones(3, 2), torch.ones(2), torch.zeros(2), -8, 7, 0)


@pytest.mark.cuda
def test_gradients_through_the_function() -> None:
    require_gpu()
    t = tensors((64, 3, 3, 3), 0, torch.float32, False)

    def run(device: str, learn: bool) -> list[Tensor]:
        moved = {name: value.to(device) for name, value in t.items()}
        mask, grad_output = moved.pop("mask"), moved.pop("grad_output")
        leaves = [value.requires_grad_(name == "input" or learn) for name, value in moved.items()]
        arguments: Any = {"quant_min": -127, "quant_max": 127, "axis": 0, "mask": mask}
        output = fake_quantize(*leaves, **arguments)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        return [value.cpu() for value in (output.detach(), *torch.autograd.grad(output, wanted, grad_output))]

    for learn in (False, True):
        for cpu, cuda in zip(run("cpu", learn), run("cuda", learn), strict=True):
            torch.testing.assert_close(cuda, cpu, equal_nan=True, rtol=1e-5, atol=1e-4)


@pytest.mark.cuda
def test_follows_the_current_stream() -> None:
    require_gpu()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        input = torch.ones(1 << 24, device="cuda")
        for _ in range(10):
            input = input * 1.0
        output = fake_quantize(
            input,
            torch.tensor([0.5], device="cuda"),
            torch.tensor([0], dtype=torch.int32, device="cuda"),
            quant_min=-8,
            quant_max=7,
        )
    stream.synchronize()
    assert output.eq(1.0).all()
