"""The parts that one network plays in PQK: they share weights and differ in what they use of them."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from torch import Tensor

__all__ = ["NetworkOutput", "Role"]


class Role(Enum):
    """Which network a forward pass computes.

    STUDENT: masked, fake-quantized weights; fake-quantized activations; the network that is deployed.
    TEACHER: important and unimportant weights together, in float; its own batch norms and head.
    FLOAT: all weights in float with the student's batch norms and head: the warm-up.
    PRUNED: the important weights in float, the others 0, otherwise as FLOAT: pruning before quantization, calibration.
    """

    STUDENT = "student"
    TEACHER = "teacher"
    FLOAT = "float"
    PRUNED = "pruned"


class NetworkOutput(NamedTuple):
    """What a network says of a batch.

    Attributes:
        logits: shape (batch, classes).
        features: values from inside the network, those that were asked for.
    """

    logits: Tensor
    features: tuple[Tensor, ...] = ()
