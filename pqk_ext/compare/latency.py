"""How fast the files of all cells run, measured side by side when nothing else of the experiment runs."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pqk_ext import cost
from pqk_ext.compare.summary import machine
from pqk_ext.runtime.replace import replace_file

__all__ = ["measure_latencies"]

_ROUNDS = 15  # of about 20 ms
_IDLE = 0.1  # processors that others may use while a measurement counts as undisturbed


def measure_latencies(files: Sequence[Path], cache: Path) -> dict[str, Any]:
    """Least time of one sample on one thread, of each file, in turns.

    Args:
        files: ``.pqk`` files; the same bytes are timed once.
        cache: JSON file of an earlier measurement, which is taken over if it was of the same files on the same
            processor, undisturbed; otherwise all are measured, and the less disturbed measurement counts.

    Returns:
        ``networks`` (path -> microseconds), ``rounds``, ``cpu``, and ``others``: how many processors other programs
        used in the meantime.
    """
    digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    old = _read(cache, set(digests.values()))
    times = old
    if old is None or old["others"] > _IDLE:
        times = _measure({digest: path for path, digest in digests.items()})
        if old is not None and old["others"] < times["others"]:
            times = old
        replace_file(cache, (json.dumps(times, indent=2) + "\n").encode())
    assert times is not None, "measured if there are none"
    networks = {path: times["microseconds"][digest] for path, digest in digests.items()}
    return {"networks": networks} | {key: times[key] for key in ("rounds", "cpu", "others")}


def _measure(files: Mapping[str, str]) -> dict[str, Any]:
    busy, own, begin = _busy_seconds(), time.process_time(), time.monotonic()
    measured = cost.latencies(list(files.values()), _ROUNDS) if files else []
    seconds = max(1e-9, time.monotonic() - begin)
    others = max(0.0, _busy_seconds() - busy - (time.process_time() - own)) / seconds
    least = {digest: latency.least for digest, latency in zip(files, measured, strict=True)}
    return {"cpu": machine()["cpu"], "rounds": _ROUNDS, "others": round(others, 3), "microseconds": least}


def _busy_seconds() -> float:
    """CPU seconds that this machine has spent on anything since it was started; 0 where that cannot be known."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0.0
    idle = int(fields[3]) + int(fields[4])  # idle, waiting for a disk
    return (sum(map(int, fields)) - idle) / os.sysconf("SC_CLK_TCK")


def _read(cache: Path, digests: set[str]) -> dict[str, Any] | None:
    """An earlier measurement if it is of these files and this processor."""
    try:
        times: dict[str, Any] = json.loads(cache.read_text())
        fits = times["cpu"] == machine()["cpu"] and digests <= times["microseconds"].keys()
        return times if fits and times["others"] >= 0 and times["rounds"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # measured anew
