"""ResNet-8 of MLPerf Tiny's image classification benchmark (mlcommons/tiny, Apache-2.0).

Differs from the ResNet-8 of `resnet.py`: 1x1 convolutions as shortcuts, biases, TensorFlow's batch-norm epsilon and
its "SAME" padding (for stride 2 on an even size: one row below and one column to the right). Input: pixels as they
are, 0..255, RGB.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pqk_ext.models.registry import register_model
from pqk_ext.models.stages import checked_stages

BATCH_NORM_EPS = 1e-3  # Keras' default, which the trained weights assume


class MLPerfBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1)) if stride == 2 else nn.ZeroPad2d(1)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1, stride=stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(self.pad(x))))
        y = self.bn2(self.conv2(y))
        out: torch.Tensor = self.relu2(y + self.shortcut(x))
        return out


class MLPerfResNet8(nn.Module):
    stage_names = ("stage1", "stage2", "stage3")

    def __init__(self, num_classes: int, stage_channels: Sequence[int] | None = None) -> None:
        super().__init__()
        self.stage_channels = checked_stages(stage_channels, (16, 32, 64))
        first, second, third = self.stage_channels
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16, eps=BATCH_NORM_EPS)
        self.relu = nn.ReLU()
        self.stage1 = MLPerfBlock(16, first, stride=1)
        self.stage2 = MLPerfBlock(first, second, stride=2)
        self.stage3 = MLPerfBlock(second, third, stride=2)
        self.pool = nn.AvgPool2d(8)
        self.linear = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        out: torch.Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return out


@register_model(input_shape=(3, 32, 32))
def resnet8_mlperf(num_classes: int = 10, stage_channels: Sequence[int] | None = None) -> MLPerfResNet8:
    """MLPerf Tiny's ResNet-8: 78,666 values with running statistics, 78,186 trainable, 12.5 M MACs.

    The benchmark asks for 85 % on CIFAR-10; the published weights reach 87.19 % on the 10,000 test images
    (`pqk_ext.models.pretrained.load_mlperf_tiny`). Without the softmax at the end: the outputs are logits.

    Args:
        num_classes: Width of the last layer.
        stage_channels: Channels of the three stages instead of 16, 32 and 64; the first convolution keeps its 16.
    """
    return MLPerfResNet8(num_classes, stage_channels)
