"""fake_quantize on CUDA against its CPU results, and the CUDA library's own dependencies."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pqk_ext
from pqk_ext.ops import fake_quantize

LIBRARY = Path(pqk_ext.__file__).parent / "_ops_cuda.so"
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NO GPU OR NO CUDA BUILD OF TORCH: the CUDA kernels were NOT run"
)
needs_library = pytest.mark.skipif(
    not LIBRARY.exists(), reason="_ops_cuda.so was NOT built: no CUDA compiler was found"
)
SHAPES_AND_AXES = [
    ((4096 * 3 + 5,), None),
    ((5, 4099), 0),
    ((64, 3, 3, 3), 0),
    ((300, 2, 3, 3), 0),
    ((3, 20, 17, 5), 1),
    ((513, 40), 1),
    ((2, 1100), -1),
    ((1, 3), 0),
    ((7, 0, 2), 0),
]


def run(device: str, learn: bool, tensors: dict[str, Tensor], **kwargs: Any) -> list[Tensor]:
    """Output and gradients on the CPU, computed on `device`."""
    moved = {name: t.to(device) for name, t in tensors.items()}
    mask, grad_output = moved.pop("mask"), moved.pop("grad_output")
    leaves = [t.requires_grad_(name == "input" or learn) for name, t in moved.items()]
    output = fake_quantize(*leaves, mask=mask, **kwargs)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [t.cpu() for t in (output.detach(), *torch.autograd.grad(output, wanted, grad_output))]


@needs_gpu
@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_the_cpu(shape: tuple[int, ...], axis: int | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    channels = 1 if axis is None else shape[axis]
    for channels_last, learn in itertools.product((False, True), (False, True)):
        input = torch.randn(shape, generator=generator).to(dtype)
        if input.numel():
            input.view(-1)[0] = torch.nan
        if channels_last and input.dim() == 4:
            input = input.contiguous(memory_format=torch.channels_last)
        tensors = {
            "input": input,
            "scale": (torch.rand(channels, generator=generator) * 0.02 + 0.005).to(parameter_dtype),
            "zero_point": (torch.randn(channels, generator=generator) * 5).to(parameter_dtype),
            "mask": torch.rand(shape, generator=generator) > 0.2,
            "grad_output": torch.randn(shape, generator=generator).to(dtype),
        }
        kwargs = {"quant_min": -127, "quant_max": 127, "axis": axis}
        expected, actual = run("cpu", learn, tensors, **kwargs), run("cuda", learn, tensors, **kwargs)
        again = run("cuda", learn, tensors, **kwargs)
        for cpu, cuda, repeated in zip(expected, actual, again, strict=True):
            torch.testing.assert_close(cuda, repeated, rtol=0, atol=0, equal_nan=True)
            exact = cpu.shape == input.shape
            tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-4, "atol": 1e-3}
            torch.testing.assert_close(cuda, cpu, equal_nan=True, **tolerance)


@needs_gpu
def test_follows_the_current_stream() -> None:
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


@needs_library
def test_library_needs_no_cuda_library() -> None:
    dynamic = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert needed
    assert not [name for name in needed if "cuda" in name or "cudart" in name]
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", LIBRARY], capture_output=True, text=True, check=True
    ).stdout.split()
    # torch's CPU library defines this constant.
    assert [s for s in symbols if "cuda" in s.lower()] == ["aoti_torch_device_type_cuda"]


@needs_library
def test_registers_the_cuda_kernels() -> None:
    torch.ops.load_library(str(LIBRARY))
    for name in ("fake_quantize", "fake_quantize_ste", "fake_quantize_backward", "fake_quantize_ste_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pqk::{name}", "CUDA")
