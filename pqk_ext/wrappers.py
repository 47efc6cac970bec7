"""Prepared models inside other modules, and the schedule as a follower of the optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pqk_ext.preparation.model import PreparedModel

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from pqk_ext.phases import PQKController

__all__ = ["controller", "inner_optimizer", "step_with", "unwrap"]


def unwrap(model: nn.Module) -> PreparedModel:
    """The prepared model inside ``model``, whatever is around it.

    That may be ``DistributedDataParallel``, ``torch.compile``, ``AveragedModel``, a ``LightningModule``, or what
    Accelerate and the ``Trainer`` of transformers make: every module around a module will do.

    Raises:
        TypeError: ``model`` is no module, or holds no prepared model.
        ValueError: it holds several.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found = {name: module for name, module in model.named_modules() if isinstance(module, PreparedModel)}
    if not found:
        raise TypeError(
            f"model: expected a prepared model (pqk_ext.prepare) or one around it, got {type(model).__name__}"
        )
    if len(found) > 1:
        raise ValueError(f"model: expected one prepared model, found {sorted(found)}; pass the one that is meant")
    (prepared,) = found.values()
    return prepared


def controller(model: nn.Module) -> PQKController:
    """``unwrap(model).pqk``: the controller of the phases, through any wrapper."""
    return unwrap(model).pqk


def step_with(optimizer: torch.optim.Optimizer, model: nn.Module) -> RemovableHandle:
    """Lets ``model.pqk.step()`` follow every ``optimizer.step()``, for loops that are not yours.

    Do not call ``model.pqk.step()`` yourself then. Steps that a gradient scaler or an accumulating wrapper skips are
    not followed.

    Args:
        optimizer: a torch optimizer, or a wrapper with an attribute ``optimizer``, as Accelerate makes.
        model: the prepared model, or a module around it.

    Returns:
        What ends it: ``handle.remove()``.
    """
    inner = inner_optimizer(optimizer)
    phases = controller(model)

    def follow(*_: object) -> None:
        phases.step()

    handle: RemovableHandle = inner.register_step_post_hook(follow)
    return handle


def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer of torch inside wrappers such as Accelerate's.

    Raises:
        TypeError: there is none.
    """
    inner = optimizer
    while isinstance(getattr(inner, "optimizer", None), torch.optim.Optimizer):
        inner = inner.optimizer
    if not isinstance(inner, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return inner
