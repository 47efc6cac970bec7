"""How good an allocation is before anything was trained for it: accuracy of the masked, fake-quantized network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.methods._allocation import Space
from pqk_ext.nn import Role
from pqk_ext.nn.channels import by_channel, from_channels
from pqk_ext.nn.layout import fast_layout
from pqk_ext.preparation import PreparedModel
from pqk_ext.quant import SMALLEST_SCALE

__all__ = ["Evaluator", "TunedEvaluator", "fake_quantized"]

_BATCH = 125  # fits the caches
_SHRINKS = tuple(1 - i / 20 for i in range(17))  # 1 to 0.2, as quant.per_channel_scale tries, but fewer


def fake_quantized(rows: Tensor, bits: Tensor) -> Tensor:
    """Kernels rounded to symmetric codes with a scale each, that of least squared error of 17.

    Args:
        rows: float32 ``(O, weights)``.
        bits: int64 ``(O,)``; kernels of 0 bits become 0.
    """
    bits = bits.to(rows.device)
    limit = ((1 << (bits - 1).clamp_min(0)) - 1).to(rows.dtype)[:, None]
    largest = rows.abs().amax(1, keepdim=True)
    shrinks = torch.tensor(_SHRINKS, dtype=rows.dtype, device=rows.device).view(-1, 1, 1)
    scales = (largest / limit.clamp_min(1) * shrinks).clamp_min(SMALLEST_SCALE)  # (shrinks, O, 1)
    values = torch.clamp((rows / scales).round(), -limit, limit) * scales
    best = (values - rows).square().sum(2).argmin(0)
    return values[best, torch.arange(len(rows), device=rows.device)]


class Evaluator:
    """Accuracy on fixed samples, in evaluation mode, without gradients.

    Weights are fake-quantized with a scale for each kernel; removed channels are removed for those who read them, by
    zeros in their weights. Activations stay float.

    Args:
        model: float network; copied.
        space: its allocations.
        samples: inputs and labels.
        batch_statistics: batch norms use those of the batch instead of those of the training, which no longer fit a
            network of other weights.
    """

    def __init__(
        self, model: nn.Module, space: Space, samples: tuple[Tensor, Tensor], *, batch_statistics: bool = False
    ) -> None:
        self._channels = space.channels
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        for module in self._model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.train(batch_statistics)
                module.momentum = 0.0  # nothing is remembered from one allocation to the next
        x, y = samples
        # Batches of one size, for their statistics.
        batches = max(1, round(len(x) / _BATCH))
        self._batches = [(fast_layout(a), b) for a, b in zip(x.chunk(batches), y.chunk(batches), strict=True)]
        self._count = len(x)
        self._weights = {name: self._rows(name).clone() for name in self._channels.layers}

    def _rows(self, name: str) -> Tensor:
        """The weight of a layer as it is, ``(O, I / groups, ...)``."""
        layer = self._model.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        return by_channel(layer, layer.weight)

    @torch.inference_mode()
    def __call__(self, bits: Mapping[str, Tensor]) -> float:
        """Share of the samples that are classified correctly, in [0, 1].

        Args:
            bits: of :meth:`Space.channel_bits`.
        """
        kept = torch.ones(self._channels.count, dtype=torch.bool)
        for name, own in self._channels.layers.items():
            kept[own.outputs[bits[name] == 0]] = False
        for name, own in self._channels.layers.items():
            rows = self._weights[name]
            if own.groups == 1:
                reads = kept[own.inputs].to(rows.device, rows.dtype)
                rows = rows * reads.view(1, -1, *[1] * (rows.dim() - 2))
            layer = self._model.get_submodule(name)
            assert isinstance(layer.weight, Tensor)
            values = fake_quantized(rows.flatten(1), bits[name]).view(rows.shape)
            layer.weight.copy_(from_channels(layer, values))
        return sum(int((self._model(x).argmax(1) == y).sum()) for x, y in self._batches) / self._count


class TunedEvaluator:
    """As :class:`Evaluator`, of the network that would be deployed, after a few steps of training. Dear.

    Args:
        build: bits to a prepared network.
        samples: inputs and labels that the accuracy is of.
        training: inputs and labels that the steps are made on, other ones.
        steps: of SGD with momentum 0.9.
        lr: learning rate.
        batch_size: samples a step.
        seed: of the batches; all allocations see the same.
    """

    def __init__(
        self,
        build: Callable[[dict[str, Tensor]], PreparedModel],
        samples: tuple[Tensor, Tensor],
        training: tuple[Tensor, Tensor],
        *,
        steps: int,
        lr: float,
        batch_size: int,
        seed: int,
    ) -> None:
        if len(training[0]) == 0:
            raise ValueError("reward_samples: expected fewer than the training samples, to leave some for reward_steps")
        self._build, self._samples, self._training, self._steps, self._lr = build, samples, training, steps, lr
        generator = torch.Generator().manual_seed(seed)
        size = min(batch_size, len(training[0]))
        self._batches = [torch.randperm(len(training[0]), generator=generator)[:size] for _ in range(steps)]

    def __call__(self, bits: dict[str, Tensor]) -> float:
        """Share of the samples that are classified correctly, in [0, 1]."""
        model = self._build(bits).train()
        optimizer = torch.optim.SGD(model.parameters(), self._lr, momentum=0.9)
        for batch in self._batches:
            x, y = self._training[0][batch], self._training[1][batch]
            F.cross_entropy(model(x, Role.STUDENT), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            parts = zip(self._samples[0].split(_BATCH), self._samples[1].split(_BATCH), strict=True)
            right = sum(int((model(fast_layout(x), Role.STUDENT).argmax(1) == y).sum()) for x, y in parts)
        return right / len(self._samples[0])
