"""A teacher's training run as a teacher: snapshots along it, and one after the other as what the student follows.

Jin, Peng, Wu, Liu, Liu, Liang, Yan and Hu, "Knowledge Distillation via Route Constrained Optimization", ICCV 2019.
A snapshot is the whole state of the network, running statistics included: a network of an earlier step with the
statistics of the last one would be none that was ever there.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.teachers import TeacherOutput
from pqk_ext.teachers.frozen import FloatTeacher
from pqk_ext.training.checkpoint import read_checkpoint, write_checkpoint
from pqk_ext.training.durable import sweep_temporaries
from pqk_ext.training.errors import CheckpointError
from pqk_ext.training.trainee import Trainee

__all__ = ["Route", "RouteTeacher", "RouteTraining", "equal_parts"]


def equal_parts(steps: int, parts: int) -> tuple[int, ...]:
    """The ``parts + 1`` edges of equal parts of a run of ``steps``, rounded down: from 0 to ``steps``.

    Raises:
        ValueError: less than one part, or more parts than steps.
    """
    if not 1 <= parts <= steps:
        raise ValueError(f"parts: expected an integer from 1 to steps = {steps}, got {parts}")
    return tuple(part * steps // parts for part in range(parts + 1))


class RouteTraining(Trainee):
    """Trains a plain network with cross-entropy, and keeps its state at the given steps.

    Each snapshot is a file with a digest, whole or absent after any crash. One that is written again, because the run
    was resumed from a checkpoint before it, has the same bytes.

    Args:
        student: the network, which is to be a teacher.
        directory: takes the snapshots; made if absent. Not the directory of the run.
        points: numbers of training steps after which to keep the state; 0 is the network before its training.
    """

    def __init__(self, student: nn.Module, directory: str | os.PathLike[str], points: Sequence[int]) -> None:
        super().__init__(student)
        self._directory, self._points = Path(directory), frozenset(points)
        self._directory.mkdir(parents=True, exist_ok=True)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of the batch."""
        if self.step_count == 0:
            self._keep()
        return F.cross_entropy(self.student(x), y)

    def step(self) -> None:
        """Counts the step, and keeps the state if this is one of the points."""
        super().step()
        self._keep()

    def _keep(self) -> None:
        # Of several processes, all of which hold the same weights, the first one writes.
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self.step_count in self._points and not (distributed and torch.distributed.get_rank()):
            sweep_temporaries(self._directory)  # here, and not earlier: the run's lock is held while it trains
            state = {"model": dict(self.student.state_dict()), "step": self.step_count}
            write_checkpoint(_path(self._directory, self.step_count), state)


class Route:
    """The snapshots of one training run, by number: 0 is the untrained network, ``len(route)`` the converged one.

    Args:
        directory: where :class:`RouteTraining` put them.
        model: a network of the same kind; what it holds makes no difference.
        points: the steps of the snapshots, with 0, increasing.
        example_inputs: a float32 batch.
        taps: modules after which features are taken (:func:`pqk_ext.preparation.find_taps`).
        before_activation: take them before the activation.

    Raises:
        CheckpointError: a snapshot is missing.
        ValueError: points that do not begin with 0 and increase.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        model: nn.Module,
        points: Sequence[int],
        example_inputs: Tensor,
        *,
        taps: Sequence[str] = (),
        before_activation: bool = False,
    ) -> None:
        self._directory, self._model, self.points = Path(directory), model, tuple(points)
        self._example_inputs, self._taps, self._before = example_inputs, tuple(taps), before_activation
        self._teacher: tuple[int, FloatTeacher] | None = None
        if len(self.points) < 2 or self.points[0] != 0 or list(self.points) != sorted(set(self.points)):
            raise ValueError(f"points: expected 0 and increasing steps after it, got {self.points}")
        for point in self.points:
            if not (path := _path(self._directory, point)).exists():
                raise CheckpointError(f"{path}: missing: remove the directory of the teacher's run and train it again")

    def __len__(self) -> int:
        """Snapshots after the untrained network."""
        return len(self.points) - 1

    def teacher(self, number: int) -> FloatTeacher:
        """The network of a snapshot, with its own running statistics; the last one asked for stays in memory.

        Raises:
            CheckpointError: the file is damaged.
            IndexError: no snapshot of that number.
        """
        if not 0 <= number <= len(self):
            raise IndexError(f"number: expected a snapshot from 0 to {len(self)}, got {number}")
        if self._teacher is None or self._teacher[0] != number:
            self._model.load_state_dict(read_checkpoint(_path(self._directory, self.points[number]))["model"])
            teacher = FloatTeacher(self._model, self._example_inputs, taps=self._taps, before_activation=self._before)
            self._teacher = (number, teacher)
        return self._teacher[1]


class RouteTeacher:
    """The teacher of a student that follows a route: one snapshot for each stage of the student's run.

    Args:
        route: the snapshots.
        anchors: of each stage the number of its snapshot, or a function of the stage that gives it, for anchors that
            are chosen while the student learns.
        edges: the student's steps between which the stages lie (:func:`equal_parts`): one more than there are stages.

    Raises:
        ValueError: another number of anchors than of stages, or an anchor that is not on the route.
    """

    def __init__(self, route: Route, anchors: Sequence[int] | Callable[[int], int], edges: Sequence[int]) -> None:
        self.route, self.edges = route, tuple(edges)
        if callable(anchors):
            self._anchor = anchors
            return
        fixed = tuple(anchors)
        if len(fixed) != len(self.edges) - 1:
            raise ValueError(f"anchors: expected one for each of {len(self.edges) - 1} stages, got {fixed}")
        if not all(0 <= anchor <= len(route) for anchor in fixed):
            raise ValueError(f"anchors: expected snapshots from 0 to {len(route)}, got {fixed}")
        self._anchor = fixed.__getitem__

    def stage(self, step: int) -> int:
        """The stage that a step of the student belongs to; steps after the last edge to the last stage."""
        return min(bisect.bisect_right(self.edges, step), len(self.edges) - 1) - 1

    def __call__(self, x: Tensor, step: int) -> TeacherOutput:
        """What this stage's snapshot says of ``x``."""
        return self.route.teacher(self._anchor(self.stage(step)))(x, step)


def _path(directory: Path, point: int) -> Path:
    return directory / f"step-{point:08d}.ckpt"  # the name of checkpoints, so that their left-overs are swept alike
