"""Layers that are pruned, quantized and shared between student and teacher."""

from __future__ import annotations

from pqk_ext.nn.activation import ActivationQuantizer
from pqk_ext.nn.batch_norm import PQKBatchNorm1d, PQKBatchNorm2d
from pqk_ext.nn.layers import PQKConv2d, PQKLayer, PQKLinear
from pqk_ext.nn.roles import Role

__all__ = ["ActivationQuantizer", "PQKBatchNorm1d", "PQKBatchNorm2d", "PQKConv2d", "PQKLayer", "PQKLinear", "Role"]
