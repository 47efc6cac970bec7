"""Layers that are pruned, quantized and shared between student and teacher."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pqk_ext.nn.activation import ActivationQuantizer
from pqk_ext.nn.batch_norm import PQKBatchNorm1d, PQKBatchNorm2d
from pqk_ext.nn.conv1d import PQKConv1d
from pqk_ext.nn.conv_transpose import PQKConvTranspose1d, PQKConvTranspose2d
from pqk_ext.nn.layers import PQKConv2d, PQKLayer, PQKLinear
from pqk_ext.nn.roles import NetworkOutput, Role

__all__ = [
    "LAYER_TYPES",
    "ActivationQuantizer",
    "NetworkOutput",
    "PQKBatchNorm1d",
    "PQKBatchNorm2d",
    "PQKConv1d",
    "PQKConv2d",
    "PQKConvTranspose1d",
    "PQKConvTranspose2d",
    "PQKLayer",
    "PQKLinear",
    "Role",
]

#: What `prepare` makes of each type of layer with a weight.
LAYER_TYPES: dict[type[nn.Module], Callable[..., PQKLayer]] = {
    nn.Conv1d: PQKConv1d,
    nn.Conv2d: PQKConv2d,
    nn.ConvTranspose1d: PQKConvTranspose1d,
    nn.ConvTranspose2d: PQKConvTranspose2d,
    nn.Linear: PQKLinear,
}
