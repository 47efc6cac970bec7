"""Densely connected networks: Huang, Liu, van der Maaten, Weinberger, CVPR 2017, arXiv:1608.06993.

Every layer reads the concatenation of all earlier outputs of its block; batch norm and ReLU come before each
convolution. "BC": 1x1 bottlenecks of four times the growth rate, and transitions that halve the channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from pqk_ext.models.registry import register_model

Stem = Literal["cifar", "imagenet", "keywords"]


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(self.relu1(self.norm1(x)))
        y = self.conv2(self.relu2(self.norm2(y)))
        return torch.cat((x, y), 1)


class Transition(nn.Sequential):
    def __init__(self, channels: int) -> None:
        conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU(), conv, nn.AvgPool2d(2))


class DenseNet(nn.Module):
    """Dense blocks with transitions between them.

    Args:
        growth: Channels that a layer adds.
        blocks: Layers of each block.
        stem: "cifar": one 3x3 convolution, stride 1. "imagenet": 7x7, stride 2, and a 3x3 max pooling, stride 2.
            "keywords": 10x4, stride 2, of one channel.
        num_classes: Width of the last layer.
    """

    def __init__(self, growth: int, blocks: tuple[int, ...], stem: Stem, num_classes: int) -> None:
        super().__init__()
        channels = 2 * growth
        layers: list[nn.Module]
        if stem == "cifar":
            layers = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        elif stem == "keywords":
            layers = [nn.Conv2d(1, channels, (10, 4), stride=2, padding=(4, 1), bias=False)]
        else:
            layers = [nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(channels)]
            layers += [nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
        for number, count in enumerate(blocks):
            if number > 0:
                layers.append(Transition(channels))
                channels //= 2
            layers.append(nn.Sequential(*(DenseLayer(channels + i * growth, growth) for i in range(count))))
            channels += count * growth
        self.features = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.features(x)))
        out: torch.Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return out


@register_model(input_shape=(1, 49, 10))
def densenet_keywords(num_classes: int = 12, growth: int = 12) -> DenseNet:
    """A small DenseNet-BC for keyword spotting: 3 blocks of 4 layers, DS-CNN's first convolution.

    No published network. Growth 12: 103,224 parameters, 4.91 M MACs. The stem makes 24 x 5 of 49 x 10 coefficients.

    Args:
        num_classes: Width of the last layer.
        growth: Channels that a layer adds.
    """
    return DenseNet(growth, (4, 4, 4), "keywords", num_classes)


def _check_stem(stem: str) -> None:
    if stem not in ("cifar", "imagenet"):
        raise ValueError(f"stem: expected 'cifar' or 'imagenet', got {stem!r}")


@register_model(input_shape=(3, 32, 32))
def densenet_bc(num_classes: int = 10) -> DenseNet:
    """DenseNet-BC, 100 layers, growth 12: 0.8 M parameters (table 2 of the paper; counted: 769,162)."""
    return DenseNet(12, (16, 16, 16), "cifar", num_classes)


@register_model(input_shape=(3, 32, 32))
def densenet201(num_classes: int = 10, stem: Stem = "cifar") -> DenseNet:
    """DenseNet-201, growth 32.

    With the "imagenet" stem, 1,000 classes and 224x224 input: 20,013,928 parameters (torchvision prints that) and
    4.29 G MACs.
    """
    _check_stem(stem)
    return DenseNet(32, (6, 12, 48, 32), stem, num_classes)
