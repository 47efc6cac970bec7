"""Convolution over a sequence whose one weight tensor serves the student and the teacher."""

from __future__ import annotations

from torch import Tensor, nn

from pqk_ext.nn.layers import PQKLayer, Sharing
from pqk_ext.nn.roles import Role

__all__ = ["PQKConv1d"]


class PQKConv1d(PQKLayer, nn.Conv1d):
    """``nn.Conv1d`` with a pruning mask and learned symmetric per-channel quantization of its weight."""

    def __init__(self, source: nn.Conv1d, bits: int, prunable: bool, sharing: Sharing) -> None:
        nn.Conv1d.__init__(
            self,
            source.in_channels,
            source.out_channels,
            source.kernel_size,  # type: ignore[arg-type]
            stride=source.stride,  # type: ignore[arg-type]
            padding=source.padding,  # type: ignore[arg-type]
            dilation=source.dilation,  # type: ignore[arg-type]
            groups=source.groups,
            bias=source.bias is not None,
            padding_mode=source.padding_mode,
            device="meta",
        )
        self._extend(source, bits, prunable, sharing)

    def forward(self, input: Tensor, role: Role = Role.STUDENT) -> Tensor:
        """Convolution of ``input`` (N, C, L) in the given role."""
        output: Tensor
        if role is Role.TEACHER and self.teacher is not None:
            output = self.teacher(input)
        else:
            output = self._conv_forward(input, *self.role_parameters(role))
        return output
