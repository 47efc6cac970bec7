"""huffman_decode on CUDA: the CPU's weights, and its refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pqk_ext import _core
from tests.ops.cuda_ops import CudaOps


def payload_of(weights: np.ndarray[tuple[int], np.dtype[np.int8]]) -> Tensor:
    return torch.tensor(np.frombuffer(_core.encode_weight("huffman", weights, 1), np.uint8).copy())


def laplace(count: int, width: float, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    return np.rint(np.random.default_rng(seed).laplace(0, width, count)).clip(-127, 127).astype(np.int8)


WEIGHTS = {
    "one": np.array([5], np.int8),
    "one code": np.full(3000, -7, np.int8),
    "short": laplace(700, 0.5),
    "several blocks": laplace(60_000, 8.0),
    "long codes": np.repeat(np.arange(18), 2 ** np.arange(18) // 64 + 1).astype(np.int8),
    # Never fall into step: every code has the same length, or a length of the same multiple.
    "bytes": np.random.default_rng(1).integers(-128, 128, 40_000).astype(np.int8),
    "eight codes": np.random.default_rng(2).integers(0, 8, 120_000).astype(np.int8),
    "four or two bits": np.random.default_rng(3)
    .choice(np.arange(7), 90_000, p=[0.25] * 3 + [0.0625] * 4)
    .astype(np.int8),
    # Falls into step late: nearly all codes are of one length.
    "seven codes": np.random.default_rng(4)
    .choice(np.arange(5), 90_000, p=[0.2499] * 3 + [0.2502, 0.0001])
    .astype(np.int8),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_decodes_as_the_cpu(cuda_ops: CudaOps, name: str) -> None:
    weights = WEIGHTS[name]
    assert torch.equal(cuda_ops.call("huffman_decode", payload_of(weights), len(weights)), torch.tensor(weights))


def test_streams_begin_at_any_byte(cuda_ops: CudaOps) -> None:
    weights = laplace(5000, 4.0)
    payload = payload_of(weights).to(cuda_ops.device)
    for shift in range(1, 5):
        memory = torch.cat([payload.new_full((shift,), 255), payload])
        assert torch.equal(cuda_ops.huffman_decode(memory[shift:], 5000).cpu(), torch.tensor(weights))
    strided = torch.stack([payload, payload + 1], dim=1)[:, 0]
    assert torch.equal(cuda_ops.huffman_decode(strided, 5000).cpu(), torch.tensor(weights))
    assert cuda_ops.huffman_decode(payload[:0], 0).shape == (0,)


def refused(payload: Tensor, count: int, cuda_ops: CudaOps | None) -> bool:
    try:
        if cuda_ops is None:
            torch.ops.pqk.huffman_decode(payload, count)
        else:
            cuda_ops.call("huffman_decode", payload, count)
    except RuntimeError as error:
        return "pqk::huffman_decode: payload" in str(error)
    return False


def test_refuses_what_the_cpu_refuses(cuda_ops: CudaOps) -> None:
    """Damaged payloads, also of one code, and those of other numbers of weights; no crash, no endless loop."""
    generator = torch.Generator().manual_seed(0)
    for weights in (laplace(3000, 3.0), np.zeros(100, np.int8)):
        whole = payload_of(weights)
        cases = [(whole[:cut], len(weights)) for cut in (0, 1, 3, len(whole) - 1)]
        cases += [(torch.cat([whole, torch.zeros(1, dtype=torch.uint8)]), len(weights))]
        cases += [(whole, count) for count in (1, len(weights) - 1, len(weights) + 1, 2**40, 2**62)]
        places = [*range(min(10, len(whole))), *torch.randint(0, len(whole), (15,), generator=generator).tolist()]
        for place in places:
            damaged = whole.clone()
            damaged[place] ^= 1 << place % 8
            cases.append((damaged, len(weights)))
        for payload, count in cases:
            assert refused(payload, count, cuda_ops) == refused(payload, count, None)


@pytest.mark.parametrize(
    ("payload", "count", "message"),
    [
        (torch.zeros(9, dtype=torch.int8), 9, "payload must be Byte, got Char"),
        (torch.zeros(1, 9, dtype=torch.uint8), 9, r"payload must have 1 dimension, got shape \[1, 9\]"),
        (torch.zeros(9, dtype=torch.uint8), -1, "count must not be negative, got -1"),
        (torch.zeros(9, dtype=torch.uint8), 0, "E_SIZE_MISMATCH"),
        (torch.zeros(9, dtype=torch.uint8), 1000, "E_BOMB"),
    ],
)
def test_bad_arguments_are_named(cuda_ops: CudaOps, payload: Tensor, count: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"(?s)pqk::huffman_decode: .*{message}"):
        cuda_ops.call("huffman_decode", payload, count)
