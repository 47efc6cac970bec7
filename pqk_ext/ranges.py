"""Ranges of activations, observed in a batch from which nothing else learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pqk_ext.nn import Role

if TYPE_CHECKING:
    from pqk_ext.preparation.model import PreparedModel

__all__ = ["observe", "observe_first"]


@torch.no_grad()
def observe(model: PreparedModel, batch: Tensor, role: Role = Role.PRUNED) -> None:
    """Lets every activation quantizer follow the range of its tensor; running statistics do not see the batch.

    Raises:
        ValueError: an activation is NaN or infinite.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        model.run(batch, role, observe=True)
    finally:
        for module, training in modes.items():
            module.training = training


@torch.compiler.disable  # it asks for values of tensors
def observe_first(model: PreparedModel, batch: Tensor) -> None:
    """For training that begins quantized: ranges from its first batch, unless a calibration has given them."""
    if not all(int(quantizer.batches) for quantizer in model.pqk.quantizers()):
        observe(model, batch)
