"""The arguments of ``fit`` that decide a run's result, checked before anything is written or trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import torch

from pqk_ext.config import PQKConfig
from pqk_ext.training.data import Augment
from pqk_ext.training.errors import ResumeMismatchError
from pqk_ext.training.optimizers import sgd
from pqk_ext.training.trainee import driver_of

__all__ = ["Settings", "compare_with_checkpoint", "cosine"]

_SCHEDULE_VALUES = 8
_OPTIONAL = ("autocast", "compile", "cuda_graphs")

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def cosine(progress: float) -> float:
    """Learning-rate factor that falls from 1 to 0 along half a cosine; ``progress`` is in [0, 1)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """See ``fit`` for the meaning of each field."""

    config: PQKConfig | None
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    lr: float
    phase2_lr_factor: float | None
    weight_decay: float
    momentum: float
    optimizer: OptimizerFactory | None
    schedule: Callable[[float], float]
    augment: Augment | None
    seed: int
    log_every: int
    diagnose_every: int
    autocast: Literal["bf16"] | None = None
    compile: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "log_every"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {getattr(self, name)!r}")
        for name in ("lr", "phase2_lr_factor", "weight_decay", "momentum"):
            value = getattr(self, name)
            if name == "phase2_lr_factor" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a number in [0, inf), got {value!r}")
        for name in ("seed", "diagnose_every"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise ValueError(f"{name}: expected an integer of at least 0, got {getattr(self, name)!r}")
        if self.autocast not in (None, "bf16"):
            raise ValueError(f"autocast: expected None or 'bf16', got {self.autocast!r}")
        for name in ("compile", "cuda_graphs"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        if self.compile and self.cuda_graphs:
            raise ValueError("cuda_graphs: expected False beside compile=True, got True")

    def lr_factor(self, step: int) -> float:
        """Factor of every group's learning rate at ``step``; the schedule starts anew with phase 2, if that has one."""
        if self.config is None or self.phase2_lr_factor is None:
            return self.schedule(step / self.total_steps)
        phase1 = self.config.phase1_steps
        if step < phase1:
            return self.schedule(step / phase1)
        return self.phase2_lr_factor * self.schedule((step - phase1) / max(1, self.total_steps - phase1))

    def phase(self, step: int) -> int | None:
        """The phase of PQK at ``step``; None for a plain network."""
        return None if self.config is None else 1 if step < self.config.phase1_steps else 2

    def may_be_best(self, step: int) -> bool:
        """Before the final sparsity is reached a network is better than what can be deployed."""
        if self.config is None or step == self.total_steps:
            return True
        return step >= min(self.config.phase1_steps, self.config.ramp_end_step + self.config.mask_update_interval)

    def diagnosis_due(self, step: int) -> bool:
        """Whether the validation after ``step`` steps is one with a diagnosis: the last one always."""
        if self.diagnose_every == 0:
            return False
        last_validation = (step - 1) // self.steps_per_epoch * self.steps_per_epoch
        return step == self.total_steps or step // self.diagnose_every > last_validation // self.diagnose_every

    def make_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The given factory's optimizer, or SGD with Nesterov momentum; step sizes are a group of their own."""
        groups = driver_of(model).parameter_groups(self.lr, self.weight_decay)
        if self.optimizer is not None:
            return self.optimizer(groups)
        return sgd(groups, self.momentum)

    def to_json(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """A flat, comparable form.

        Functions are told apart by their names, the schedule also by some of its values, the optimizer's factory by
        what it makes: its class and the options of each group.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        config = values.pop("config")
        # What a run does not use it does not state, so that runs go on that were begun before there was a choice.
        values = {name: value for name, value in values.items() if value or name not in _OPTIONAL}
        values = {name: _function_name(value) if callable(value) else value for name, value in values.items()}
        places = [index / _SCHEDULE_VALUES for index in range(_SCHEDULE_VALUES)]
        values["schedule_values"] = [float(self.schedule(place)) for place in places]
        values["optimizer_class"] = type(optimizer).__qualname__
        for index, group in enumerate(optimizer.param_groups):
            options = {name: value for name, value in group.items() if name not in ("params", "lr")}
            values[f"optimizer_group_{index}"] = {name: _plain(value) for name, value in sorted(options.items())}
        return values | {f"config.{name}": value for name, value in (config.to_dict() if config else {}).items()}


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _function_name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def compare_with_checkpoint(
    stored: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]], *, allow_inexact: bool
) -> list[str]:
    """Differences between the run on disk and this one, by the kinds "settings", "data" and "environment".

    Returns:
        The environment's differences, if ``allow_inexact``; else it is empty.

    Raises:
        ResumeMismatchError: other settings or data; another environment unless ``allow_inexact``.
    """
    differences = {kind: _differences(stored[kind], now[kind]) for kind in now}
    fatal = [line for kind, lines in differences.items() if kind != "environment" for line in lines]
    if fatal:
        raise ResumeMismatchError("the run on disk cannot go on: " + "; ".join(fatal))
    if differences["environment"] and not allow_inexact:
        raise ResumeMismatchError(
            "going on would not give the bits of an uninterrupted run (allow_inexact=True permits it): "
            + "; ".join(differences["environment"])
        )
    return differences["environment"]


def _differences(stored: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = sorted(stored.keys() | now.keys())
    pairs = [(name, stored.get(name), now.get(name)) for name in names]
    return [f"{name} was {before!r}, is {after!r}" for name, before, after in pairs if before != after]
