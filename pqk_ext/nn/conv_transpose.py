"""Transposed convolutions whose one weight tensor serves the student and the teacher."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.nn.layers import PQKLayer, Sharing
from pqk_ext.nn.roles import Role

__all__ = ["PQKConvTranspose1d", "PQKConvTranspose2d"]

_GEOMETRY = ("stride", "padding", "output_padding", "groups", "dilation")


def _geometry(layer: nn.Module) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in _GEOMETRY}


def _settings(source: nn.ConvTranspose1d | nn.ConvTranspose2d) -> dict[str, Any]:
    channels = {name: getattr(source, name) for name in ("in_channels", "out_channels", "kernel_size")}
    return {**channels, **_geometry(source), "bias": source.bias is not None, "device": "meta"}


class PQKConvTranspose2d(PQKLayer, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with a pruning mask and learned symmetric quantization of each output channel."""

    def __init__(self, source: nn.ConvTranspose2d, bits: int, prunable: bool, sharing: Sharing) -> None:
        nn.ConvTranspose2d.__init__(self, **_settings(source))
        self._extend(source, bits, prunable, sharing)

    def forward(self, input: Tensor, role: Role = Role.STUDENT) -> Tensor:  # type: ignore[override]
        """Transposed convolution of ``input`` (N, C, H, W) in the given role."""
        if role is Role.TEACHER and self.teacher is not None:
            output: Tensor = self.teacher(input)
            return output
        return F.conv_transpose2d(input, *self.role_parameters(role), **_geometry(self))


class PQKConvTranspose1d(PQKLayer, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` with a pruning mask and learned symmetric quantization of each output channel."""

    def __init__(self, source: nn.ConvTranspose1d, bits: int, prunable: bool, sharing: Sharing) -> None:
        nn.ConvTranspose1d.__init__(self, **_settings(source))
        self._extend(source, bits, prunable, sharing)

    def forward(self, input: Tensor, role: Role = Role.STUDENT) -> Tensor:  # type: ignore[override]
        """Transposed convolution of ``input`` (N, C, L) in the given role."""
        if role is Role.TEACHER and self.teacher is not None:
            output: Tensor = self.teacher(input)
            return output
        return F.conv_transpose1d(input, *self.role_parameters(role), **_geometry(self))
