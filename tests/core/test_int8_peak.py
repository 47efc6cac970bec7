"""The measured ceilings: plausible, ordered as the hardware is, and free of the interpreter's lock."""

from __future__ import annotations

import itertools
import threading

import pytest

from pqk_ext import _core


def test_wider_vectors_multiply_more() -> None:
    peaks = []
    try:
        for isa in _core.supported_isas():
            _core.force_isa(isa)
            peaks.append(max(_core.int8_peak() for _ in range(3)))
    finally:
        _core.force_isa("")
    # Even a slow core does one vector in some cycles, and none does more than 4 of 64 bytes at 8 GHz.
    assert all(1e8 < peak < 4 * 64 * 8e9 for peak in peaks)
    # Each step doubles the vector at least; the last also does two multiplications' work in one.
    assert all(b > 1.4 * a for a, b in itertools.pairwise(peaks))


def test_small_buffers_are_read_faster_than_memory(isa: str) -> None:
    near, far = (max(_core.read_bandwidth(size) for _ in range(3)) for size in (16 << 10, 256 << 20))
    assert near > far > 1e8


@pytest.mark.parametrize("size", [1, 511, 513])
def test_odd_sizes_are_rounded(size: int) -> None:
    assert _core.read_bandwidth(size) > 1e8


@pytest.mark.parametrize("size", [0, -1, (1 << 32) + 1])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"bytes must be from 1 to 4294967296, got {size}"):
        _core.read_bandwidth(size)


@pytest.mark.parametrize("measure", [_core.int8_peak, lambda: _core.read_bandwidth(1 << 20)])
def test_the_interpreter_lock_is_released(measure: object) -> None:
    """Another thread counts on while the measurement runs."""
    assert callable(measure)
    counts = [0]
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            counts[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = counts[0]
        measure()
        assert counts[0] > before + 100
    finally:
        stop.set()
        thread.join()
