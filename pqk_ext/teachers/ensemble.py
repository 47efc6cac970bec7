"""Several frozen teachers, of which another random average teaches at each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from pqk_ext.nn import NetworkOutput

if TYPE_CHECKING:
    from pqk_ext.teachers import Teacher

__all__ = ["AVERAGES", "Draw", "EnsembleTeacher"]

Average = Literal["subset", "weights", "mean"]
AVERAGES: tuple[Average, ...] = ("subset", "weights", "mean")


@dataclasses.dataclass(frozen=True)
class Draw:
    """Who teaches at one step.

    Attributes:
        weights: of each member's probabilities; they sum to 1.
        features_from: the member that gives the features, one of those with a weight.
    """

    weights: tuple[float, ...]
    features_from: int


class EnsembleTeacher:
    """An average of the predictions of frozen teachers, drawn anew at each step.

    After the offline ensemble of Chou, Chiu and Liao (APSIPA Transactions on Signal and Information Processing 10,
    2021), whose "random average" is known by name only. Here a non-empty subset is drawn uniformly and its members
    count alike.

    What is averaged are probabilities. The logits are ``T`` times the logarithm of the average of the members'
    ``softmax(logits / T)``: a loss at that temperature sees the average exactly. Features come from one member, since
    the channels of networks that were trained apart do not correspond.

    A draw is a function of seed and step, so that a run that is resumed hears the same.

    Args:
        members: each a teacher.
        seed: of the draws.
        average: ``"subset"``; ``"weights"``: random convex weights, uniform over all of them; ``"mean"``: all members
            alike at each step, the control.
        features: ``"drawn"``: a random member of the draw gives the features; ``"first"``: always member 0.
        temperature: T, at which the loss compares.

    Raises:
        ValueError: no members or more than 62, an unknown word, or a temperature that is not positive.
    """

    def __init__(
        self,
        members: Sequence[Teacher],
        *,
        seed: int,
        average: Average = "subset",
        features: Literal["drawn", "first"] = "drawn",
        temperature: float = 1.0,
    ) -> None:
        if not 1 <= len(members) <= 62:
            raise ValueError(f"members: expected 1 to 62 teachers, got {len(members)}")
        if average not in AVERAGES:
            raise ValueError(f"average: expected one of {', '.join(AVERAGES)}, got {average!r}")
        if features not in ("drawn", "first"):
            raise ValueError(f"features: expected drawn or first, got {features!r}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        self._members, self._seed, self._temperature = tuple(members), seed, temperature
        self._average, self._features = average, features

    def draw(self, step: int) -> Draw:
        """Who teaches at a step."""
        random = np.random.default_rng([self._seed, step])
        count = len(self._members)
        weights = np.full(count, 1 / count)
        if self._average == "subset":
            bits = int(random.integers(1, 2**count))
            chosen = np.array([bits >> member & 1 for member in range(count)])
            weights = chosen / chosen.sum()
        elif self._average == "weights":
            weights = random.dirichlet(np.ones(count))
        teaching = np.flatnonzero(weights)
        source = 0 if self._features == "first" else int(random.choice(teaching))
        return Draw(tuple(float(weight) for weight in weights), source)

    def __call__(self, x: Tensor, step: int) -> NetworkOutput:
        """The average of the members drawn for ``step``; the others compute nothing."""
        draw, temperature = self.draw(step), self._temperature
        logarithms: list[Tensor] = []
        features: tuple[Tensor, ...] = ()
        with torch.no_grad():
            for index, (member, weight) in enumerate(zip(self._members, draw.weights, strict=True)):
                if weight == 0 and index != draw.features_from:
                    continue
                told = member(x, step)
                if index == draw.features_from:
                    features = told.features
                if weight > 0:
                    logarithms.append((told.logits / temperature).log_softmax(1) + float(np.log(weight)))
            logits = temperature * torch.stack(logarithms).logsumexp(0)
        return NetworkOutput(logits, features)
