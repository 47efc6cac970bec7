"""Batch norm with statistics and parameters of its own for the teacher.

Sharing them breaks the student: its running statistics would mix two distributions.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from pqk_ext.nn.roles import Role

__all__ = ["PQKBatchNorm1d", "PQKBatchNorm2d", "RoleBatchNorm"]


class RoleBatchNorm(nn.Module):
    """What :class:`PQKBatchNorm2d` and :class:`PQKBatchNorm1d` add: a ``teacher`` batch norm, or None (shared)."""

    teacher: nn.BatchNorm1d | nn.BatchNorm2d | None

    def _take_over(self, source: nn.BatchNorm1d | nn.BatchNorm2d, separate: bool) -> None:
        if not source.track_running_stats:
            raise ValueError("batch norm must track running statistics (track_running_stats=True) to be deployed")
        for name, parameter in source.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in source.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.teacher = copy.deepcopy(source) if separate else None

    def copy_to_teacher(self) -> None:
        """Starts the teacher's batch norm, where there is one, from the student's values."""
        if self.teacher is not None:
            own = self.state_dict()
            for name, value in self.teacher.state_dict().items():
                value.copy_(own[name])


class PQKBatchNorm2d(RoleBatchNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` for two roles."""

    def __init__(self, source: nn.BatchNorm2d, separate: bool) -> None:
        nn.BatchNorm2d.__init__(self, source.num_features, source.eps, source.momentum, source.affine, device="meta")
        self._take_over(source, separate)

    def forward(self, input: Tensor, role: Role = Role.STUDENT) -> Tensor:
        """Normalized ``input`` (N, C, H, W)."""
        if role is Role.TEACHER and self.teacher is not None:
            output: Tensor = self.teacher(input)
            return output
        return nn.BatchNorm2d.forward(self, input)


class PQKBatchNorm1d(RoleBatchNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` for two roles."""

    def __init__(self, source: nn.BatchNorm1d, separate: bool) -> None:
        nn.BatchNorm1d.__init__(self, source.num_features, source.eps, source.momentum, source.affine, device="meta")
        self._take_over(source, separate)

    def forward(self, input: Tensor, role: Role = Role.STUDENT) -> Tensor:
        """Normalized ``input`` (N, C) or (N, C, L)."""
        if role is Role.TEACHER and self.teacher is not None:
            output: Tensor = self.teacher(input)
            return output
        return nn.BatchNorm1d.forward(self, input)
