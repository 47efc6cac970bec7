"""Runs ``.pqk`` files. Needs numpy, safetensors and the native module; never imports torch.

>>> import pqk_ext.runtime
>>> net = pqk_ext.runtime.load("net.pqk")
>>> logits = net(images)  # float32 (N, *net.input_shape) -> float32 (N, *net.output_shape)
"""

from __future__ import annotations

from pqk_ext.runtime.engine import Model, load
from pqk_ext.runtime.graph import Graph, Node, Value

__all__ = ["Graph", "Model", "Node", "Value", "load"]
