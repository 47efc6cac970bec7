"""Counts by which networks are compared: parameters and multiply-accumulate operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable values (running statistics of batch norm are not among them)."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Return the multiply-accumulates of all convolutions and linear layers for one input.

    The usual convention: products with padding count, biases, batch norm, activations, additions and pooling do not.

    Args:
        model: Any module; left in the mode it was in.
        input_shape: Shape of one input, without the batch dimension.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
        # Each output is a sum over a filter; each input of a transposed convolution goes to a filter's worth of them.
        transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
        total += (inputs[0] if transposed else output)[0].numel() * module.weight[0].numel()

    counted = (module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd | nn.Linear))
    handles = [module.register_forward_hook(count) for module in counted]
    training = {module: module.training for module in model.modules()}
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        for module, mode in training.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    return total
