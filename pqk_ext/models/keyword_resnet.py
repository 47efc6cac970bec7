"""Residual networks of three resolutions for keyword spotting: He et al.'s CIFAR networks on a map of 49 x 10.

Their stages have the shape that distillation between networks of different depth is studied with: ResNet-8 and
ResNet-26 halve the map at the same places. Not published; input and first stride are those of the small DS-CNN.
"""

from __future__ import annotations

from pqk_ext.models.registry import register_model
from pqk_ext.models.resnet import ResNet


def _keyword_resnet(blocks: int, channels: int, num_classes: int) -> ResNet:
    """Stages of `channels`, 2 and 4 times as many channels, at 25x5, 13x3 and 7x2."""
    if channels < 1:
        raise ValueError(f"width: expected at least 1, got {channels}")
    return ResNet(blocks, num_classes, in_channels=1, channels=channels, first_stride=2)


@register_model(input_shape=(1, 49, 10))
def keyword_resnet8(num_classes: int = 12, width: int = 8) -> ResNet:
    """One block a stage, 8-16-32 channels: 19,140 parameters, 0.48 M MACs (counted)."""
    return _keyword_resnet(1, width, num_classes)


@register_model(input_shape=(1, 49, 10))
def keyword_resnet26(num_classes: int = 12, width: int = 16) -> ResNet:
    """Four blocks a stage, 16-32-64 channels: 366,780 parameters, 8.9 M MACs (counted)."""
    return _keyword_resnet(4, width, num_classes)
