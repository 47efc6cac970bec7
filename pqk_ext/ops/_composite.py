"""Ops on a GPU that have no kernel there: torch's own operators, below autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["check_mask", "check_masked", "composite_on_cuda"]

Function = TypeVar("Function", bound=Callable[..., Any])


def composite_on_cuda(name: str) -> Callable[[Function], Function]:
    """Registers a function as the op's CUDA kernel, unless the library of CUDA kernels has one."""

    def register(function: Function) -> Function:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"):
            torch.library.register_kernel(name, "cuda", function)
        return function

    return register


def check_mask(op: str, weight: Tensor, mask: Tensor) -> None:
    """Raises RuntimeError unless ``mask`` is a bool tensor of the weight's shape and device."""
    if mask.dtype != torch.bool:
        raise RuntimeError(f"{op}: mask must be Bool, got {mask.dtype}")
    if mask.shape != weight.shape:
        raise RuntimeError(f"{op}: mask must have weight's shape {list(weight.shape)}, got {list(mask.shape)}")
    if mask.device != weight.device:
        raise RuntimeError(f"{op}: mask must be on weight's device {weight.device}, got {mask.device}")


def check_masked(op: str, weight: Tensor, mask: Tensor, kernel: str) -> None:
    """The same, and that ``kernel`` is one for a GPU."""
    check_mask(op, weight, mask)
    if kernel not in ("auto", "dense"):
        wanted = "kernel sparse is for float32 on the CPU" if kernel == "sparse" else "kernel must be auto or dense"
        raise RuntimeError(f"{op}: {wanted}, got {kernel!r} on {weight.device}")
