"""Own training loops on several processes: PQK's loss under ``DistributedDataParallel``, and a check that all agree.

:func:`pqk_ext.fit` needs none of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.training.errors import ProcessesDifferError
from pqk_ext.training.replicas import copy_back, differing_tensors, digests, split_by_dtype

__all__ = ["Objective", "check_in_sync", "synchronize"]


class Objective(nn.Module):
    """The loss of a prepared model as a module, for wrappers that act on ``forward``.

    ``DistributedDataParallel`` averages gradients only of what went through its own ``forward``, which
    ``model.pqk.loss`` does not. So::

        objective = DistributedDataParallel(Objective(model), find_unused_parameters=True)
        loss = objective(x, y); loss.backward(); optimizer.step(); model.pqk.step(); optimizer.zero_grad()

    ``find_unused_parameters=True`` is needed: the teacher's batch norms and head have no gradient in phase 1, the step
    sizes none in the warm-up (so no ``static_graph=True``). Gradient accumulation under ``no_sync()`` works as usual.
    Activation ranges of the warm-up are those of process 0 from the first quantized step on.

    Args:
        model: a prepared model.
        criterion: task loss of logits and labels.
        process_group: the processes that train this model; default: all, where ``torch.distributed`` is initialized.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        *,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(model, "pqk"):
            raise TypeError(f"model: expected a prepared model (pqk_ext.prepare), got {type(model).__name__}")
        self.model = model
        self.criterion = criterion
        self._process_group = process_group
        self._ranges_shared = False

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``model.pqk.loss(x, y, criterion)``."""
        controller: Any = self.model.pqk
        if controller.quantizing and not self._ranges_shared:
            observed = nn.ModuleList(controller.quantizers())
            _share(observed.state_dict(keep_vars=True).values(), self._process_group)
            self._ranges_shared = True
        loss: Tensor = controller.loss(x, y, self.criterion)
        return loss


def synchronize(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> None:
    """Takes running statistics and observed ranges from process 0; call it in every process.

    ``DistributedDataParallel`` does that at the beginning of each step, so after the last step the processes differ by
    their last batch. Use it before evaluation, before a checkpoint and before export, where each process does its own.
    """
    controller = getattr(model, "pqk", None)
    scales = [quantizer.scale for quantizer in controller.quantizers()] if controller is not None else []
    _share([*model.buffers(), *scales], process_group)


def check_in_sync(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> None:
    """Compares SHA-256 sums of all parameters and buffers over the processes; call it in every process.

    With a prepared model these hold weights, masks, step sizes, observed ranges and the step of the schedule. Running
    statistics agree after :func:`synchronize` only.

    Raises:
        ProcessesDifferError: in every process; names tensors and processes that differ from process 0.
    """
    if _size(process_group) == 1:
        return
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    of_all: list[Any] = [None] * _size(process_group)
    dist.all_gather_object(of_all, digests(state), group=process_group)
    different = differing_tensors(of_all)
    if different:
        raise ProcessesDifferError(f"the processes do not hold the same bits: {different}")


def _size(process_group: dist.ProcessGroup | None) -> int:
    return dist.get_world_size(process_group) if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def _share(tensors: Any, process_group: dist.ProcessGroup | None) -> None:
    if _size(process_group) == 1:
        return
    for same in split_by_dtype(tensors):
        flat = torch.cat([tensor.detach().flatten() for tensor in same])
        wire = flat.to(torch.uint8) if flat.dtype == torch.bool else flat
        dist.broadcast(wire, group=process_group, group_src=0)
        copy_back([tensor.detach() for tensor in same], wire.to(flat.dtype))
