"""Residual networks for 32x32 images: He et al., "Deep Residual Learning", CVPR 2016, section 4.2.

Parameter names are those of Y. Idelbayev's `pytorch_resnet_cifar10`, so its trained weights load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from pqk_ext.models.registry import register_model
from pqk_ext.models.stages import checked_stages


class HalvedIdentity(nn.Module):
    """Shortcut "option A": every second pixel, and channels filled up with zeros on both sides. No parameters."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.added = (out_channels - in_channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))


def _projection(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """Shortcut "option B"."""
    convolution = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, project: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if project and (stride > 1 or in_channels != channels):
            self.shortcut = _projection(in_channels, channels, stride)
        elif stride > 1:
            self.shortcut = HalvedIdentity(in_channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: torch.Tensor = self.relu2(y + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """`6 * blocks + 2` layers: three stages of 16, 32 and 64 channels, times `width`, at 32x32, 16x16 and 8x8.

    Args:
        blocks: Residual blocks of a stage.
        num_classes: Width of the last layer.
        width: Multiplies the channels of every stage and of the first convolution.
        stage_channels: Channels of the three stages, whatever `width` says; the first convolution keeps its own. The
            shortcuts are then 1x1 convolutions with batch norm ("option B") wherever stride or channels change, since
            zeros cannot make up for channels that become fewer.
        in_channels: Channels of the input.
        channels: Of the first convolution, before `width` multiplies them.
        first_stride: Stride of the first convolution.

    Raises:
        ValueError: `width` below 1, or `stage_channels` that are not three positive integers.
    """

    stage_names = ("layer1", "layer2", "layer3")

    def __init__(
        self,
        blocks: int,
        num_classes: int,
        width: int = 1,
        stage_channels: Sequence[int] | None = None,
        *,
        in_channels: int = 3,
        channels: int = 16,
        first_stride: int = 1,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width: expected at least 1, got {width}")
        stem = channels * width
        self.stage_channels = checked_stages(stage_channels, (stem, 2 * stem, 4 * stem))
        first, second, third = self.stage_channels
        self._projects = stage_channels is not None
        self.conv1 = nn.Conv2d(in_channels, stem, 3, stride=first_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(blocks, stem, first, stride=1)
        self.layer2 = self._stage(blocks, first, second, stride=2)
        self.layer3 = self._stage(blocks, second, third, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def _stage(self, blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride, self._projects)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: torch.Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return out


# `stage_channels` of the functions below: see `ResNet`.


@register_model(input_shape=(3, 32, 32))
def resnet8(num_classes: int = 10, stage_channels: Sequence[int] | None = None) -> ResNet:
    """ResNet-8, one block a stage: 75,290 parameters, 12.2 M MACs (counted; He et al. start at ResNet-20)."""
    return ResNet(1, num_classes, stage_channels=stage_channels)


@register_model(input_shape=(3, 32, 32))
def resnet20(num_classes: int = 10, stage_channels: Sequence[int] | None = None) -> ResNet:
    """ResNet-20: 0.27 M parameters (He et al., table 6), 40.55 M MACs (40.81 M with convolutions as shortcuts)."""
    return ResNet(3, num_classes, stage_channels=stage_channels)


@register_model(input_shape=(3, 32, 32))
def resnet32(num_classes: int = 10, width: int = 1, stage_channels: Sequence[int] | None = None) -> ResNet:
    """ResNet-32: 0.46 M parameters (He et al., table 6).

    Args:
        num_classes: Width of the last layer.
        width: Multiplies the channels of every stage. 4 gives 64-128-256: 7.4 M parameters and 1.1 G MACs.
        stage_channels: See `ResNet`.
    """
    return ResNet(5, num_classes, width, stage_channels)


@register_model(input_shape=(3, 32, 32))
def resnet44(num_classes: int = 10, stage_channels: Sequence[int] | None = None) -> ResNet:
    """ResNet-44: 0.66 M parameters (He et al., table 6)."""
    return ResNet(7, num_classes, stage_channels=stage_channels)


@register_model(input_shape=(3, 32, 32))
def resnet56(num_classes: int = 10, stage_channels: Sequence[int] | None = None) -> ResNet:
    """ResNet-56: 0.85 M parameters (He et al., table 6)."""
    return ResNet(9, num_classes, stage_channels=stage_channels)


@register_model(input_shape=(3, 32, 32))
def resnet110(num_classes: int = 10, stage_channels: Sequence[int] | None = None) -> ResNet:
    """ResNet-110: 1.7 M parameters (He et al., table 6)."""
    return ResNet(18, num_classes, stage_channels=stage_channels)
