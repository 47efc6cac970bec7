"""Evaluation of a prepared model: the integer graph, kept in step with the parameters and with torch's compilers."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import _disable_current_modes

from pqk_ext.deploy.evaluate import TorchGraph
from pqk_ext.deploy.lower import lower
from pqk_ext.ops._transforms import transforms_active

if TYPE_CHECKING:
    from pqk_ext.preparation.model import PreparedModel

__all__ = ["IntegerEvaluation"]

_EVALUATIONS: weakref.WeakValueDictionary[int, IntegerEvaluation] = weakref.WeakValueDictionary()


def _named_tensors(model: PreparedModel) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


class IntegerEvaluation:
    """Lowers a prepared model when its parameters have changed, and runs the result.

    A graph made by ``torch.compile`` holds evaluation as one operator, ``pqk::integer_evaluation``: it looks whether
    the parameters have changed whenever it runs, and no compiler can change a bit of its result.
    ``torch.export`` records the integer graph itself, with the parameters of that moment as constants.
    """

    def __init__(self, model: PreparedModel) -> None:
        self.__setstate__({"model": model})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.model: PreparedModel = state["model"]
        self.handle = id(self)  # by which the operator finds this object
        _EVALUATIONS[self.handle] = self
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model}

    def forget(self) -> None:
        """Drops the lowered graph; the next call lowers anew."""
        self._graph: TorchGraph | None = None
        self._seen: list[tuple[Tensor, int]] = []
        self._fingerprint = 0
        self._exported: dict[str, Tensor] = {}

    def remember_tensors(self) -> None:
        """Notes which tensors hold the model's values: while it is exported, it has others, without values."""
        self._exported = _named_tensors(self.model)

    def __call__(self, input: Tensor) -> Tensor:
        """Output of the integer graph.

        Raises:
            RuntimeError: inside a transform of ``torch.func``: integers have no derivative.
        """
        if torch.compiler.is_exporting():
            return TorchGraph.run(self._exported_graph(), input.detach())
        state = list(_named_tensors(self.model).values())
        if torch.compiler.is_compiling():
            values = [tensor.detach() for tensor in state]
            output: Tensor = torch.ops.pqk.integer_evaluation(input.detach(), values, self.handle)
            return output
        if transforms_active():
            raise RuntimeError(
                "evaluation computes integers, which function transforms cannot follow; "
                "name what to differentiate: model(x, Role.STUDENT)"
            )
        return self.up_to_date(state)(input)

    def up_to_date(self, state: Sequence[Tensor]) -> TorchGraph:
        """The graph of the values in ``state``: the model's tensors, or such as take their place, in their order."""
        # Aliases of what was seen are kept, so that its memory cannot come to hold something else.
        seen = [(tensor.detach(), tensor._version) for tensor in state]
        fingerprint = _fingerprint(state)
        if self._graph is None or fingerprint != self._fingerprint or not _same(seen, self._seen):
            names = _named_tensors(self.model)
            with _reparametrize_module(self.model, dict(zip(names, state, strict=True)), tie_weights=True):
                self._graph = TorchGraph(lower(self.model), state[0].device)
            self._seen, self._fingerprint = seen, fingerprint
        return self._graph

    @torch._dynamo.assume_constant_result
    def _exported_graph(self) -> TorchGraph:
        if not self._exported:
            raise RuntimeError("call model.eval() before torch.export.export")
        with _disable_current_modes():
            return self.up_to_date(list(self._exported.values()))


def _fingerprint(state: Sequence[Tensor]) -> int:
    """Of the float values: what writes through ``tensor.data``, as averages of weights do, leaves no other trace."""
    values = torch.cat([tensor.detach().flatten() for tensor in state if tensor.is_floating_point()])
    return int(torch.hash_tensor(values).view(torch.int64))


def _same(some: list[tuple[Tensor, int]], others: list[tuple[Tensor, int]]) -> bool:
    return len(some) == len(others) and all(
        a.data_ptr() == b.data_ptr() and version == other_version
        for (a, version), (b, other_version) in zip(some, others, strict=True)
    )


@torch.library.custom_op("pqk::integer_evaluation", mutates_args=())
def _integer_evaluation(input: Tensor, state: list[Tensor], handle: int) -> Tensor:
    return _EVALUATIONS[handle].up_to_date(state)(input).contiguous()


@_integer_evaluation.register_fake
def _(input: Tensor, state: list[Tensor], handle: int) -> Tensor:
    return input.new_empty((input.shape[0], *_EVALUATIONS[handle].model.plan[-1].shape))
