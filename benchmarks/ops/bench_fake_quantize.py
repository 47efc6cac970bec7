"""Fake-quantize against torch's own operators, through autograd; against a copy; and masked against not. One thread.

`pytest benchmarks/ops/bench_fake_quantize.py` lists absolute times; `python benchmarks/ops/bench_fake_quantize.py`
compares in interleaved rounds, says which goals hold, and writes `benchmarks/results/fake_quantize.json`, in half a
minute. With `--device cuda` it does so on a GPU, against torch's operators and torch.compile, with a copy as the roof,
and writes `benchmarks/results/gpu/fake_quantize.json`. Freed memory stays in the process for both sides
(`pqk_ext.training.keep_freed_memory`), as in training.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import paired
import paired_cuda

from pqk_ext import build_info
from pqk_ext.ops import fake_quantize
from pqk_ext.training import keep_freed_memory

SHAPES = {"36k": (64, 64, 3, 3), "2.1M": (512, 4096)}
GPU_SHAPES = {"2.1M": (512, 4096), "67M": (8192, 8192)}  # within the second-level cache, and far beyond it
RANGE = {"quant_min": -127, "quant_max": 127}
Call = Callable[[], object]


class Data:
    """One tensor with its parameters; every call gives fresh outputs and gradients."""

    def __init__(self, shape: tuple[int, ...], device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)
        self.input = torch.randn(shape, generator=generator).to(device).requires_grad_()
        self.grad = torch.randn(shape, generator=generator).to(device)
        channels = shape[0]
        self.one = torch.tensor([0.02], device=device)
        self.one_zero = torch.zeros(1, dtype=torch.int32, device=device)
        self.scale = torch.full((channels,), 0.02, device=device, requires_grad=True)
        self.fixed_scale = self.scale.detach()
        self.zero_point = torch.zeros(channels, device=device, requires_grad=True)
        self.fixed_zero_point = torch.zeros(channels, dtype=torch.int32, device=device)
        self.mask = (torch.rand(shape, generator=generator) < 0.1).to(device)
        self.out = torch.empty(shape, device=device)

    def backward(self, output: Tensor, *leaves: Tensor) -> object:
        return torch.autograd.grad(output, leaves, self.grad)


def per_tensor(d: Data) -> object:
    return d.backward(fake_quantize(d.input, d.one, d.one_zero, **RANGE), d.input)


def torch_per_tensor(d: Data) -> object:
    return d.backward(torch.fake_quantize_per_tensor_affine(d.input, 0.02, 0, -127, 127), d.input)


def per_channel(d: Data) -> object:
    return d.backward(fake_quantize(d.input, d.fixed_scale, d.fixed_zero_point, axis=0, **RANGE), d.input)


def torch_per_channel(d: Data) -> object:
    output = torch.fake_quantize_per_channel_affine(d.input, d.fixed_scale, d.fixed_zero_point, 0, -127, 127)
    return d.backward(output, d.input)


def learnable(d: Data) -> object:
    output = fake_quantize(d.input, d.scale, d.zero_point, axis=0, **RANGE)
    return d.backward(output, d.input, d.scale, d.zero_point)


def torch_learnable(d: Data) -> object:
    output = torch._fake_quantize_learnable_per_channel_affine(d.input, d.scale, d.zero_point, 0, -127, 127, 1.0)
    return d.backward(output, d.input, d.scale, d.zero_point)


def forward_only(d: Data) -> object:
    with torch.no_grad():
        return fake_quantize(d.input, d.fixed_scale, d.fixed_zero_point, axis=0, **RANGE)


def torch_forward_only(d: Data) -> object:
    with torch.no_grad():
        return torch.fake_quantize_per_channel_affine(d.input, d.fixed_scale, d.fixed_zero_point, 0, -127, 127)


def forward_out(d: Data) -> object:
    with torch.no_grad():
        return fake_quantize(d.input, d.fixed_scale, d.fixed_zero_point, axis=0, out=d.out, **RANGE)


def copy(d: Data) -> object:
    with torch.no_grad():
        return d.out.copy_(d.input)


def forward_masked(d: Data) -> object:
    with torch.no_grad():
        return fake_quantize(d.input, d.fixed_scale, d.fixed_zero_point, axis=0, mask=d.mask, **RANGE)


def weight(d: Data, mask: Tensor | None = None) -> object:
    """As layers call it: a learned step size and no zero point."""
    output = fake_quantize(d.input, d.scale, d.fixed_zero_point, axis=0, mask=mask, **RANGE)
    return d.backward(output, d.input, d.scale)


def weight_masked(d: Data) -> object:
    return weight(d, d.mask)


# Name -> (subject, baseline, bytes an element that the subject must read and write).
CASES = {
    "per_tensor": (per_tensor, torch_per_tensor, 16.25),
    "per_channel": (per_channel, torch_per_channel, 16.25),
    "learnable_per_channel": (learnable, torch_learnable, 20),
    "forward_per_channel": (forward_only, torch_forward_only, 8),
    "forward_out (peer: copy)": (forward_out, copy, 8),
    "masked forward (peer: not masked)": (forward_masked, forward_only, 9),
    "masked (peer: not masked)": (weight_masked, weight, 22),
}


def composite(input: Tensor, scale: Tensor) -> Tensor:
    """What a user writes, for torch.compile to fuse."""
    rows = scale.view(-1, *[1] * (input.dim() - 1))
    return (input / rows).round().clamp(-127, 127) * rows


def torch_compiled(d: Data) -> object:
    with torch.no_grad():
        return compiled()(d.input, d.fixed_scale)


@functools.cache
def compiled() -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(composite)


GPU_CASES = CASES | {"forward_per_channel (peer: torch.compile)": (forward_only, torch_compiled, 8)}
# On a GPU, of the largest tensor: what the ratio must reach, and the share of a copy's speed.
GPU_GOALS = {"forward_per_channel 67M": (1.5, 0.85), "learnable_per_channel 67M": (2.2, None)}
# What the ratio must reach, at least.
GOALS = {
    "per_tensor 2.1M": 10,
    "learnable_per_channel 2.1M": 15,
    "forward_out (peer: copy) 2.1M": 1 / 1.25,
    "masked forward (peer: not masked) 2.1M": 1 / 1.1,
    "masked (peer: not masked) 2.1M": 1 / 1.1,
}


def verdicts(results: list[paired.Paired]) -> list[str]:
    """One line for each goal."""
    ratios = {result.name: result.ratio for result in results}
    return [
        f"goal {'held' if ratios[name] >= goal else 'missed'}: {name}, ratio {ratios[name]:.2f}, at least {goal:.2f}"
        for name, goal in GOALS.items()
        if name in ratios
    ]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("who", ["subject", "baseline"])
def test_fake_quantize(benchmark: Callable[..., object], who: str, case: str, size: str) -> None:
    torch.set_num_threads(1)
    data = Data(SHAPES[size])
    benchmark(CASES[case][0 if who == "subject" else 1], data)


def gpu_verdicts(results: list[paired.Paired]) -> list[str]:
    """One line for each goal on a GPU."""
    lines = []
    for result in results:
        goal, share = GPU_GOALS.get(result.name, (None, None))
        if goal is None:
            continue
        held = result.ratio >= goal and (share is None or (result.copy_share or 0.0) >= share)
        lines.append(f"goal {'held' if held else 'missed'}: {result}, at least {goal}, share {share}")
    return lines


def main_on_gpu() -> None:
    results = []
    for size, shape in GPU_SHAPES.items():
        data = Data(shape, "cuda")
        for name, (ours, theirs, bytes_an_element) in GPU_CASES.items():
            result = paired_cuda.compare(
                f"{name} {size}",
                lambda ours=ours, data=data: ours(data),
                lambda theirs=theirs, data=data: theirs(data),
                bytes_moved=int(bytes_an_element * data.input.numel()),
            )
            print(result, flush=True)
            results.append(result)
            paired.write_results("gpu/fake_quantize", results, **paired_cuda.gpu(), build=build_info())
    print("\n".join(gpu_verdicts(results)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    if parser.parse_args().device == "cuda":
        main_on_gpu()
        return
    torch.set_num_threads(1)
    keep_freed_memory()
    results = []
    for size, shape in SHAPES.items():
        data = Data(shape)
        for name, (ours, theirs, bytes_an_element) in CASES.items():
            nbytes = int(bytes_an_element * data.input.numel())
            result = paired.compare(
                f"{name} {size}",
                lambda ours=ours, data=data: ours(data),
                lambda theirs=theirs, data=data: theirs(data),
                bytes_moved=nbytes,
            )
            print(f"{result}, {nbytes / result.subject_us / 1e3:.1f} GB/s")
            results.append(result)
    print("\n".join(verdicts(results)))
    path = paired.write_results("fake_quantize", results, threads=1, torch=torch.__version__, build=build_info())
    print(path)


if __name__ == "__main__":
    main()
