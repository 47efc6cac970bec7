"""The plan of a prepared network: what one integer operation will compute, decided once for training and export."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Block", "Plan", "image_shape"]


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A sequence ``(C, L)`` as an image ``(C, 1, L)``; other shapes as they are."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


@dataclass(frozen=True)
class Block:
    """One step of a prepared network. Block ``i`` gives value ``i``; block 0 is the input.

    Attributes:
        op: ``input``, ``conv2d``, ``linear``, ``add``, ``concat``, ``affine``, ``lookup``, ``max_pool2d``,
            ``avg_pool2d``, ``adaptive_avg_pool2d``, ``flatten``, ``slice``, ``pad``, ``dropout``, ``softmax``.
        name: name of the traced node, for people.
        inputs: indices of the values it reads; for a conv2d or linear a second one is the residual operand.
        shape: of its value, without the batch dimension: ``(C, H, W)``, ``(C,)``, and ``(C, 1, L)`` for a sequence
            ``(C, L)``, but for the input, which keeps the shape that callers give. The operators and attributes of
            sequences are those of images of height 1.
        module: path of the convolution, linear or dropout module.
        batch_norm: path of the batch norm that follows (conv2d, linear) or is the block (affine).
        activation: ``relu``, ``relu6`` or None; for lookup the name of the function.
        attributes: geometry, as in ``pqk_ext.runtime.graph``. A transposed convolution is a conv2d that has besides
            ``input_dilation``, the distances to which the positions of its input are moved apart; its padding may be
            negative.
        quantizer: key of the quantizer on its value; None where the value keeps its input's codes or is float.
        pre_padding: zeros (top, left, bottom, right) that a separate padding module puts before the convolution;
            ``attributes["padding"]`` contains them.
        float_output: the value is float32 (the last convolution or linear layer).
    """

    op: str
    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    module: str | None = None
    batch_norm: str | None = None
    activation: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    quantizer: str | None = None
    pre_padding: tuple[int, int, int, int] | None = None
    float_output: bool = False

    def with_(self, **changes: Any) -> Block:
        """A copy with some fields replaced."""
        return replace(self, **changes)

    @property
    def never_negative(self) -> bool:
        """Whether its value cannot be below 0."""
        return self.activation in ("relu", "relu6", "sigmoid", "hardsigmoid")


Plan = tuple[Block, ...]
