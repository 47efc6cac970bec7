"""What every op file states about its op, so that one test battery can serve all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Sample = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class OpSpec:
    """One op: its raw torch overload, public function, plain-torch reference and sample arguments.

    Attributes:
        name: stem of the op, the same in every layer.
        overload: the registered op, for ``torch.library.opcheck``.
        function: the public function of ``pqk_ext.ops``.
        reference: the same result in plain torch, written another way.
        samples: yields positional and keyword arguments of ``function``; the first are small.
        opcheck_samples: yields arguments of ``overload``.
        exact: whether function and reference agree to the bit.
    """

    name: str
    overload: Any
    function: Callable[..., Any]
    reference: Callable[..., Any]
    samples: Callable[[], Iterator[Sample]]
    opcheck_samples: Callable[[], Iterator[Sample]]
    exact: bool = True


SPECS: dict[str, OpSpec] = {}


def register(spec: OpSpec) -> OpSpec:
    """Adds an op to the battery of ``tests/ops/test_all_ops.py``."""
    SPECS[spec.name] = spec
    return spec


def layouts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The same values contiguous, transposed-and-back, as a strided view, and channels_last (4-d)."""
    yield tensor
    if tensor.dim() >= 2:
        yield tensor.transpose(0, 1).contiguous().transpose(0, 1)
    yield torch.stack([tensor, tensor], dim=-1)[..., 0]
    if tensor.dim() == 4:
        yield tensor.contiguous(memory_format=torch.channels_last)
