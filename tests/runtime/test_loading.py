"""Loading on threads: the same model, kernels and errors as on one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pqk_ext import runtime
from pqk_ext.errors import FormatError
from pqk_ext.runtime import format
from tests.runtime.graphs import Builder


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PQK_KERNEL_TABLE", str(tmp_path / "kernels.json"))
    builder = Builder((16, 6, 6))
    x = builder.quantize(0)
    for _ in range(4):
        x = builder.conv2d(x, 16)
        weight = builder.nodes[-1].tensors["weight"]
        weight[builder.random.random(weight.shape) < 0.9] = 0
        x = builder.conv2d(x, 16)
    builder.dequantize(x)
    format.write(builder.graph(), tmp_path / "net.pqk")
    return tmp_path / "net.pqk"


@pytest.mark.parametrize("tune", [True, False])
def test_threads_change_nothing(path: Path, tune: bool) -> None:
    """Neither where kernels have to be timed, the first time, nor where they are known."""
    x = np.random.default_rng(0).standard_normal((3, 16, 6, 6)).astype(np.float32)
    results = []
    for num_threads in (2, 1, 2, 3):
        model = runtime.load(path, num_threads=num_threads, tune=tune)
        results.append((model.kernels, model(x)))
    for kernels, result in results[1:]:
        assert kernels == results[0][0]
        assert np.array_equal(result, results[0][1])


def test_a_damaged_file_is_refused_as_one(path: Path) -> None:
    """By its digest, whatever decoding on other threads finds."""
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    tensors = 8 + int.from_bytes(data[:8], "little")
    for _ in range(20):
        damaged = bytearray(data)
        damaged[int(rng.integers(tensors, len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        for num_threads in (1, 2):
            with pytest.raises(FormatError) as caught:
                runtime.load(path, num_threads=num_threads)
            assert caught.value.code == "E_DIGEST"


def test_a_choice_that_cannot_be(path: Path) -> None:
    for num_threads in (1, 2):
        with pytest.raises(ValueError, match=r"kernels\['conv2d_3'\]: no kernel 'depthwise'"):
            runtime.load(path, num_threads=num_threads, kernels={"conv2d_3": "depthwise"})
