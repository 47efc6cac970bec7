"""Hugging Face Accelerate: a prepared model's loss, optimizer and loaders for an ``Accelerator``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from pqk_ext.distributed import Objective
from pqk_ext.wrappers import step_with

__all__ = ["prepare"]


def prepare(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *others: Any,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> tuple[Any, ...]:
    """``accelerator.prepare`` for the loss of a prepared model; the phases then follow the optimizer::

        objective, optimizer, loader = prepare(accelerator, model, optimizer, loader)
        for x, y in loader:
            with accelerator.accumulate(objective):
                accelerator.backward(objective(x, y))
                optimizer.step()
                optimizer.zero_grad()

    ``pqk_ext.unwrap(objective)`` is the model again, for evaluation and export; ``accelerator.save_state`` saves what
    PQK needs to go on. Do not call ``model.pqk.step()``.

    Args:
        accelerator: on several processes it is told that some parameters have no gradient in some phases.
        model: the prepared model.
        optimizer: made from ``model.pqk.parameter_groups(...)``.
        others: loaders, schedulers: what else ``accelerator.prepare`` takes.
        criterion: task loss of logits and labels.

    Returns:
        The loss as a module (:class:`pqk_ext.distributed.Objective`), the optimizer, and the others, wrapped.
    """
    if accelerator.num_processes > 1:
        if accelerator.ddp_handler is None:
            accelerator.ddp_handler = DistributedDataParallelKwargs()
        accelerator.ddp_handler.find_unused_parameters = True
    prepared: tuple[Any, ...] = accelerator.prepare(Objective(model, criterion), optimizer, *others)
    step_with(prepared[1], prepared[0])
    return prepared
