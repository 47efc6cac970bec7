"""Where features are taken from inside a prepared network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pqk_ext.preparation.blocks import Block
    from pqk_ext.preparation.model import PreparedModel

__all__ = ["Tap", "find_taps", "stage_outputs"]

_STAGE_OPS = ("conv2d", "add", "concat", "affine")


@dataclass(frozen=True)
class Tap:
    """One value inside a prepared network.

    Attributes:
        block: index of the block in the plan.
        before_activation: the float value after batch norm and residual addition, before activation and quantizer.
    """

    block: int
    before_activation: bool = False


def find_taps(model: PreparedModel, names: Sequence[str], *, before_activation: bool = False) -> tuple[Tap, ...]:
    """The last value that each of the named modules computes.

    Args:
        model: the prepared network.
        names: paths of modules, such as ``"layer2"`` or ``"layers.0.bn2"``; the value is that of the last block whose
            layer or batch norm is that module or lies in it, with the activation and the residual addition after it.
        before_activation: take it before the activation.

    Raises:
        ValueError: a name in which no block of the network lies.
    """
    return tuple(Tap(_last_block(model, name), before_activation) for name in names)


def _last_block(model: PreparedModel, name: str) -> int:
    inside = [i for i, block in enumerate(model.plan) if any(_lies_in(path, name) for path in _paths(block))]
    if not inside:
        known = ", ".join(dict.fromkeys(path for block in model.plan for path in _paths(block)))
        raise ValueError(f"names: no layer of the network lies in {name!r}; its layers: {known}")
    return inside[-1]


def _paths(block: Block) -> list[str]:
    return [path for path in (block.module, block.batch_norm) if path is not None]


def _lies_in(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def stage_outputs(model: PreparedModel, *, before_activation: bool = False) -> tuple[Tap, ...]:
    """The last value of each spatial resolution, in the order of the network."""
    last = {
        block.shape[1:]: i for i, block in enumerate(model.plan) if block.op in _STAGE_OPS and len(block.shape) == 3
    }
    return tuple(Tap(index, before_activation) for index in last.values())
