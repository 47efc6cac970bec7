"""What one core of this machine can do at most, measured in the run whose figures stand beside it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

import paired

from pqk_ext import _core

L3_BYTES, COPY_BYTES = 16 << 20, 64 << 20


def fma_peak() -> float | None:
    """float32 multiply-adds a second in `ceilings.cpp`, compiled here for this CPU; None without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "ceilings.so"
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O2", "-march=native", "-fPIC", "-shared"]
        source = str(Path(__file__).with_suffix(".cpp"))
        try:
            subprocess.run([*command, source, "-o", str(library)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        function = ctypes.CDLL(str(library)).fma_peak
        function.restype = ctypes.c_double
        return float(function())


def measure() -> dict[str, float | None]:
    """Ceilings of one core: operations and bytes a second.

    Returns:
        `int8_macs`: int8 multiply-accumulates a second in the instruction set in use; `float_macs`: float32 ones;
        `l3_read`: bytes a second read from L3; `copy`: bytes a second read and written by a copy in memory.
    """
    return {
        "int8_macs": _core.int8_peak(),
        "float_macs": fma_peak(),
        "l3_read": _core.read_bandwidth(L3_BYTES),
        "copy": COPY_BYTES / paired.copy_us(COPY_BYTES, rounds=10) * 1e6,
    }
