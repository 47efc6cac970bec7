"""Times of kernels on this machine, kept between processes.

Which kernel is the fastest for a layer whose weights hold zeros depends on the layer, its zeros and the CPU. The engine
times them when it meets a layer for the first time; this file remembers. It lies at
``$XDG_CACHE_HOME/pqk_ext/kernels.json`` (``~/.cache`` by default), or where the environment variable
``PQK_KERNEL_TABLE`` says; an empty value keeps nothing. It may be removed at any time. Results never depend on it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

from pqk_ext import _core
from pqk_ext.runtime.replace import replace_file

__all__ = ["KernelTable", "location", "read", "remember"]

KernelTable = dict[str, dict[str, float]]
"""Seconds by kernel name, by layer."""

_KEPT_MACHINES = 8  # in one file: CPUs that share a home directory, and builds of this package


def location() -> Path | None:
    """Where the table of this process lies; None keeps nothing."""
    named = os.environ.get("PQK_KERNEL_TABLE")
    if named is not None:
        return Path(named) if named else None
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home directory
        return None
    return base / "pqk_ext" / "kernels.json"


@cache
def _machine() -> str:
    """The CPU and the build of the kernels: what times are valid for."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    library = Path(_core.__file__).with_name("libpqk_core.so")
    with contextlib.suppress(OSError):
        return f"{cpu}, build {library.stat().st_mtime_ns}"
    return cpu


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(times, dict)
        and all(isinstance(time, float) and math.isfinite(time) and time > 0 for time in times.values())
        for times in value.values()
    )


def _read_all(path: Path) -> dict[str, KernelTable]:
    """Every machine's table; whatever cannot be read counts as not there: it is measured again."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict):
        return {}
    return {machine: table for machine, table in document.items() if _is_table(table)}


def read() -> KernelTable:
    """What is known of this machine."""
    path = location()
    return {} if path is None else _read_all(path).get(_machine(), {})


def remember(measured: KernelTable) -> None:
    """Adds ``measured`` to the file, whole or not at all. Where that fails, the next process measures again."""
    path = location()
    if path is None or not measured:
        return
    tables = _read_all(path)
    own = tables.pop(_machine(), {}) | measured
    kept = dict(list(tables.items())[1 - _KEPT_MACHINES :]) | {_machine(): own}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(kept, indent=1) + "\n").encode())
