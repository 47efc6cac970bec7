"""keep_freed_memory; what it does in processes of their own, as it cannot be taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pqk_ext.training import fit, keep_freed_memory, step_loss

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux's")

# Some tensors of a training step, all freed at its end; then page faults of a step, and resident MB after and at most.
STEPS = """
import json, resource, sys, torch
from pqk_ext.training import keep_freed_memory
kept = sys.argv[1] == "keep" and [keep_freed_memory(), keep_freed_memory()]
def step():
    tensors = [torch.ones(2 * 1024 * 1024) for _ in range(6)]
    sums = [tensor * 2 for tensor in tensors]
    return float(sums[-1][-1])
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.set_num_threads(1)
def highest():  # of this program; ru_maxrss begins with what the parent had
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
before = highest()
for _ in range(3): step()
start = faults()
for _ in range(4): step()
pages = (faults() - start) / 4
peak = highest()
print(json.dumps({"kept": kept, "faults": pages, "peak": (peak - before) / 1024}))
"""


def run(how: str, **environment: str) -> dict[str, object]:
    command = [sys.executable, "-c", STEPS, how]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    output = subprocess.run(command, env=clean | environment, check=True, capture_output=True, text=True).stdout
    result: dict[str, object] = json.loads(output.splitlines()[-1])
    return result


@pytest.mark.skipif("glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")), reason="the C library is not glibc")
def test_tensors_of_later_steps_cost_no_page_faults() -> None:
    # A map for each tensor, as glibc begins; what it makes of that later depends on where small objects lie.
    plain, kept = run("plain", MALLOC_MMAP_THRESHOLD_="1048576"), run("keep")
    pages = 12 * 2 * 1024 * 1024 * 4 / os.sysconf("SC_PAGE_SIZE")
    assert plain["faults"] > pages * 0.9  # what there is to save
    assert kept["kept"] == [True, True]
    assert kept["faults"] < pages / 20
    assert kept["peak"] < plain["peak"] * 1.5  # holes: 1.0 to 1.25 here, 1.0 to 1.05 in training networks


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1048576"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2"),
    ],
)
def test_what_the_environment_says_of_malloc_stays(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()


# As a training of networks leaves it: blocks of 64-byte alignment, freed while smaller ones beside them live on.
HOLES = """
import json, torch
from pqk_ext.training import keep_freed_memory
from pqk_ext.training.memory import trim_freed_memory
keep_freed_memory()
def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024
before = resident()
tensors, kept = [], []
for index in range(64):
    tensors.append(torch.ones(1024 * 1024))
    kept.append(torch.ones(16))
del tensors
full = resident()
trim_freed_memory()
print(json.dumps({"freed": full - before, "left": resident() - before, "sum": sum(float(t.sum()) for t in kept)}))
"""


def held(**environment: str) -> dict[str, float]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    output = subprocess.run(
        [sys.executable, "-c", HOLES], env=clean | environment, check=True, capture_output=True, text=True
    ).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


@pytest.mark.skipif("glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")), reason="the C library is not glibc")
def test_holes_are_given_back() -> None:
    found = held()
    assert found["freed"] > 240  # MiB of 256, kept for the next tensors
    assert found["left"] < 16
    assert found["sum"] == 64 * 16
    assert held(MALLOC_TRIM_THRESHOLD_="2147483647", MALLOC_MMAP_THRESHOLD_="33554432")["left"] > 240  # the user's


def test_a_long_training_gives_memory_back_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(step_loss, "trim_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(step_loss, "_TRIM_INTERVAL", 4)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    data = torch.rand(32, 1, 2, 2), torch.zeros(32, dtype=torch.int64)
    fit(model, data, data, None, tmp_path / "run", steps=9, batch_size=8, lr=0.1, progress=False)
    assert len(calls) == 2
