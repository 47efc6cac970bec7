"""``pqk run`` and ``pqk bench`` on CUDA: emulated here, and what they say where there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pqk_ext.runtime import cuda
from tests.cuda.emulated import PACKAGE, emulation

Pqk = Callable[..., Any]


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--device cuda`` is the emulation."""
    emulation()
    monkeypatch.setattr(cuda, "_module_name", "pqk_ext._engine_cuda_emulated")


@pytest.mark.usefixtures("emulated")
def test_run_gives_the_same_bits(pqk: Pqk, network: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0, 2, (3, 1, 49, 10)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    results = []
    for device in ("cpu", "cuda"):
        out = tmp_path / f"{device}.npy"
        assert pqk("run", network, tmp_path / "x.npy", "-o", out, "--device", device).code == 0
        results.append(np.load(out))
    np.testing.assert_array_equal(*results)


@pytest.mark.usefixtures("emulated")
def test_bench_names_the_device_and_its_steps(pqk: Pqk, network: Path) -> None:
    done = pqk("bench", network, "--device", "cuda", "--rounds", 1, "--profile", "--json", "-")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert (values["device"], values["isa"]) == ("cuda:0", "emulated")
    assert "mma" in {step["kernel"] for step in values["launches"]}
    assert all(step["us"] > 0 for step in values["launches"])


def test_what_is_measured_on_the_cpu_alone(pqk: Pqk, network: Path, tmp_path: Path) -> None:
    done = pqk("bench", network, "--device", "cuda", "--roofline", tmp_path / "picture.png")
    assert (done.code, done.err.strip()[-60:]) == (
        2,
        "--peers and --roofline compare on the CPU: leave out --device"[-60:],
    )


def test_a_device_that_is_none(pqk: Pqk, network: Path) -> None:
    done = pqk("bench", network, "--device", "tpu")
    assert done.code == 2
    assert "--device must be 'cpu', 'cuda' or 'cuda:N', got 'tpu'" in done.err


def test_without_a_gpu_nothing_falls_back(
    pqk_without_torch: Pqk, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not list(PACKAGE.glob("_engine_cuda.*so")):
        pytest.skip("_engine_cuda was NOT built (no nvcc): what it says without a GPU was NOT looked at")
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    done = pqk_without_torch("bench", network, "--device", "cuda", "--rounds", 1)
    assert done.code == 2
    assert "--device cuda: " in done.err
    assert "driver" in done.err or "no CUDA device was found" in done.err
