"""Depthwise-separable networks for keyword spotting.

Zhang, Suda, Lai, Chandra, "Hello Edge: Keyword Spotting on Microcontrollers", arXiv:1711.07128 (DS-CNN S, M, L) and
the variant of S that MLPerf Tiny took over. All pad as TensorFlow's "SAME" does, where the odd row goes below.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pqk_ext.models.registry import register_model
from pqk_ext.models.stages import checked_stages

FRAMES, COEFFICIENTS = 49, 10
BATCH_NORM_EPS = 1e-3  # TensorFlow's default, which the trained weights assume


def _same_padding(size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]) -> nn.ZeroPad2d:
    total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, stride, strict=True)]
    top, left = (t // 2 for t in total)
    return nn.ZeroPad2d((left, total[1] - left, top, total[0] - top))


class DepthwiseSeparable(nn.Module):
    def __init__(self, channels: int, out_channels: int, size: tuple[int, int], stride: int) -> None:
        super().__init__()
        self.pad = _same_padding(size, (3, 3), (stride, stride))
        self.depthwise = nn.Conv2d(channels, channels, 3, stride=stride, groups=channels)
        self.bn1 = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        self.relu1 = nn.ReLU()
        self.pointwise = nn.Conv2d(channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.depthwise(self.pad(x))))
        out: torch.Tensor = self.relu2(self.bn2(self.pointwise(x)))
        return out


class DSCNN(nn.Module):
    """A 10x4 convolution, `len(strides)` depthwise-separable layers, mean over the map, one linear layer.

    Each separable layer is a stage with channels of its own, `stage_channels`; by default all have `channels`.
    """

    def __init__(
        self,
        channels: int,
        stem_stride: tuple[int, int],
        strides: tuple[int, ...],
        num_classes: int,
        dropout: tuple[float, float] = (0.0, 0.0),
        stage_channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.stage_channels = checked_stages(stage_channels, (channels,) * len(strides))
        self.stage_names = tuple(f"layers.{index}" for index in range(len(strides)))
        self.pad = _same_padding((FRAMES, COEFFICIENTS), (10, 4), stem_stride)
        self.conv = nn.Conv2d(1, channels, (10, 4), stride=stem_stride)
        self.bn = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        self.relu = nn.ReLU()
        self.dropout1 = nn.Dropout(dropout[0])
        height, width = -(-FRAMES // stem_stride[0]), -(-COEFFICIENTS // stem_stride[1])
        layers = []
        for stride, out_channels in zip(strides, self.stage_channels, strict=True):
            layers.append(DepthwiseSeparable(channels, out_channels, (height, width), stride))
            channels = out_channels
            height, width = -(-height // stride), -(-width // stride)
        self.layers = nn.Sequential(*layers)
        self.dropout2 = nn.Dropout(dropout[1])
        self.pool = nn.AvgPool2d((height, width))
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dropout1(self.relu(self.bn(self.conv(self.pad(x)))))
        x = self.dropout2(self.layers(x))
        out: torch.Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return out


@register_model(input_shape=(1, FRAMES, COEFFICIENTS))
def ds_cnn(num_classes: int = 12, pretrained: bool = False, stage_channels: Sequence[int] | None = None) -> DSCNN:
    """MLPerf Tiny's DS-CNN: 24,908 values with running statistics, 23,756 trainable, 2.66 M MACs.

    Args:
        num_classes: Width of the last layer.
        pretrained: Load the trained weights that come with this package (92.17 % on
            `pqk_ext.data.keyword_spotting("all")`, none of which they were trained on). Needs 12 classes.
        stage_channels: Channels of the four separable layers instead of 64 each; the first convolution keeps its 64.

    Raises:
        ValueError: `pretrained` with another number of classes, or with `stage_channels`.
    """
    if pretrained and num_classes != 12:
        raise ValueError(f"num_classes: the pretrained DS-CNN has 12, got {num_classes}")
    if pretrained and stage_channels is not None:
        raise ValueError("stage_channels: the pretrained DS-CNN has its own; give none, or pretrained=False")
    model = DSCNN(64, (2, 2), (1, 1, 1, 1), num_classes, dropout=(0.2, 0.4), stage_channels=stage_channels)
    if pretrained:
        from pqk_ext.models.pretrained import load_embedded

        load_embedded(model, "ds_cnn.safetensors")
    return model


@register_model(input_shape=(1, FRAMES, COEFFICIENTS))
def ds_cnn_s(num_classes: int = 12) -> DSCNN:
    """Hello Edge's DS-CNN S: 38.6 KB, 5.4 M operations (table 5; two operations a MAC)."""
    return DSCNN(64, (2, 2), (1, 1, 1, 1), num_classes)


@register_model(input_shape=(1, FRAMES, COEFFICIENTS))
def ds_cnn_m(num_classes: int = 12) -> DSCNN:
    """Hello Edge's DS-CNN M: 189.2 KB, 19.8 M operations (table 5; two operations a MAC)."""
    return DSCNN(172, (2, 1), (2, 1, 1, 1), num_classes)


@register_model(input_shape=(1, FRAMES, COEFFICIENTS))
def ds_cnn_l(num_classes: int = 12) -> DSCNN:
    """Hello Edge's DS-CNN L: 497.6 KB, 56.9 M operations (table 5; two operations a MAC)."""
    return DSCNN(276, (2, 1), (2, 1, 1, 1, 1), num_classes)
