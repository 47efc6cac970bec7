"""Decoding of weights that lie coded in a file (`csrc/core/codec.h`, `csrc/core/cuda/coded_stream.h`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pqk_ext.ops._spec import OpSpec, Sample, register
from pqk_ext.ops.coded_linear import coded, decoded, openable_codecs, sample_weight

__all__ = ["decode_weight"]


def decode_weight(payload: Tensor, *, codec: str, rows: int, row_size: int) -> Tensor:
    """The int8 weight of a payload (``FORMAT.md``, "Codecs"), on the payload's device.

    On the CPU threads share the chunks of the payload; on CUDA each is decoded by a warp, whose lanes take four of the
    128 interleaved streams each, and headers are read on the device too.

    Args:
        payload: uint8 ``(n,)``.
        codec: of the payload; one whose rows can be decoded by themselves. On CUDA ``raw``, ``packed``, ``bitmask``,
            ``interleaved-huffman`` or ``interleaved-sparse-huffman``.
        rows: output channels of the weight.
        row_size: weights of an output channel.

    Returns:
        int8 ``(rows, row_size)``, contiguous.

    Raises:
        RuntimeError: an argument of the wrong dtype, shape or range, a codec that is unknown or cannot be used in
            parts, or a payload that does not hold exactly such a weight; the message names it, and carries the code of
            the broken rule. To see whether a payload is whole, a call on CUDA waits for the device; where a CUDA graph
            is captured nobody looks, and what a damaged payload gives is of no meaning.
    """
    weight: Tensor = torch.ops.pqk.decode_weight(payload, codec, rows, row_size)
    return weight


@torch.library.register_fake("pqk::decode_weight")
def _(payload: Tensor, codec: str, rows: int, row_size: int) -> Tensor:
    return payload.new_empty((rows, row_size), dtype=torch.int8)


def decode_weight_reference(payload: Tensor, *, codec: str, rows: int, row_size: int) -> Tensor:
    """By the runtime's decoder."""
    return decoded(payload, codec, rows, row_size)


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for codec in openable_codecs():
        for rows, row_size, bits, density in [(3, 5, 8, 1.0), (0, 4, 8, 1.0), (40, 130, 4, 1.0), (33, 2000, 6, 0.1)]:
            weight = sample_weight(rows, row_size, bits, density, generator)
            yield (coded(weight, codec),), {"codec": codec, "rows": rows, "row_size": row_size}


def _opcheck_samples() -> Iterator[Sample]:
    for args, kwargs in _samples():
        yield (*args, kwargs["codec"], kwargs["rows"], kwargs["row_size"]), {}


DECODE_WEIGHT = register(
    OpSpec(
        name="decode_weight",
        overload=torch.ops.pqk.decode_weight.default,
        function=decode_weight,
        reference=decode_weight_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
    )
)
