"""Residual networks for keyword spotting: Tang and Lin, ICASSP 2018, arXiv:1710.10361 (res8, res15, narrow forms).

Batch norm has no trainable scale or shift and stands after the ReLU (after the addition, every second layer); the
convolutions have no bias. Input: 101 frames (10 ms apart) of 40 coefficients.
"""

from __future__ import annotations

import torch
from torch import nn

from pqk_ext.models.registry import register_model


class ResKeywords(nn.Module):
    """`conv0`, then `layers` 3x3 convolutions with an addition after every second one, mean over the map, linear.

    Args:
        channels: Width of all convolutions.
        layers: Convolutions after `conv0`.
        pool: Average pooling after `conv0`, or None.
        dilated: Dilation `2 ** (i // 3)` in layer i (from 0) instead of 1.
        num_classes: Width of the last layer.
    """

    def __init__(
        self, channels: int, layers: int, pool: tuple[int, int] | None, dilated: bool, num_classes: int
    ) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.relu0 = nn.ReLU()
        self.pool = nn.AvgPool2d(pool) if pool else nn.Identity()
        dilations = [2 ** (i // 3) if dilated else 1 for i in range(layers)]
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=d, dilation=d, bias=False) for d in dilations
        )
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, affine=False) for _ in range(layers))
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.output = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.relu0(self.conv0(x)))
        residual = x
        for i, (conv, relu, norm) in enumerate(zip(self.convs, self.relus, self.norms, strict=True)):
            x = relu(conv(x))
            if i % 2 == 1:
                x = x + residual
                residual = x
            x = norm(x)
        out: torch.Tensor = self.output(torch.flatten(self.mean(x), 1))
        return out


@register_model(input_shape=(1, 101, 40))
def res8(num_classes: int = 12) -> ResKeywords:
    """res8: 110,307 parameters (110 K in the paper)."""
    return ResKeywords(45, 6, (4, 3), False, num_classes)


@register_model(input_shape=(1, 101, 40))
def res8_narrow(num_classes: int = 12) -> ResKeywords:
    """res8-narrow: 19,905 parameters (19.9 K in the paper)."""
    return ResKeywords(19, 6, (4, 3), False, num_classes)


@register_model(input_shape=(1, 101, 40))
def res15(num_classes: int = 12) -> ResKeywords:
    """res15: 237,882 parameters (238 K in the paper)."""
    return ResKeywords(45, 13, None, True, num_classes)


@register_model(input_shape=(1, 101, 40))
def res15_narrow(num_classes: int = 12) -> ResKeywords:
    """res15-narrow: 42,648 parameters (42.6 K in the paper)."""
    return ResKeywords(19, 13, None, True, num_classes)
