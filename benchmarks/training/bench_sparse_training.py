"""Convolutions and linear layers of training under a pruning mask, against torch's dense ones.

`python benchmarks/training/bench_sparse_training.py` takes about three minutes and writes
`benchmarks/results/sparse_training.json`. Dense is torch's own function with a plain weight, in the faster of
contiguous and channels_last on that shape; all with the memory settings of `fit`. `auto` is the layer of a prepared
network, whose weight is masked already and is not quantized here: where it picks torch's kernels, a ratio away from
1 is the noise of the machine. `sparse` runs the kernels of kept weights everywhere. A ratio is the median over
interleaved rounds of dense time / our time; above 1 we are faster.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

sys.path.insert(0, str(Path(__file__).parents[1]))
import paired

from pqk_ext import PQKConfig, build_info
from pqk_ext.nn import PQKConv2d, PQKLinear
from pqk_ext.ops import masked_conv2d, masked_linear
from pqk_ext.training import keep_freed_memory

STEM = "sparse_training"
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Step = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    """A convolution with padding kernel // 2, or with kernel 0 a linear layer."""

    channels: int
    out_channels: int
    height: int = 1
    width: int = 1
    kernel: int = 3
    stride: int = 1


SHAPES = {
    "ResNet-20, 16 channels": Shape(16, 16, 32, 32),
    "ResNet-20, 16 to 32 channels, stride 2": Shape(16, 32, 32, 32, stride=2),
    "ResNet-20, 32 channels": Shape(32, 32, 16, 16),
    "ResNet-20, 64 channels": Shape(64, 64, 8, 8),
    "ResNet-32 wide, 64 channels": Shape(64, 64, 32, 32),
    "ResNet-32 wide, 128 channels": Shape(128, 128, 16, 16),
    "ResNet-32 wide, 256 channels": Shape(256, 256, 8, 8),
    "VGG-11, 256 to 512 channels": Shape(256, 512, 4, 4),
    "VGG-11, 512 channels": Shape(512, 512, 2, 2),
    "DS-CNN, 64 channels, 1x1": Shape(64, 64, 25, 5, kernel=1),
    "linear, 512 to 512": Shape(512, 512, kernel=0),
    "linear, 2048 to 1000": Shape(2048, 1000, kernel=0),
}


class Layer:
    """One layer's tensors, and its forward and training steps, dense and masked."""

    def __init__(self, shape: Shape, batch: int, sparsity: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shape = shape
        is_linear = shape.kernel == 0
        weight_shape = (shape.out_channels, shape.channels, shape.kernel, shape.kernel)
        self.weight = torch.randn(weight_shape[:2] if is_linear else weight_shape, generator=generator)
        self.mask = torch.rand(self.weight.shape, generator=generator) >= sparsity
        image = (batch, shape.channels, shape.height, shape.width)
        self.weight *= self.mask
        self.input = torch.randn(image[:2] if is_linear else image, generator=generator)
        self.grad = torch.randn(self._dense(self.input, self.weight).shape, generator=generator)

    def _dense(self, input: Tensor, weight: Tensor) -> Tensor:
        kernel = self.shape.kernel
        return linear(input, weight) if kernel == 0 else conv2d(input, weight, None, self.shape.stride, kernel // 2)

    def _prepared(self, weight: Tensor, mask: Tensor) -> Callable[[Tensor], Tensor]:
        shape = self.shape
        if shape.kernel == 0:
            source = torch.nn.Linear(shape.channels, shape.out_channels, bias=False)
            layer: PQKConv2d | PQKLinear = PQKLinear(source, 8, True, PQKConfig())
        else:
            sizes = shape.channels, shape.out_channels, shape.kernel, shape.stride, shape.kernel // 2
            layer = PQKConv2d(torch.nn.Conv2d(*sizes, bias=False), 8, True, PQKConfig())
        layer.weight_mask = mask
        layer.student_weight = lambda: weight  # type: ignore[method-assign]
        return layer

    def _masked(self, weight: Tensor, mask: Tensor, kernel: str) -> Callable[[Tensor], Tensor]:
        if kernel == "auto":
            return self._prepared(weight, mask)
        if self.shape.kernel == 0:
            return lambda input: masked_linear(input, weight, mask, kernel=kernel, assume_masked=True)
        stride, padding = self.shape.stride, self.shape.kernel // 2
        return lambda input: masked_conv2d(
            input, weight, mask, None, stride, padding, kernel=kernel, assume_masked=True
        )

    def steps(self, memory_format: str, masked: str | None) -> tuple[Step, Step]:
        """Forward without gradients; forward and backward. ``masked`` is the kernel of the masked op, or None."""
        layout = FORMATS[memory_format]

        def lay(tensor: Tensor) -> Tensor:
            return tensor.clone() if self.shape.kernel == 0 else tensor.clone(memory_format=layout)

        input, weight, mask, grad = lay(self.input), lay(self.weight), lay(self.mask), lay(self.grad)
        leaves = [input.requires_grad_(), weight.requires_grad_()]
        function = (lambda x: self._dense(x, weight)) if masked is None else self._masked(weight, mask, masked)

        def forward() -> None:
            with torch.no_grad():
                function(input)

        def train() -> None:
            torch.autograd.grad(function(input), leaves, grad)

        return forward, train

    def dense(self) -> tuple[str, tuple[Step, Step]]:
        """Torch's layer in the layout that trains faster."""
        if self.shape.kernel == 0:
            return "contiguous", self.steps("contiguous", None)
        candidates = {name: self.steps(name, None) for name in FORMATS}
        best = min(candidates, key=lambda name: _fastest(candidates[name][1]))
        return best, candidates[best]


def _fastest(step: Step) -> float:
    times = []
    for _ in range(4):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(shape: Shape, batch: int, sparsity: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each kernel, layout and step."""
    layer = Layer(shape, batch, sparsity)
    dense_format, dense = layer.dense()
    rows = []
    for memory_format in ["channels_last", *(["contiguous"] if options.contiguous and shape.kernel else [])]:
        for kernel in options.kernels:
            ours = layer.steps(memory_format, kernel)
            for step, subject, baseline in zip(("forward", "training"), ours, dense, strict=True):
                if step not in options.steps:
                    continue
                result = paired.compare(
                    f"{kernel} {step}", subject, baseline, rounds=options.rounds, seconds_a_round=options.seconds
                )
                rows.append({"kernel": kernel, "step": step, "layout": memory_format, "dense_layout": dense_format})
                rows[-1] |= asdict(result)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.5, 0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.004, help="of each in a round; at least one step")
    parser.add_argument("--kernels", nargs="*", default=["auto"], choices=["auto", "dense", "sparse"])
    parser.add_argument("--steps", nargs="*", default=["forward", "training"], choices=["forward", "training"])
    parser.add_argument("--contiguous", action="store_true", help="also contiguous images")
    parser.add_argument("--only", default="", help="shapes whose names contain this")
    parser.add_argument("--dry", action="store_true", help="write no results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    for name, shape in SHAPES.items():
        if options.only not in name:
            continue
        entries = {}
        for sparsity in options.sparsity:
            for row in measure(shape, options.batch, sparsity, options):
                print(
                    f"{name}, sparsity {sparsity:.0%}, {row['layout']}, {row['name']}: "
                    f"{row['subject_us'] / 1e3:.2f} ms, dense {row['baseline_us'] / 1e3:.2f} ms, {row['ratio']:.2f}x "
                    f"[{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]",
                    flush=True,
                )
                key = f"{name}/{options.batch}/{options.threads}/{sparsity:g}/{row['layout']}/{row['name']}"
                entries[key] = row | {"shape": name, "batch": options.batch, "sparsity": sparsity}
                entries[key]["threads"] = options.threads
        if not options.dry:
            print(paired.merge_results(STEM, "rows", entries, torch=torch.__version__, build=build_info()))


if __name__ == "__main__":
    main()
