"""The networks of the comparison: float models, pruned or not, and the data that calibrates and times them.

A pruned network has 90 % of the weights of every convolution and linear layer set to zero by magnitude, except those
of the first convolution and of depthwise ones: single weights ("unstructured"), or blocks of four consecutive input
channels of one filter tap, aligned at multiples of four ("1x4"; layers whose input channels are no multiple of four
stay as they are). Every engine gets the same float weights. They are random, since no engine's time depends on their
values but by where the zeros are; batch norm has the statistics of the calibration data, so that activations are alive
in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pqk_ext import models
from pqk_ext.data import keyword_spotting_arrays

SPARSITY = 0.9
BLOCK = 4
VARIANTS = ("dense", "unstructured", "1x4")
CALIBRATION_SAMPLES = 64

# Name -> model of the zoo and its options.
NETWORKS: dict[str, tuple[str, dict[str, object]]] = {
    "resnet8": ("resnet8_mlperf", {}),
    "resnet20": ("resnet20", {}),
    "ds_cnn": ("ds_cnn", {"pretrained": True}),
    "vgg11": ("vgg11", {"num_classes": 100}),
    "resnet32_wide": ("resnet32", {"width": 4}),
    "mobilenet_v1": ("mobilenet_v1", {}),
    "mobilenet_v2": ("mobilenet_v2", {}),
    "densenet_bc": ("densenet_bc", {}),
    "densenet201": ("densenet201", {}),
    "res15": ("res15", {}),
}
SPARSE_NETWORKS = ("resnet8", "resnet20", "vgg11", "resnet32_wide")


def exists(network: str, variant: str) -> bool:
    """Whether the comparison has this row: only some networks are pruned."""
    return variant == "dense" or network in SPARSE_NETWORKS


def mask(weight: Tensor, variant: str) -> Tensor:
    """Which weights stay: the share `1 - SPARSITY` of largest magnitude, alone or in blocks of input channels.

    Args:
        weight: `(out, in, ...)`; with "1x4" `in` must be a multiple of 4.
        variant: "unstructured" or "1x4".

    Returns:
        Boolean, the shape of `weight`.
    """
    scores = weight.detach().abs()
    if variant == "1x4":
        scores = scores.unflatten(1, (-1, BLOCK)).sum(2, keepdim=True)
    kept = round((1 - SPARSITY) * scores.numel())
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[scores.flatten().topk(kept).indices] = True
    chosen = chosen.reshape(scores.shape)
    return chosen.expand(-1, -1, BLOCK, *weight.shape[2:]).flatten(1, 2) if variant == "1x4" else chosen


def prune(model: nn.Module, variant: str) -> None:
    """Sets weights to zero, in place; "dense" changes nothing."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    first = next(layer for layer in layers if isinstance(layer, nn.Conv2d))
    for layer in layers:
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
        blocks_fit = variant != "1x4" or layer.weight.shape[1] % BLOCK == 0
        if variant != "dense" and layer is not first and not depthwise and blocks_fit:
            with torch.no_grad():
                layer.weight *= mask(layer.weight, variant)


def _settle(model: nn.Module, data: Tensor) -> None:
    """Random scales and shifts for batch norm, and the statistics of `data`."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, 0.0, 1.0)  # a ReLU then makes a third of its outputs zero
        norm.momentum = None  # the plain mean over batches
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        model(data)
    model.eval()


@dataclass(frozen=True)
class Case:
    """A network in one of its variants; equal cases have equal weights."""

    network: str
    variant: str

    @property
    def is_trained(self) -> bool:
        return "pretrained" in NETWORKS[self.network][1]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return models.input_shape(NETWORKS[self.network][0])

    @cached_property
    def model(self) -> nn.Module:
        name, options = NETWORKS[self.network]
        torch.manual_seed(0)
        model = models.create(name, **options).eval()
        prune(model, self.variant)
        if not self.is_trained:
            _settle(model, torch.from_numpy(self.calibration))
        return model

    @cached_property
    def calibration(self) -> NDArray[np.float32]:
        if self.network == "ds_cnn":
            return keyword_spotting_arrays("train")[0][:CALIBRATION_SAMPLES]
        shape = (CALIBRATION_SAMPLES, *self.input_shape)
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    def input(self, batch: int) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.calibration[:batch])

    def reference(self, batch: int) -> NDArray[np.float32]:
        """torch's float output."""
        model = self.model  # made here, not in inference mode: exporters could not trace its tensors
        with torch.inference_mode():
            output: NDArray[np.float32] = model(torch.from_numpy(self.input(batch))).numpy()
        return output


def difference(output: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Root mean square difference, as a share of the root mean square of `reference`."""
    exact = reference.astype(np.float64)
    return float(np.sqrt(np.mean((output - exact) ** 2) / np.mean(exact**2)))
