"""A teacher whose stages pass through the widths of a narrower student, so that both have Gramians of one size."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.distill.kl import kl
from pqk_ext.teachers import Teacher
from pqk_ext.training import Trainee

__all__ = ["TaughtFloat", "narrowed"]


def narrowed(
    network: nn.Module, stages: Sequence[str], channels: Sequence[int], wanted: Sequence[int]
) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy of a network with 1x1 convolutions to other widths and back after some of its stages.

    Args:
        network: a plain network; the copy starts with its weights.
        stages: paths of modules.
        channels: of what each gives.
        wanted: width between the two convolutions; a stage that has it already is left as it is.

    Returns:
        The copy, and the paths of the modules whose outputs have the wanted widths.
    """
    network = copy.deepcopy(network)
    places = []
    for stage, own, width in zip(stages, channels, wanted, strict=True):
        places.append(stage)
        if own == width:
            continue
        module = network.get_submodule(stage)
        # The activation of a stage that is named by its batch norm follows after it; here it is needed before, too.
        inside = isinstance(module, nn.BatchNorm2d)
        parts: OrderedDict[str, nn.Module] = OrderedDict(stage=module)
        if inside:
            parts["activation"] = nn.ReLU()
        parts["narrow"] = nn.Sequential(nn.Conv2d(own, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widen: list[nn.Module] = [nn.Conv2d(width, own, 1, bias=False), nn.BatchNorm2d(own)]
        parts["widen"] = nn.Sequential(*widen, *([] if inside else [nn.ReLU()]))
        network.set_submodule(stage, nn.Sequential(parts))
        places[-1] = f"{stage}.narrow"
    return network, tuple(places)


class TaughtFloat(Trainee):
    """A plain network under cross-entropy and a teacher's predictions.

    Args:
        student: the network.
        teacher: see :mod:`pqk_ext.teachers`.
        kl_weight: of the predictions.
        temperature: of the predictions on both sides.
    """

    def __init__(self, student: nn.Module, teacher: Teacher, *, kl_weight: float, temperature: float) -> None:
        super().__init__(student)
        self._teacher = (teacher,)
        self._kl_weight, self._temperature = kl_weight, temperature

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of this step."""
        logits = self.student(x)
        told = self._teacher[0](x, self.step_count).logits
        return F.cross_entropy(logits, y) + self._kl_weight * kl(logits, told, self._temperature)
