"""What ``fit`` trains: a network with the loss, the state and the schedule that belong to it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.config import PQKConfig
from pqk_ext.preparation.model import PreparedModel
from pqk_ext.training.parameter_groups import parameter_groups

__all__ = ["Driver", "Trainee", "config_of", "driver_of", "network_of"]


class Driver(Protocol):
    """What the training loop asks of whatever it trains; ``model.pqk`` of a prepared model is one."""

    @property
    def global_step(self) -> int: ...
    def loss(self, x: Tensor, y: Tensor) -> Tensor: ...
    def step(self) -> None: ...
    def metrics(self) -> dict[str, float]: ...
    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]: ...


class Trainee(nn.Module):
    """A student and all that only its training needs: other losses, adapters, teachers.

    A subclass overrides :meth:`loss`. What is to be trained, saved and resumed is a submodule; what stays as it is,
    such as a frozen teacher, is kept out of the modules (in a tuple, say) and is made anew when a run is resumed.
    ``fit(trainee, ...)`` then works as for a prepared model; what it validates, and what is deployed, is the student.

    Args:
        student: a prepared model, or a plain network.
    """

    steps_done: Tensor

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.register_buffer("steps_done", torch.tensor(0, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """The student's logits."""
        output: Tensor = self.student(x)
        return output

    @property
    def config(self) -> PQKConfig | None:
        """Settings of the student; None for a plain network."""
        return config_of(self.student)

    @property
    def step_count(self) -> int:
        """Training steps done; a prepared student's own count, which other runs may have begun."""
        return self.student.pqk.global_step if isinstance(self.student, PreparedModel) else int(self.steps_done)

    @property
    def global_step(self) -> int:
        """The same, under the name that controllers have for it."""
        return self.step_count

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of this step, a scalar to be given ``backward()``."""
        raise TypeError(f"{type(self).__name__} has no loss: a Trainee overrides it")

    def step(self) -> None:
        """To be called after each ``optimizer.step()``: moves the student's masks and phases on."""
        self.steps_done += 1
        if isinstance(self.student, PreparedModel):
            self.student.pqk.step()

    def metrics(self) -> dict[str, float]:
        """Numbers for ``metrics.jsonl``: those of a prepared student."""
        return self.student.pqk.metrics() if isinstance(self.student, PreparedModel) else {}

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Every parameter, step sizes with their own small rate and without decay.

        A group may say ``"scheduled": False``: its rate stays as it is. One that says ``"adam": True`` is trained by
        Adam where the others are by ``fit``'s SGD.
        """
        config = self.config
        factor = config.step_size_lr_factor if config is not None else 1.0
        return parameter_groups(self, lr, weight_decay, step_size_lr_factor=factor)


class _Plain:
    """A plain network under cross-entropy."""

    global_step = 0

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self._model(x), y)

    def step(self) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": list(self._model.parameters()), "lr": lr, "weight_decay": weight_decay}]


def driver_of(model: nn.Module) -> Driver:
    """Loss, steps and parameter groups of a trainee, a prepared model or a plain network."""
    if isinstance(model, Trainee):
        return model
    driver: Driver = getattr(model, "pqk", None) or _Plain(model)
    return driver


def network_of(model: nn.Module) -> nn.Module:
    """The network itself: the student of a trainee."""
    return model.student if isinstance(model, Trainee) else model


def config_of(model: nn.Module) -> PQKConfig | None:
    """Settings of the prepared model in it, if there is one."""
    controller = getattr(network_of(model), "pqk", None)
    config: PQKConfig | None = controller.config if controller is not None else None
    return config
