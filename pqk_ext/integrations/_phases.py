"""What all adapters do when a training begins."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pqk_ext.distributed import synchronize
from pqk_ext.wrappers import controller, inner_optimizer, step_with, unwrap

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["PhasesFollower"]


class PhasesFollower:
    """Attaches the phases of a model to an optimizer while a training lasts, and warns of what will not fit."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: float) -> None:
        """Attaches; ``steps`` are the optimizer steps that the training has left.

        Where several processes train, each has observed the ranges of its own batches when the warm-up ends: all then
        go on with those of process 0.
        """
        self.end()
        _warn_of_another_length(model, steps)
        _warn_of_decayed_step_sizes(model, optimizer)
        phases, ranges_shared = controller(model), False

        def share_ranges(*_: object) -> None:
            nonlocal ranges_shared
            if phases.quantizing and not ranges_shared:
                synchronize(unwrap(model))
                ranges_shared = True

        self._handles = [step_with(optimizer, model), inner_optimizer(optimizer).register_step_post_hook(share_ranges)]

    def end(self) -> None:
        """Detaches; does nothing where nothing is attached."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __getstate__(self) -> dict[str, Any]:
        return {"_handles": []}  # hooks belong to this process and its optimizer


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
