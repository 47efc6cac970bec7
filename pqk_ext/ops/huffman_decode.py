"""Decoding of canonical, length-limited Huffman codes (`csrc/core/huffman.cpp`): HAM of Marino et al. 2020."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pqk_ext import _core
from pqk_ext.ops._spec import OpSpec, Sample, register

__all__ = ["huffman_decode"]


def huffman_decode(payload: Tensor, count: int) -> Tensor:
    """The int8 weights of a payload of codec ``huffman`` (``FORMAT.md``, "Codecs"), on the payload's device.

    On CUDA many threads decode parts of the one stream, from wherever their parts begin: codes fall into step (Klein
    and Wiseman 2003). To see whether the payload is whole a call there waits for the device, unless a CUDA graph is
    captured.

    Args:
        payload: uint8, shape ``[n]``: spare bits, length table, codes.
        count: number of weights that it holds.

    Returns:
        int8, shape ``[count]``.

    Raises:
        RuntimeError: an argument of the wrong dtype or shape, or a payload that does not hold exactly ``count``
            weights; the message carries the code of the broken rule, for example ``E_HUFF_STREAM``.
    """
    weights: Tensor = torch.ops.pqk.huffman_decode(payload, count)
    return weights


@torch.library.register_fake("pqk::huffman_decode")
def _(payload: Tensor, count: int) -> Tensor:
    return payload.new_empty((count,), dtype=torch.int8)


def huffman_decode_reference(payload: Tensor, count: int) -> Tensor:
    """The same from a text of 0s and 1s and a dictionary of codes."""
    if count == 0:
        return torch.empty(0, dtype=torch.int8)
    data = payload.numpy().tobytes()
    spare, first, last = data[0], data[1], data[2]
    text = "".join(f"{byte:08b}" for byte in data[3:])
    at, previous = 0, 8
    lengths: dict[int, int] = {}
    for symbol in range(first, last + 1):
        if text[at] == "0":
            at, step = at + 1, 0
        elif text[at : at + 2] == "10":
            at, step = at + 3, -1 if text[at + 2] == "1" else 1
        elif text[at : at + 3] == "110":
            at += 3
            continue
        else:
            end = text.index("0", at + 3)
            step = end - (at + 3) + 2
            at, step = end + 2, -step if text[end + 1] == "1" else step
        lengths[symbol] = previous = previous + step
    codes: dict[str, int] = {}
    code, length_before = -1, 0
    for length, symbol in sorted((length, symbol) for symbol, length in lengths.items()):
        code = (code + 1) << (length - length_before)
        length_before = length
        codes[f"{code:0{length}b}"] = symbol - 128
    weights, begin = [], 8 * ((at + 7) // 8)
    for end in range(begin + 1, len(text) - spare + 1):
        if text[begin:end] in codes:
            weights.append(codes[text[begin:end]])
            begin = end
    return torch.tensor(weights, dtype=torch.int8)


def _samples() -> Iterator[Sample]:
    generator = np.random.default_rng(0)
    arrays = [
        np.zeros(5, np.int8),
        np.array([], np.int8),
        np.array([-128, 127, -128, -128], np.int8),
        np.arange(-128, 128).astype(np.int8),
        np.repeat(np.arange(20), 2 ** np.arange(20) // 64 + 1).astype(np.int8),
    ]
    for scale, density in [(1.0, 1.0), (3.0, 0.5), (14.0, 1.0), (40.0, 0.1)]:
        weights = np.clip(np.rint(generator.laplace(0, scale, 1001)), -127, 127) * (generator.random(1001) < density)
        arrays.append(weights.astype(np.int8))
    for weights in arrays:
        payload = np.frombuffer(_core.encode_weight("huffman", weights, 1 if len(weights) else 0), np.uint8)
        yield (torch.tensor(payload), len(weights)), {}


HUFFMAN_DECODE = register(
    OpSpec(
        name="huffman_decode",
        overload=torch.ops.pqk.huffman_decode.default,
        function=huffman_decode,
        reference=huffman_decode_reference,
        samples=_samples,
        opcheck_samples=_samples,
    )
)
