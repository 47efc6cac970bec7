"""MobileNets: Howard et al., arXiv:1704.04861 (V1), and Sandler et al., arXiv:1801.04381 (V2).

The "cifar" stem is the one customary for 32x32 images: fewer early strides, otherwise the same network. The
"imagenet" stem is the paper's, for 224x224.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from pqk_ext.models.registry import register_model

Stem = Literal["cifar", "imagenet"]


def _check_stem(stem: str) -> None:
    if stem not in ("cifar", "imagenet"):
        raise ValueError(f"stem: expected 'cifar' or 'imagenet', got {stem!r}")


def _conv_bn(
    in_channels: int, channels: int, kernel: int, stride: int, groups: int, activation: nn.Module
) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels), activation]


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")


class MobileNetV1(nn.Module):
    LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))

    def __init__(self, stem: Stem, num_classes: int) -> None:
        super().__init__()
        layers = _conv_bn(3, 32, 3, 1 if stem == "cifar" else 2, 1, nn.ReLU())
        channels = 32
        for width, stride in self.LAYERS:
            layers += _conv_bn(channels, channels, 3, stride, channels, nn.ReLU())
            layers += _conv_bn(channels, width, 1, 1, 1, nn.ReLU())
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(torch.flatten(self.pool(self.features(x)), 1))
        return out


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; plus the input where the shapes agree."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += _conv_bn(in_channels, hidden, 1, 1, 1, nn.ReLU6())
        layers += _conv_bn(hidden, hidden, 3, stride, hidden, nn.ReLU6())
        layers += [nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.layers = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return x + y if self.has_shortcut else y


class MobileNetV2(nn.Module):
    """Stem, inverted residuals, 1,280 channels, mean over the map, dropout, one linear layer.

    Args:
        stem: See the top of this file.
        num_classes: Width of the last layer.
        width: Multiplies all channels but the last 1,280; what is not whole is cut off.
    """

    # expansion, channels, blocks, stride of the first block (table 2 of the paper)
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, stem: Stem, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        channels = int(32 * width)
        layers = _conv_bn(3, channels, 3, 1 if stem == "cifar" else 2, 1, nn.ReLU6())
        for number, (expansion, full, blocks, first_stride) in enumerate(self.STAGES):
            for block in range(blocks):
                stride = first_stride if block == 0 and not (stem == "cifar" and number == 1) else 1
                layers.append(InvertedResidual(channels, int(full * width), expansion, stride))
                channels = int(full * width)
        layers += _conv_bn(channels, 1280, 1, 1, 1, nn.ReLU6())
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.linear = nn.Linear(1280, num_classes)
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(self.dropout(torch.flatten(self.pool(self.features(x)), 1)))
        return out


@register_model(input_shape=(3, 32, 32))
def mobilenet_v1(num_classes: int = 10, stem: Stem = "cifar") -> MobileNetV1:
    """MobileNetV1: 3.22 M parameters and 46.4 M MACs at 32x32.

    With the "imagenet" stem, 1,000 classes and 224x224 input: 4.2 M and 569 M (table 4 of the paper).
    """
    _check_stem(stem)
    return MobileNetV1(stem, num_classes)


@register_model(input_shape=(3, 32, 32))
def mobilenet_v2(num_classes: int = 10, stem: Stem = "cifar") -> MobileNetV2:
    """MobileNetV2: 2.24 M parameters and 88 M MACs at 32x32.

    With the "imagenet" stem, 1,000 classes and 224x224 input: 3.4 M and 300 M (table 4 of the paper).
    """
    _check_stem(stem)
    return MobileNetV2(stem, num_classes)


@register_model(input_shape=(3, 32, 32))
def mobilenet_v2_half(num_classes: int = 10, stem: Stem = "cifar") -> MobileNetV2:
    """MobileNetV2 of half the channels: 0.70 M parameters; with 100 classes 0.81 M, a customary student."""
    _check_stem(stem)
    return MobileNetV2(stem, num_classes, width=0.5)
