"""Residual networks of three resolutions for keyword spotting: He et al.'s CIFAR networks on a map of 49 x 10.

Their stages have the shape that distillation between networks of different depth is studied with: ResNet-8 and
ResNet-26 halve the map at the same places. Not published; input and first stride are those of the small DS-CNN.
"""

from __future__ import annotations

import torch
from torch import nn

from pqk_ext.models.registry import register_model
from pqk_ext.models.resnet import BasicBlock


class KeywordResNet(nn.Module):
    """`6 * blocks + 2` layers: three stages of `width`, 2 and 4 times `width` channels, at 25x5, 13x3 and 7x2.

    Raises:
        ValueError: `blocks` or `width` below 1.
    """

    def __init__(self, blocks: int, width: int, num_classes: int) -> None:
        super().__init__()
        if blocks < 1 or width < 1:
            raise ValueError(f"blocks, width: expected at least 1, got {blocks} and {width}")
        self.conv1 = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(blocks, width, width, stride=1)
        self.layer2 = self._stage(blocks, width, 2 * width, stride=2)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: torch.Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return out


@register_model(input_shape=(1, 49, 10))
def keyword_resnet8(num_classes: int = 12, width: int = 8) -> KeywordResNet:
    """One block a stage, 8-16-32 channels: 19,140 parameters, 0.48 M MACs (counted)."""
    return KeywordResNet(1, width, num_classes)


@register_model(input_shape=(1, 49, 10))
def keyword_resnet26(num_classes: int = 12, width: int = 16) -> KeywordResNet:
    """Four blocks a stage, 16-32-64 channels: 366,780 parameters, 8.9 M MACs (counted)."""
    return KeywordResNet(4, width, num_classes)
