"""Linear layer of a coded weight with a float32 codebook (`csrc/core/codebook_linear.h`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pqk_ext.ops._spec import OpSpec, Sample, layouts, register
from pqk_ext.ops.coded_linear import coded, decoded, openable_codecs, sample_weight

__all__ = ["codebook_linear"]


def codebook_linear(
    input: Tensor,
    payload: Tensor,
    codebook: Tensor,
    *,
    codec: str,
    out_features: int,
    zero: int = 0,
    bias: Tensor | None = None,
) -> Tensor:
    """``input @ W.T + bias`` with ``W = codebook[codes + zero]``, the codes decoded a few rows at a time.

    The product of HAM and sHAM (Marino et al. 2020, "Compression strategies and space-conscious representations for
    deep neural networks"): weights share a few float32 values, and only their coded numbers are in memory. Threads
    share the chunks of the payload. A result is a float32 sum of products in an order of the kernel's own, with fused
    multiply-adds where the CPU has them; it does not depend on threads. Products with weights of 0 may be left out: for
    one row of ``input`` and a codec for sparse weights they are.

    On CUDA a warp decodes a chunk's weights in registers and multiplies them there, with the codecs of
    :func:`coded_linear`. Calls wait for nothing, so that the values of tensors cannot be checked: outputs are NaN where
    a payload is not whole or a code is outside of the codebook; :func:`decode_weight` tells of the first.

    Args:
        input: float32 ``(..., I)``, any strides.
        payload: uint8 ``(n,)``: int8 codes ``(O, I)``, coded in ``O`` rows (``FORMAT.md``, "Codecs").
        codebook: float32 ``(K,)``, finite, K from 1 to 256.
        codec: of the payload; one whose rows can be decoded by themselves.
        out_features: O.
        zero: index in the codebook that code 0 stands for, 0 to K - 1. Codecs for sparse weights suit weights that are
            mostly ``codebook[zero]``, whatever its value.
        bias: float32 ``(O,)``, or None.

    Returns:
        float32 ``(..., O)``, contiguous.

    Raises:
        RuntimeError: an argument of the wrong dtype, shape or range, a codec that is unknown or cannot be used in
            parts, a payload that is no ``(O, I)`` weight, or a code outside of the codebook; the message names it.
    """
    output: Tensor = torch.ops.pqk.codebook_linear(input, payload, codebook, codec, out_features, zero, bias)
    return output


@torch.library.register_fake("pqk::codebook_linear")
def _(
    input: Tensor, payload: Tensor, codebook: Tensor, codec: str, out_features: int, zero: int, bias: Tensor | None
) -> Tensor:
    return input.new_empty((*input.shape[:-1], out_features))


def codebook_linear_reference(
    input: Tensor,
    payload: Tensor,
    codebook: Tensor,
    *,
    codec: str,
    out_features: int,
    zero: int = 0,
    bias: Tensor | None = None,
) -> Tensor:
    """Plain torch on the decoded weight, in float64."""
    weight = codebook[decoded(payload, codec, out_features, input.shape[-1]).long() + zero]
    output = (input.double() @ weight.double().T).float()
    return output if bias is None else output + bias


def _sample(
    codec: str, shape: tuple[int, ...], out_features: int, size: int, generator: torch.Generator, density: float = 1.0
) -> Sample:
    zero = size // 2
    codes = sample_weight(out_features, shape[-1], 8, density, generator).clip(-zero, size - 1 - zero)
    codebook = torch.randn(size, generator=generator).sort().values
    if density < 1:
        codebook[zero] = 0.0
    bias = torch.randn(out_features, generator=generator) if out_features % 2 else None
    return (torch.randn(shape, generator=generator), coded(codes, codec), codebook), {
        "codec": codec,
        "out_features": out_features,
        "zero": zero,
        "bias": bias,
    }


def _samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for codec in openable_codecs():
        yield _sample(codec, (3, 5), 4, 2, generator)
        yield _sample(codec, (64,), 11, 16, generator)
        yield _sample(codec, (0, 8), 3, 5, generator)
        yield _sample(codec, (2, 2, 33), 17, 33, generator, density=0.3)
        yield _sample(codec, (13, 128), 165, 256, generator)
        yield _sample(codec, (1, 3000), 37, 32, generator, density=0.1)
        (input, *others), kwargs = _sample(codec, (9, 20), 32, 128, generator)
        for layout in layouts(input):
            yield (layout, *others), kwargs


def _opcheck_samples() -> Iterator[Sample]:
    for args, kwargs in _samples():
        yield (*args, kwargs["codec"], kwargs["out_features"], kwargs["zero"], kwargs["bias"]), {}


CODEBOOK_LINEAR = register(
    OpSpec(
        name="codebook_linear",
        overload=torch.ops.pqk.codebook_linear.default,
        function=codebook_linear,
        reference=codebook_linear_reference,
        samples=_samples,
        opcheck_samples=_opcheck_samples,
        exact=False,
    )
)
