"""Where tensors are computed: devices that users name, and what must hold there for runs to repeat bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pqk_ext import _core

__all__ = ["repeatable_kernels", "usable_device"]


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device that a user has named, if it can be used here; None is the CPU.

    Raises:
        RuntimeError: CUDA that torch or this package was built without, no driver, or no such GPU; names the cause.
        ValueError: another kind of device, or no device at all.
    """
    try:
        found = torch.device("cpu" if device is None else device)
    except RuntimeError as error:
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {device!r}") from error
    if found.type == "cpu":
        return found
    if found.type != "cuda":
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {str(device)!r}")
    if torch.version.cuda is None:
        raise RuntimeError(f"device: {found} cannot be used: torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        raise RuntimeError(f"device: {found} cannot be used: {_why_not_available()}")
    if found.index is not None and found.index >= torch.cuda.device_count():
        raise RuntimeError(f"device: {found} cannot be used: this machine has {torch.cuda.device_count()} GPU(s)")
    if not _core.build_config()["cuda_ops"]:
        raise RuntimeError(
            f"device: {found} cannot be used: this build of pqk_ext has no CUDA ops; "
            "rebuild it where nvcc is found: pip install --no-build-isolation -C cmake.define.PQK_CUDA=ON ."
        )
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def _why_not_available() -> str:
    """What CUDA itself says."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "torch finds no GPU"


@contextlib.contextmanager
def repeatable_kernels(device: torch.device) -> Iterator[None]:
    """On a GPU, cuDNN chooses only among deterministic algorithms in this block, and by rule, not by a measurement."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
