"""The emulation of CUDA (csrc/core/cuda/emulation) does what a GPU does, and finds what a GPU would not forgive.

The kernels are those of kernels.cu. The same tests, compiled by nvcc, run on a GPU where there is one: there they
check that the emulation, and so every test that leans on it, has the GPU's rules right.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.cuda.emulated import CUDA, EMULATED, ORDERS, emulation, set_order
from tests.ops.cuda_ops import require_gpu

ROOT = Path(__file__).parent.parent.parent
KERNELS = Path(__file__).parent / "kernels.cu"
WARP, REVERSE_THREADS = 32, 96
POISON = int.from_bytes(b"\xcb" * 4, "little", signed=True)


class Kernels:
    """Calls ``pqk_test_<name>`` of a library, with tensors for its pointers."""

    def __init__(self, library: ctypes.CDLL, device: str) -> None:
        self.library = library
        self.device = device

    def error(self, name: str, *args: Tensor | int) -> str | None:
        function = getattr(self.library, f"pqk_test_{name}")
        function.restype = ctypes.c_char_p
        text = function(*(ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_int(a) for a in args))
        if self.device == "cuda":
            torch.cuda.synchronize()
        return None if text is None else text.decode()

    def __call__(self, name: str, *args: Tensor | int) -> None:
        assert self.error(name, *args) is None

    def tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values).to(self.device)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int32, device=self.device)


@cache
def compiled_for_the_gpu() -> ctypes.CDLL:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not there: the emulation was NOT compared with the GPU")
    library = ROOT / "build" / "cuda_test_kernels.so"
    library.parent.mkdir(exist_ok=True)
    options = ["-std=c++20", "-arch=native", "--fmad=false", "-Xcompiler=-fPIC", "-shared", f"-I{ROOT / 'csrc'}"]
    subprocess.run([nvcc, *options, KERNELS, "-o", library], check=True, timeout=300)
    return ctypes.CDLL(str(library))


@pytest.fixture(params=[*EMULATED, CUDA])
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    if request.param == "cuda":
        require_gpu()
        yield Kernels(compiled_for_the_gpu(), "cuda")
        return
    set_order(request.param.removeprefix("emulated-"))
    yield Kernels(emulation(), "cpu")
    set_order("forward")


@pytest.fixture(params=ORDERS)
def emulated(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """For what has no result on a GPU: it would end the process, or be undefined."""
    library = emulation()
    set_order(request.param)
    yield Kernels(library, "cpu")
    set_order("forward")


def some_ints(*shape: int, low: int = 0, high: int = 100, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def in_every_order(run: Any) -> list[Tensor]:
    results = []
    for order in ORDERS:
        set_order(order, seed=3)
        results.append(run(Kernels(emulation(), "cpu")))
    set_order("forward")
    return results


def reversed_blocks(kernels: Kernels, barrier: bool) -> tuple[Tensor, Tensor]:
    values = some_ints(5, REVERSE_THREADS)
    out = kernels.zeros(*values.shape)
    kernels("reverse", kernels.tensor(values), out, 5, int(barrier))
    return out.cpu(), values.flip(1)


def test_barrier(kernels: Kernels) -> None:
    assert torch.equal(*reversed_blocks(kernels, barrier=True))


def test_a_missing_barrier_shows() -> None:
    results = in_every_order(lambda kernels: reversed_blocks(kernels, barrier=False)[0])
    expected = some_ints(5, REVERSE_THREADS).flip(1)
    assert not any(torch.equal(result, expected) for result in results)
    assert not torch.equal(results[0], results[1])


def neighbours(kernels: Kernels, sync: bool) -> Tensor:
    out = kernels.zeros(WARP)
    kernels("neighbours", kernels.tensor(some_ints(WARP)), out, int(sync))
    return out.cpu()


def expected_neighbours() -> Tensor:
    value = some_ints(WARP)
    for _ in range(2):
        value = value.roll(1) + value.roll(-1)
    return value


def test_syncwarp(kernels: Kernels) -> None:
    assert torch.equal(neighbours(kernels, sync=True), expected_neighbours())


def test_a_missing_syncwarp_shows() -> None:
    results = in_every_order(lambda kernels: neighbours(kernels, sync=False))
    assert not any(torch.equal(result, expected_neighbours()) for result in results)


def bits(lanes: Any) -> int:
    word = sum(1 << lane for lane, is_set in enumerate(lanes) if is_set)
    return word - (1 << 32) if word >> 31 else word


def collectives_of_a_warp(v: list[int]) -> list[list[int]]:
    """What each lane gets: the definitions of the CUDA C++ programming guide, lane by lane."""
    lanes = range(WARP)
    union = 0
    for value in v:
        union |= value
    return [
        [bits(x & 1 for x in v)] * WARP,
        [int(7 in v)] * WARP,
        [int(7 not in v)] * WARP,
        [v[(lane * 5 + 3) % 32] for lane in lanes],
        [v[lane // 8 * 8 + 2] for lane in lanes],
        [v[lane - 3] if lane >= 3 else v[lane] for lane in lanes],
        [v[lane - 1] if lane % 4 >= 1 else v[lane] for lane in lanes],
        [v[lane + 5] if lane + 5 < 32 else v[lane] for lane in lanes],
        [v[lane + 3] if lane % 16 + 3 < 16 else v[lane] for lane in lanes],
        [v[lane ^ 11] for lane in lanes],
        [v[lane ^ 2] for lane in lanes],
        [2 * v[lane ^ 1] + 1 for lane in lanes],
        [bits(x % 4 == v[lane] % 4 for x in v) for lane in lanes],
        [sum(v)] * WARP,
        [min(v) - 50] * WARP,
        [union] * WARP,
        [v[lane ^ 1] if lane < 16 else v[16] + sum(x >> 1 & 1 for x in v[16:]) for lane in lanes],
    ]


def test_collectives(kernels: Kernels) -> None:
    values = some_ints(REVERSE_THREADS)
    values[70] = 7
    out = kernels.zeros(20, REVERSE_THREADS)
    kernels("collectives", kernels.tensor(values), out)
    warps = [collectives_of_a_warp(warp.tolist()) for warp in values.split(WARP)]
    expected = [[x for warp in warps for x in warp[row]] for row in range(17)]
    expected += [[int((values & 1).sum())] * 96, [int((values < 90).all())] * 96, [1] * 96]
    assert out.cpu().tolist() == expected


def test_threads_may_return_early(kernels: Kernels) -> None:
    out = kernels.zeros(80)
    kernels("early_return", out)
    for thread, result in enumerate(out.cpu().tolist()):
        if thread % 3:
            assert result == 0
        else:
            warp = thread // WARP * WARP
            assert result == bits((warp + lane) % 3 == 0 and warp + lane < 80 for lane in range(WARP))


def test_blocks_and_threads_of_three_dimensions(kernels: Kernels) -> None:
    sizes = [3, 2, 4, 5, 3, 2]
    out = kernels.zeros(24, 30)
    # The sizes are read by the launching function, on the host.
    kernels("positions", out, torch.tensor(sizes, dtype=torch.int32))
    expected = 1000 * torch.arange(24)[:, None] + torch.arange(30)
    assert torch.equal(out.cpu(), expected.int())


@pytest.mark.parametrize("count", [16, 24000])
def test_dynamic_shared_memory(kernels: Kernels, count: int) -> None:
    values, out = some_ints(count), kernels.zeros(count)
    kernels("dynamic", kernels.tensor(values), out, count, 4 * count)
    assert torch.equal(out.cpu(), values.flip(0))


def test_asynchronous_copies(kernels: Kernels) -> None:
    tiles, valid = 5, 4
    values, out = some_ints(tiles, WARP, 4), kernels.zeros(tiles, WARP, 4)
    kernels("async", kernels.tensor(values), out, tiles, valid, 1)
    expected = values + 1
    expected[valid:] = 1
    assert torch.equal(out.cpu(), expected)


def test_a_missing_wait_shows() -> None:
    values = some_ints(5, WARP, 4)

    def run(kernels: Kernels) -> Tensor:
        out = kernels.zeros(5, WARP, 4)
        kernels("async", values, out, 5, 5, 0)
        return out

    assert not all(torch.equal(result, values + 1) for result in in_every_order(run))


KINDS = {"s8": (-128, -128), "u8s8": (0, -128), "s8u8": (-128, 0)}


def random_bytes(rng: np.random.Generator, low: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Bytes with many extremes among them, as int64."""
    values = rng.integers(low, low + 256, shape)
    return np.where(rng.random(shape) < 0.3, rng.choice([low, low + 255], shape), values)


def as_bytes(kernels: Kernels, values: np.ndarray[Any, Any]) -> Tensor:
    return kernels.tensor(np.ascontiguousarray(values.astype(np.uint8)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_ldmatrix", [False, True])
def test_mma(kernels: Kernels, kind: str, by_ldmatrix: bool) -> None:
    rng = np.random.default_rng(1)
    low_a, low_b = KINDS[kind]
    a, b = random_bytes(rng, low_a, (16, 32)), random_bytes(rng, low_b, (8, 32))
    start = rng.integers(-(2**31), 2**31, (16, 8))
    d = kernels.tensor(start.astype(np.int32))
    arguments = list(KINDS).index(kind), 0, int(by_ldmatrix), as_bytes(kernels, a), as_bytes(kernels, b)
    kernels("mma", *arguments, d, d, WARP)
    assert np.array_equal(d.cpu().numpy(), (start + a @ b.T).astype(np.int32))


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_mma(kernels: Kernels, kind: str) -> None:
    rng = np.random.default_rng(2)
    low_a, low_b = KINDS[kind]
    kept, b = random_bytes(rng, low_a, (16, 16, 2)), random_bytes(rng, low_b, (8, 64))
    pairs = np.array([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
    places = pairs[rng.integers(0, 6, (16, 16))]
    dense = np.zeros((16, 16, 4), dtype=np.int64)
    np.put_along_axis(dense, places, kept, axis=2)
    # Lanes 4g ... 4g + 3 hold the indices of row g, of row g + 8, and of the second 16 kept columns of both.
    indices = places.reshape(2, 8, 2, 16).transpose(1, 2, 0, 3).reshape(WARP, 16).astype(np.uint32)
    metadata = np.bitwise_or.reduce(indices << 2 * np.arange(16, dtype=np.uint32), axis=1).astype(np.uint32)
    start = rng.integers(-1000, 1000, (16, 8))
    d = kernels.tensor(start.astype(np.int32))
    a_bytes, b_bytes = as_bytes(kernels, kept.reshape(16, 32)), as_bytes(kernels, b)
    words = kernels.tensor(metadata.view(np.int32))
    kernels("mma", list(KINDS).index(kind), 1, 0, a_bytes, b_bytes, words, d, WARP)
    assert np.array_equal(d.cpu().numpy(), start + dense.reshape(16, 64) @ b.T)


def float_bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def rounded_int(word: int) -> int:
    value = float(np.uint32(word).view(np.float32))
    if value != value:
        return 0
    return int(np.clip(np.rint(np.float64(value)), -(2**31), 2**31 - 1))


def signed_bytes(word: int) -> list[int]:
    return [(byte ^ 128) - 128 for byte in word.to_bytes(4, "little")]


def permuted(x: int, y: int, selector: int) -> int:
    source = x.to_bytes(4, "little") + y.to_bytes(4, "little")
    result = []
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = source[nibble & 7]
        result.append(byte if nibble < 8 else 255 * (byte >> 7))
    return int.from_bytes(bytes(result), "little")


def scalars(x: int, y: int) -> list[int]:
    digits = f"{x:032b}"
    both, shift = y << 32 | x, y & 31
    with np.errstate(all="ignore"):
        real = np.uint32(x).view(np.float32) * np.float32(3) + np.float32(0.1)
    return [
        digits.count("1"),
        32 - x.bit_length(),
        (x & -x).bit_length(),
        int(digits[::-1], 2),
        x * y >> 32,
        permuted(x, y, 0x0C51),
        permuted(x, y, 0x7362),
        both << shift >> 32 & 0xFFFFFFFF,
        both >> shift & 0xFFFFFFFF,
        5 + sum(a * b for a, b in zip(signed_bytes(x), signed_bytes(y), strict=True)) & 0xFFFFFFFF,
        5 + sum(a * b for a, b in zip(x.to_bytes(4, "little"), y.to_bytes(4, "little"), strict=True)) & 0xFFFFFFFF,
        rounded_int(x) & 0xFFFFFFFF,
        int(real.view(np.uint32)),
    ]


def test_intrinsics(kernels: Kernels) -> None:
    rng = np.random.default_rng(3)
    floats = [0.5, 1.5, 2.5, -0.5, -2.5, 1e9, 3e9, -3e9, np.inf, -np.inf, 2147483520.0]
    edges = [0, 1, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFF, *map(float_bits, floats)]
    x = [*edges, *rng.integers(0, 2**32, 90).tolist()]
    x = [word for word in x if (word & 0x7FFFFFFF) <= 0x7F800000]  # the bits of a NaN are nobody's promise
    y = rng.integers(0, 2**32, len(x)).tolist()
    out = kernels.zeros(13, len(x))
    words = [kernels.tensor(np.array(w, dtype=np.uint32).view(np.int32)) for w in (x, y)]
    kernels("scalars", *words, out, len(x))
    expected = np.array([scalars(*pair) for pair in zip(x, y, strict=True)], dtype=np.uint32).T
    assert np.array_equal(out.cpu().numpy().view(np.uint32), expected)


def test_launches_that_cuda_refuses(kernels: Kernels) -> None:
    for grid, block in ((0, 32), (1, 0), (1, 1025)):
        assert kernels.error("launch", grid, block, 64) == "invalid configuration argument"
    assert kernels.error("launch", 1, 1, 300 << 10) == "invalid argument"
    assert kernels.error("launch", 1, 1, 64) is None


def test_threads_that_wait_for_each_other(emulated: Kernels) -> None:
    error = emulated.error("lonely_barrier", emulated.zeros(64))
    assert error is not None
    assert "wait for each other" in error
    assert error.count("kernels.cu:") == 2
    error = emulated.error("absent_lane", emulated.zeros(64))
    assert error is not None
    assert "__shfl_sync" in error
    assert "at the barrier of" in error


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("wrong_mask", (), "__ballot_sync with mask 65534, which leaves out lane"),
        ("misaligned", (), "no multiple of 16"),
        ("out_of_bounds", (6,), "out of bounds at"),
    ],
)
def test_what_a_thread_must_not_do(emulated: Kernels, name: str, arguments: tuple[int, ...], expected: str) -> None:
    tensors = [emulated.zeros(64)] * (2 if name == "misaligned" else 1)
    error = emulated.error(name, *tensors, *arguments)
    assert error is not None
    assert error.startswith("thread (")
    assert expected in error


def test_writing_behind_dynamic_shared_memory(emulated: Kernels) -> None:
    assert emulated.error("beyond_dynamic", 15) is None
    assert "behind its 64 bytes" in str(emulated.error("beyond_dynamic", 16))


def test_a_part_of_a_warp_cannot_use_tensor_cores(emulated: Kernels) -> None:
    buffer = emulated.zeros(16, 32)
    assert "fewer than 32 threads" in str(emulated.error("mma", 0, 0, 0, buffer, buffer, buffer, buffer, 31))


def test_shared_memory_begins_with_rubbish_in_every_block(emulated: Kernels) -> None:
    out = emulated.zeros(2, WARP)
    emulated("uninitialised", out, 3)
    assert (out == POISON).all()


def test_an_error_leaves_nothing_behind(emulated: Kernels) -> None:
    assert emulated.error("wrong_mask", emulated.zeros(WARP)) is not None
    assert torch.equal(*reversed_blocks(emulated, barrier=True))
