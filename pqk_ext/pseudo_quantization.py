"""Pseudo quantization noise with learned numbers of bits, as published: noise, size, levels, packed bytes.

Défossez, Adi and Synnaeve, "Differentiable Model Compression via Pseudo Quantization Noise" (TMLR 2022). Written from
the paper's equations. A tensor is seen as groups of ``group_size`` consecutive entries, each with its own number of
bits; its range is that of the whole tensor. Sizes count 2**20 bytes as a megabyte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "MEGABYTE",
    "MOST_BITS",
    "Packed",
    "bits_of_logits",
    "dequantize",
    "grouped",
    "logits_of_bits",
    "noise",
    "overhead_bits",
    "pack",
    "quantize",
    "size_mb",
    "true_bits",
    "unpack",
    "with_noise",
]

MEGABYTE = 2**20
MOST_BITS = 15
_RANGE_BITS = 64  # least and largest value, float32
_WIDTH_BITS = 8  # how wide an entry of the array of bits is


def bits_of_logits(logits: Tensor, min_bits: float, max_bits: float) -> Tensor:
    """Real-valued bits in (min_bits, max_bits): the sigmoid of each logit, stretched."""
    return min_bits + torch.sigmoid(logits) * (max_bits - min_bits)


def logits_of_bits(bits: float, min_bits: float, max_bits: float) -> float:
    """The logit that gives ``bits``.

    Raises:
        ValueError: ``bits`` is not strictly between the two.
    """
    if not min_bits < bits < max_bits:
        raise ValueError(f"bits: expected a number in ({min_bits:g}, {max_bits:g}), got {bits!r}")
    share = (bits - min_bits) / (max_bits - min_bits)
    return math.log(share / (1 - share))


def true_bits(bits: Tensor, most: int = MOST_BITS) -> Tensor:
    """What real-valued bits become in the end: whole numbers from 1 to ``most``."""
    return bits.detach().round().clamp(1, most).long()


def grouped(weight: Tensor, group_size: int) -> Tensor:
    """A view as ``(groups, group_size)``; 0 makes one group of all.

    Raises:
        ValueError: the number of entries is no multiple of ``group_size``.
    """
    size = group_size or weight.numel()
    if size < 1 or weight.numel() % size:
        raise ValueError(f"group_size: expected a divisor of {weight.numel()} entries, got {group_size}")
    return weight.reshape(-1, size)


def noise(like: Tensor, kind: str) -> Tensor:
    """Independent noise of the size of a rounding error in units of the step.

    ``gaussian``: deviation 1/2, as published by default. ``uniform`` on [-1/2, 1/2): the distribution of rounding
    errors, whose deviation is 1 / sqrt(12), smaller by the square root of 3.

    Raises:
        ValueError: no noise of that kind.
    """
    if kind == "gaussian":
        return torch.randn_like(like) / 2
    if kind == "uniform":
        return torch.rand_like(like) - 0.5
    raise ValueError(f"noise: expected 'gaussian' or 'uniform', got {kind!r}")


def with_noise(weight: Tensor, bits: Tensor, group_size: int, eps: Tensor) -> Tensor:
    """``weight + (max - min) / (2**bits - 1) * eps``, differentiable in weight and bits.

    Args:
        weight: float, any shape; its range is taken over all of it, and gradients pass through it.
        bits: real-valued, ``(groups,)``.
        group_size: entries in a group.
        eps: of :func:`noise`, the shape of ``weight``.
    """
    groups = grouped(weight, group_size)
    step = (weight.max() - weight.min()) / (torch.exp2(bits) - 1)
    return (groups + step[:, None] * eps.reshape(groups.shape)).reshape(weight.shape)


def overhead_bits(bits: Tensor, min_bits: int) -> int:
    """Bits beside the weights' own: range, width, and of each group its number of bits above ``min_bits``."""
    return _RANGE_BITS + _WIDTH_BITS + _width(bits, min_bits) * bits.numel()


def _width(bits: Tensor, min_bits: int) -> int:
    """Bits that hold each group's number."""
    most = round(float(bits.detach().max())) if bits.numel() else min_bits
    return math.ceil(math.log2(1 + max(0, most - min_bits)))


def size_mb(
    tensors: Sequence[tuple[Tensor, int]], *, others: int = 0, other_bits: int = 32, min_bits: int = 2
) -> Tensor:
    """The size of a model in units of 2**20 bytes; differentiable in real-valued bits, exact for whole ones.

    Args:
        tensors: of each quantized tensor the bits of its groups ``(groups,)`` and the size of a group.
        others: parameters that stay as they are.
        other_bits: of each of those.
        min_bits: least number of bits, from which those of groups are counted.
    """
    total = torch.tensor(float(others * other_bits))
    for bits, group_size in tensors:
        total = total + group_size * bits.sum() + overhead_bits(bits, min_bits)
    return total / (8 * MEGABYTE)


# --- levels and bytes ---------------------------------------------------------------------------------------------


def quantize(weight: Tensor, bits: Tensor, group_size: int) -> tuple[Tensor, float, float]:
    """Levels ``0..2**bits - 1`` of every entry as int64 ``(groups, group_size)``, and the range ``(low, high)``.

    Args:
        weight: float32, any shape.
        bits: whole numbers ``(groups,)``.
        group_size: entries in a group.
    """
    low, high = float(weight.min()), float(weight.max())
    groups = grouped(weight.detach(), group_size).double()
    share = (groups - low) / (high - low) if high > low else torch.zeros_like(groups)
    return (share * _levels(bits)[:, None]).round().long(), low, high


def dequantize(levels: Tensor, bits: Tensor, low: float, high: float) -> Tensor:
    """Float32 values of levels ``(groups, group_size)``."""
    return (levels.double() / _levels(bits)[:, None] * (high - low) + low).float()


def _levels(bits: Tensor) -> Tensor:
    return (2 ** bits.long() - 1).double()


class Packed(NamedTuple):
    """What :func:`unpack` finds.

    Attributes:
        levels: int64 ``(groups, group_size)``.
        bits: int64 ``(groups,)``.
        low, high: the tensor's range.
    """

    levels: Tensor
    bits: Tensor
    low: float
    high: float


def pack(levels: Tensor, bits: Tensor, low: float, high: float, *, min_bits: int = 2) -> bytes:
    """One tensor as bytes: range, width, the array of bits, then for each number of bits the planes of its groups.

    Args:
        levels: of :func:`quantize`.
        bits: whole numbers ``(groups,)``, at least ``min_bits`` and at most 15.
        low, high: of :func:`quantize`.
        min_bits: what the array of bits is counted from.

    Raises:
        ValueError: bits outside that range.
    """
    if bits.numel() and not (int(bits.min()) >= min_bits and int(bits.max()) <= MOST_BITS):
        raise ValueError(f"bits: expected {min_bits} to {MOST_BITS}, got {int(bits.min())} to {int(bits.max())}")
    levels, bits = levels.cpu(), bits.cpu()
    width = _width(bits, min_bits)
    parts = [np.array([low, high], "<f4").tobytes(), bytes([width]), _planes(bits.numpy() - min_bits, width)]
    for number in range(min_bits, MOST_BITS + 1):
        parts.append(_planes(levels[bits == number].numpy().reshape(-1), number))
    return b"".join(parts)


def unpack(data: bytes, groups: int, group_size: int, *, min_bits: int = 2) -> Packed:
    """Undoes :func:`pack`.

    Raises:
        ValueError: too few or too many bytes for that many groups.
    """
    if len(data) < 9:
        raise ValueError(f"data: expected at least 9 bytes, got {len(data)}")
    low, high = np.frombuffer(data[:8], "<f4").tolist()
    entries, at = _values(data, 9, groups, data[8])
    bits = torch.from_numpy(entries + min_bits)
    levels = torch.zeros(groups, group_size, dtype=torch.int64)
    for number in range(min_bits, MOST_BITS + 1):
        chosen = bits == number
        values, at = _values(data, at, int(chosen.sum()) * group_size, number)
        levels[chosen] = torch.from_numpy(values).reshape(-1, group_size)
    if at != len(data):
        raise ValueError(f"data: expected {at} bytes, got {len(data)}")
    return Packed(levels, bits, low, high)


def _planes(values: NDArray[np.int64], bits: int) -> bytes:
    """Each bit of all values after the other, each plane filled up to whole bytes."""
    return b"".join(np.packbits((values >> bit) & 1).tobytes() for bit in range(bits))


def _values(data: bytes, at: int, count: int, bits: int) -> tuple[NDArray[np.int64], int]:
    length = -(-count // 8)
    values = np.zeros(count, np.int64)
    for bit in range(bits):
        plane = np.frombuffer(data[at : at + length], np.uint8)
        if len(plane) < length:
            raise ValueError(f"data: expected at least {at + length} bytes, got {len(data)}")
        values |= np.unpackbits(plane, count=count).astype(np.int64) << bit
        at += length
    return values, at
