"""The emulation that runs CUDA kernels on the CPU, for tests: is it there, and in which order it runs threads."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import pytest

import pqk_ext

PACKAGE = Path(pqk_ext.__file__).parent
# As csrc/core/cuda/emulation/grid.h numbers them.
ORDERS = {"forward": 0, "backward": 1, "shuffled": 2}
EMULATED = [f"emulated-{order}" for order in ORDERS]
CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


@cache
def emulation() -> ctypes.CDLL:
    """The library that runs kernels on the CPU; skips the test where it was not built."""
    library = PACKAGE / "libpqk_cuda_emulated.so"
    if not library.exists():
        pytest.skip(f"{library.name} was NOT built (cmake -DPQK_CUDA_EMULATION=ON): the CUDA kernels were NOT emulated")
    return ctypes.CDLL(str(library))


def set_order(name: str, seed: int = 0) -> None:
    """In which order the emulation runs threads from now on: a key of ``ORDERS``."""
    emulation().pqk_emulation_set_order(ctypes.c_int(ORDERS[name]), ctypes.c_uint32(seed))
