"""Loss and backward pass of a training step: as they are, in bfloat16, compiled, or as CUDA graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from pqk_ext.preparation.model import PreparedModel
from pqk_ext.training.memory import trim_freed_memory
from pqk_ext.training.settings import Settings
from pqk_ext.training.trainee import Driver, Trainee

__all__ = ["StepLoss"]

_TRIM_INTERVAL = 256  # backward passes
_EAGER_STEPS = 3  # before a capture: libraries choose and allocate in their first calls


class StepLoss:
    """The loss of a batch, then its backward pass.

    Args:
        model: what is trained.
        driver: its loss.
        settings: ``autocast``, ``compile`` and ``cuda_graphs`` choose how it is computed.

    Raises:
        ValueError: ``cuda_graphs`` off a GPU, or for a model whose loss is not the same work in each step.
    """

    def __init__(self, model: nn.Module, driver: Driver, settings: Settings) -> None:
        self._device = next(model.parameters()).device
        self._autocast = settings.autocast
        self._loss: Callable[[Tensor, Tensor], Tensor] = driver.loss
        if settings.compile:
            self._loss = torch.compile(driver.loss)
        self._graphs = _Graphs(model, self._eager) if settings.cuda_graphs else None
        self._done = False
        self._backwards = 0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss; of a graph also the gradients."""
        graphs = self._graphs
        self._done = graphs is not None and graphs.covers_step()
        return graphs(x, y) if graphs is not None and self._done else self._eager(x, y)

    def backward(self, loss: Tensor) -> None:
        """The backward pass of the loss just computed; now and then what it has freed goes back to the system."""
        if not self._done:
            loss.backward()
        self._backwards += 1
        if self._backwards % _TRIM_INTERVAL == 0:
            trim_freed_memory()

    def _eager(self, x: Tensor, y: Tensor) -> Tensor:
        with self._precision():
            return self._loss(x, y)

    def _precision(self) -> AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)


class _Graphs:
    """One CUDA graph of loss and backward pass for each state of a schedule; a step is then one launch.

    The first steps in each state are computed eagerly, and count: recording a graph computes nothing, so that a step is
    neither lost nor done twice. What the loss reads (masks, scales, running statistics) is changed in place only.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        if next(model.parameters()).device.type != "cuda":
            raise ValueError("cuda_graphs: expected False for a model that is not on a GPU, got True")
        if isinstance(model, Trainee):
            raise ValueError(
                f"cuda_graphs: expected False for a {type(model).__name__}, whose loss may be other work in each step"
            )
        if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
            raise ValueError("cuda_graphs: expected False for a network with dropout, got True")
        self._model, self._loss = model, loss
        self._key: Hashable = None
        self._eager_steps = 0
        self._recorded: _Recorded | None = None

    def covers_step(self) -> bool:
        """Whether the coming step is one for a graph; ranges are observed on the host, before quantization begins."""
        pqk = self._model.pqk if isinstance(self._model, PreparedModel) else None
        return pqk is None or pqk.quantizing

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss and gradients of a batch."""
        key = self._state(x, y)
        if key != self._key:
            self._key, self._eager_steps, self._recorded = key, 0, None
        if self._eager_steps < _EAGER_STEPS:
            self._eager_steps += 1
            return _on_side_stream(lambda: self._computed(x, y))
        if self._recorded is None:
            self._recorded = _Recorded(list(self._model.parameters()), self._computed, x, y)
        return self._recorded(x, y)

    def _computed(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self._loss(x, y)
        loss.backward()
        return loss.detach()

    def _state(self, x: Tensor, y: Tensor) -> Hashable:
        """All that decides which work a step is, besides values in memory."""
        learning = tuple(parameter.requires_grad for parameter in self._model.parameters())
        state: Hashable = (x.shape, x.stride(), x.dtype, y.shape, y.dtype, learning)
        if isinstance(self._model, PreparedModel):
            pqk = self._model.pqk
            state = (state, pqk.phase, pqk.student_role, pqk.teaching, pqk.distilling)
        return state


class _Recorded:
    """A recorded step with its own memory for inputs, gradients and loss."""

    def __init__(
        self, parameters: list[nn.Parameter], compute: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
    ) -> None:
        self._x, self._y = x.clone(), y.clone()
        self._parameters = parameters
        for parameter in parameters:
            parameter.grad = None  # so that the graph makes them, in memory of its own
        self._replay, self._loss = _record(lambda: compute(self._x, self._y))
        self._gradients = [parameter.grad for parameter in parameters]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self._x.copy_(x)
        self._y.copy_(y)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._loss.clone()


def _record(compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What launches the recorded work, and where its result will be."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute()
    return graph.replay, result


def _on_side_stream(compute: Callable[[], Tensor]) -> Tensor:
    """Work to be recorded later must have run on another stream than the default one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = compute()
    torch.cuda.current_stream().wait_stream(stream)
    return result
