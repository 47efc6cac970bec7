"""Own training loops on several processes: PQK's loss under ``DistributedDataParallel``, and a check that all agree.

:func:`pqk_ext.fit` needs none of this.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.ranges import observe_first
from pqk_ext.training.errors import ProcessesDifferError
from pqk_ext.training.replicas import copy_back, differing_tensors, digests, split_by_dtype

if TYPE_CHECKING:
    from pqk_ext.preparation.model import PreparedModel

__all__ = ["Objective", "check_in_sync", "gathered", "shard", "synchronize"]


class Objective(nn.Module):
    """The loss of a prepared model as a module, for wrappers that act on ``forward``.

    ``DistributedDataParallel`` averages gradients only of what went through its own ``forward``, which
    ``model.pqk.loss`` does not. So::

        objective = DistributedDataParallel(Objective(model), find_unused_parameters=True)
        loss = objective(x, y); loss.backward(); optimizer.step(); model.pqk.step(); optimizer.zero_grad()

    ``find_unused_parameters=True`` is needed: the teacher's batch norms and head have no gradient in phase 1, the step
    sizes none in the warm-up (so no ``static_graph=True``). Gradient accumulation under ``no_sync()`` works as usual.
    Activation ranges are those that process 0 has observed, from the first quantized step on.

    For parameters divided among the processes use :func:`shard`; the older ``FullyShardedDataParallel`` refuses
    scalars, as step sizes of activations are.

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
            observe_first(cast("PreparedModel", self.model), x)
            observed = nn.ModuleList(controller.quantizers())
            _share(observed.state_dict(keep_vars=True).values(), self._process_group)
            self._ranges_shared = True
        loss: Tensor = controller.loss(x, y, self.criterion)
        return loss


def shard(
    model: nn.Module,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    **options: Any,
) -> Objective:
    """The loss of a prepared model whose parameters and optimizer state are divided among the processes (FSDP2).

    ::

        objective = shard(model)
        optimizer = torch.optim.AdamW(model.pqk.parameter_groups(lr=0.01))  # after shard
        loss = objective(x, y); loss.backward(); optimizer.step(); model.pqk.step(); optimizer.zero_grad()

    The model becomes one unit of ``fully_shard``: its blocks are not modules that could be gathered one by one. So each
    process holds a part of parameters, gradients and optimizer state between steps, and all parameters during one.
    ``model.pqk.step()`` ranks whole weights, so that every process makes the same masks. Step sizes of activations are
    single numbers, which stay whole. Use :func:`gathered` to evaluate, save or export.

    On devices where optimizers default to ``foreach``, pass them ``foreach=False``: one group holds divided and whole
    parameters.

    Args:
        model: a prepared model, on the device that it trains on.
        criterion: task loss of logits and labels.
        options: of ``torch.distributed.fsdp.fully_shard``, such as ``mesh``, ``mp_policy``, ``offload_policy``.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialized.
        TypeError: the model is not prepared.
        ValueError: its config has ``step_size="freeze"``.
    """
    from torch.distributed.fsdp import fully_shard  # imports much of torch

    if _size(None) == 1 and not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("shard needs an initialized process group: torch.distributed.init_process_group(...)")
    objective = Objective(model, criterion)
    controller: Any = model.pqk
    if controller.config.step_size == "freeze":
        raise ValueError("step_size='freeze' changes which parameters are trained, which divided ones do not support")
    single = {parameter for parameter in model.parameters() if parameter.dim() == 0}
    _share([p.detach() for p in model.parameters()] + list(model.buffers()), None)
    fully_shard(objective, **{"ignored_params": single, **options})
    for parameter in single:
        parameter.register_post_accumulate_grad_hook(_average)
    controller.whole_parameters = functools.partial(gathered, model)
    return objective


def _average(parameter: Tensor) -> None:
    """The gradient of a parameter that FSDP leaves alone, averaged over the processes."""
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within it, the parameters of a model that :func:`shard` divided are whole; changes of them are kept.

    To be entered by every process, for all that is not a training step (but load weights before :func:`shard`)::

        with gathered(model):
            accuracy = evaluate(model.eval())
            state = model.state_dict()
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    places = [(module, name) for module in model.modules() for name in module._parameters]
    divided: dict[tuple[nn.Module, str], Any] = {
        (module, name): parameter
        for module, name in places
        if isinstance(parameter := module._parameters[name], DTensor)
    }
    whole = {id(p): nn.Parameter(p.detach().full_tensor(), p.requires_grad) for p in divided.values()}
    for (module, name), parameter in divided.items():
        module._parameters[name] = whole[id(parameter)]
    try:
        yield
    finally:
        with torch.no_grad():
            for (module, name), parameter in divided.items():
                value = whole[id(parameter)].detach()
                # Every process has the same value: none is sent.
                part: Any = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
                parameter.to_local().copy_(part.to_local())
                module._parameters[name] = parameter


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
    of_all: list[Any] = [None] * _size(process_group)
    with gathered(model):
        state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
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
