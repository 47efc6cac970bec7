"""Convolutions that bring the student's features to the teacher's widths; they are trained, but not deployed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["Adapters"]


class Adapters(nn.Module):
    """1x1 convolutions, one a stage, each with batch norm after it.

    An adapter is free to solve the teacher's task by itself, so that the body of the student learns nothing from it.
    ``frozen`` is the control for that: random orthogonal maps that stay as they are.

    Args:
        student_channels: of each stage.
        teacher_channels: of each stage.
        batch_norm: follow each convolution by batch norm.
        bias: of the convolutions.
        frozen: random maps with orthonormal rows or columns; nothing is trained, batch norm has no scale and shift.
        only_different: stages of equal widths are left as they are.

    Raises:
        ValueError: numbers of stages that differ, or a number of channels below 1.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        batch_norm: bool = True,
        bias: bool = False,
        frozen: bool = False,
        only_different: bool = False,
    ) -> None:
        super().__init__()
        if len(teacher_channels) != len(student_channels):
            raise ValueError(
                f"teacher_channels: expected a number for each of the student's {len(student_channels)} stages, "
                f"got {len(teacher_channels)}"
            )
        if min([*student_channels, *teacher_channels], default=1) < 1:
            raise ValueError(f"channels: expected 1 or more, got {[*student_channels]} and {[*teacher_channels]}")
        self.stages = nn.ModuleList()
        for own, wanted in zip(student_channels, teacher_channels, strict=True):
            stage = nn.Sequential()
            if own != wanted or not only_different:
                stage.append(nn.Conv2d(own, wanted, 1, bias=bias))
                if batch_norm:
                    stage.append(nn.BatchNorm2d(wanted, affine=not frozen))
            self.stages.append(stage)
        if frozen:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.orthogonal_(module.weight)
            self.requires_grad_(False)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of the teacher's widths.

        Args:
            features: as many as there are stages, each (batch, channels, height, width).

        Raises:
            ValueError: another number of features.
        """
        if len(features) != len(self.stages):
            raise ValueError(f"features: expected {len(self.stages)} stages, got {len(features)}")
        return [stage(feature) for stage, feature in zip(self.stages, features, strict=True)]
