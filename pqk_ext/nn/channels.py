"""Weights seen by output channel, wherever their layer keeps that dimension.

A transposed convolution's weight is ``(in_channels, out_channels / groups, ...)``; all others are
``(out_channels, in_channels / groups, ...)``, which is what pruning, quantization and files go by.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["by_channel", "from_channels"]

_Transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d)


def by_channel(layer: nn.Module, tensor: Tensor) -> Tensor:
    """The weight of ``layer``, or a tensor of its shape, as ``(out_channels, in_channels / groups, ...)``.

    A view where the memory allows it; gradients pass.
    """
    if not isinstance(layer, _Transposed):
        return tensor
    if layer.groups == 1:
        return tensor.transpose(0, 1)
    grouped: Tensor = tensor.unflatten(0, (layer.groups, -1))
    return grouped.transpose(1, 2).flatten(0, 1)


def from_channels(layer: nn.Module, tensor: Tensor) -> Tensor:
    """Undoes :func:`by_channel`: the exchange of two dimensions in each group, once more."""
    return by_channel(layer, tensor)
