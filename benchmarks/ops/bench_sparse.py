"""Sparse layers against dense ones at several sparsities, one thread, and where the two break even.

`pytest benchmarks/ops/bench_sparse.py` lists absolute times; `python benchmarks/ops/bench_sparse.py` compares in
interleaved rounds and writes `benchmarks/results/sparse.json`. Peers: torch's dense float32 layer (oneDNN or MKL) and
its CSR product. Sparse int8 layers are those of the runtime: `bench_int8.py`.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import paired

from pqk_ext import _core, build_info, ops

SPARSITIES = [0.5, 0.7, 0.8, 0.9, 0.95]
# input shape, out_channels, kernel size (0 for a linear layer)
SHAPES = {
    "64->64@32 3x3": ((1, 64, 32, 32), 64, 3),
    "64->64@32 3x3 b8": ((8, 64, 32, 32), 64, 3),
    "128->128@16 3x3": ((1, 128, 16, 16), 128, 3),
    "128->128@16 3x3 b8": ((8, 128, 16, 16), 128, 3),
    "256->256@16 1x1": ((1, 256, 16, 16), 256, 1),
    "linear 512x512 b64": ((64, 512), 512, 0),
    "linear 512x512 b1": ((1, 512), 512, 0),
}
Call = Callable[[], object]


@dataclass(frozen=True)
class Layer:
    """One layer with the same random mask for every implementation."""

    input: Tensor
    weight: Tensor
    kernel_size: int

    @staticmethod
    def random(shape: tuple[int, ...], out_channels: int, kernel_size: int, sparsity: float) -> Layer:
        generator = torch.Generator().manual_seed(0)
        taps = (kernel_size, kernel_size) if kernel_size else ()
        weight = torch.randn(out_channels, shape[1], *taps, generator=generator)
        kept = torch.rand(weight.shape, generator=generator) >= sparsity
        return Layer(torch.randn(shape, generator=generator), weight * kept, kernel_size)

    def csr(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        crow, col, values = _core.csr_from_dense(weight.flatten(1).numpy())
        return torch.from_numpy(crow), torch.from_numpy(col), torch.from_numpy(values)


def float_calls(layer: Layer) -> dict[str, Call]:
    """float32 implementations of the layer by name."""
    csr, padding = layer.csr(layer.weight), layer.kernel_size // 2
    if layer.kernel_size:
        return {
            "pqk": lambda: ops.sparse_conv2d(layer.input, *csr, kernel_size=layer.kernel_size, padding=padding),
            "torch dense": lambda: torch.nn.functional.conv2d(layer.input, layer.weight, padding=padding),
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_csr = torch.sparse_csr_tensor(*csr, size=tuple(layer.weight.shape))
    transposed = layer.input.t().contiguous()  # the layout that torch's CSR product likes best
    return {
        "pqk": lambda: ops.sparse_linear(layer.input, *csr),
        "torch dense": lambda: torch.nn.functional.linear(layer.input, layer.weight),
        "torch csr": lambda: torch_csr @ transposed,
    }


def masked_calls(layer: Layer) -> dict[str, Call]:
    """Forward and backward of a layer in training."""
    mask = layer.weight != 0
    factor, weight = mask.float(), layer.weight.clone().requires_grad_()
    input, padding = layer.input.clone().requires_grad_(), layer.kernel_size // 2

    def train(layer_output: Callable[[], Tensor]) -> object:
        output = layer_output()
        return torch.autograd.grad(output, (input, weight), torch.ones_like(output))

    if layer.kernel_size:
        return {
            "pqk": lambda: train(lambda: ops.masked_conv2d(input, weight, mask, padding=padding)),
            "torch dense": lambda: train(lambda: torch.nn.functional.conv2d(input, weight * factor, padding=padding)),
        }
    return {
        "pqk": lambda: train(lambda: ops.masked_linear(input, weight, mask)),
        "torch dense": lambda: train(lambda: torch.nn.functional.linear(input, weight * factor)),
    }


KINDS = {"float32": float_calls, "masked training": masked_calls}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("who", ["pqk", "torch dense", "torch csr"])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse(benchmark: Callable[..., object], kind: str, who: str, sparsity: float, shape: str) -> None:
    torch.set_num_threads(1)
    calls = KINDS[kind](Layer.random(*SHAPES[shape], sparsity))
    if who not in calls:
        pytest.skip(f"{kind} has no {who}")
    benchmark(calls[who])


def break_even(ratios: list[tuple[float, float]]) -> str:
    """The density at which the ratio crosses 1, between neighbouring measurements."""
    if ratios[0][1] >= 1:
        return f"above {1 - ratios[0][0]:.2f}"
    for (sparser, low), (sparsest, high) in itertools.pairwise(ratios):
        if low < 1 <= high:
            return f"{1 - (sparser + (1 - low) / (high - low) * (sparsest - sparser)):.2f}"
    return f"below {1 - ratios[-1][0]:.2f}"


def main() -> None:
    torch.set_num_threads(1)
    results, break_evens = [], {}
    for kind, make_calls in KINDS.items():
        for name, shape in SHAPES.items():
            ratios: dict[str, list[tuple[float, float]]] = {}
            for sparsity in SPARSITIES:
                calls = make_calls(Layer.random(*shape, sparsity))
                subject = calls.pop("pqk")
                for peer, baseline in calls.items():
                    label = f"{kind} {name} sparsity {sparsity:.0%} against {peer}"
                    result = paired.compare(label, subject, baseline, rounds=15)
                    print(result, flush=True)
                    results.append(result)
                    ratios.setdefault(peer, []).append((sparsity, result.ratio))
            for peer, values in ratios.items():
                label = f"{kind} {name} against {peer}"
                break_evens[label] = break_even(values)
                print(f"break-even density of {label}: {break_evens[label]}", flush=True)
    path = paired.write_results(
        "sparse", results, threads=1, break_even=break_evens, torch=torch.__version__, build=build_info()
    )
    print(path)


if __name__ == "__main__":
    main()
