"""Two optimizers as one, where some parameters of a network are not to be trained like its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["SGDAndAdam", "sgd"]


class SGDAndAdam(torch.optim.Optimizer):
    """SGD for most groups, Adam for those that say ``"adam": True``; one list of groups, one state dict.

    Args:
        groups: parameter groups with ``lr`` and ``weight_decay``.
        momentum: of SGD, Nesterov's.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        plain = [group for group in groups if not group.get("adam")]
        marked = [group for group in groups if group.get("adam")]
        if not plain or not marked:
            raise ValueError("groups: expected some with and some without adam=True, got only one kind")
        self._parts: tuple[torch.optim.Optimizer, ...] = ()
        super().__init__(groups, {"adam": False})
        self._parts = (
            torch.optim.SGD(plain, momentum=momentum, nesterov=momentum > 0),
            torch.optim.Adam(marked),
        )
        # The parts' groups are the groups, with the options that each part has added; so schedules reach them.
        parts = [iter(part.param_groups) for part in self._parts]
        self.param_groups = [next(parts[bool(group.get("adam"))]) for group in groups]
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """The parts work on this object's groups and states, also after those were loaded."""
        for is_adam, part in enumerate(self._parts):
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if bool(group.get("adam")) == bool(is_adam)]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def sgd(groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; groups that say ``"adam": True`` get Adam."""
    if any(group.get("adam") for group in groups):
        return SGDAndAdam(groups, momentum)
    return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0)
