"""What all adapters do when a training begins."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pqk_ext.wrappers import controller, step_with

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["PhasesFollower"]


class PhasesFollower:
    """Attaches the phases of a model to an optimizer while a training lasts, and warns of what will not fit."""

    def __init__(self) -> None:
        self._handle: RemovableHandle | None = None

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: float) -> None:
        """Attaches; ``steps`` are the optimizer steps that the training has left."""
        self.end()
        _warn_of_another_length(model, steps)
        _warn_of_decayed_step_sizes(model, optimizer)
        self._handle = step_with(optimizer, model)

    def end(self) -> None:
        """Detaches; does nothing where nothing is attached."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_handle": None}  # hooks belong to this process and its optimizer


def _warn_of_another_length(model: nn.Module, steps: float) -> None:
    phases = controller(model)
    left = phases.config.total_steps - phases.global_step
    if math.isfinite(steps) and steps != left:
        warnings.warn(
            f"the training has {int(steps)} optimizer steps left, the schedule of PQK {left} (total_steps = "
            f"{phases.config.total_steps}): prepare the model with the number of steps that it will get",
            stacklevel=2,
        )


def _warn_of_decayed_step_sizes(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    scales = {id(scale) for scale in controller(model).step_sizes()}
    for group in optimizer.param_groups:
        if group.get("weight_decay", 0) and any(id(parameter) in scales for parameter in group["params"]):
            warnings.warn(
                "the optimizer decays the step sizes of quantizers as if they were weights; make it from "
                "model.pqk.parameter_groups(lr, weight_decay)",
                stacklevel=2,
            )
            return
