"""Coded weights on CUDA: the bits of the CPU's decoders and linear layers, and nothing from damaged payloads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pqk_ext.ops._int8 import sample_constants
from pqk_ext.ops.coded_linear import coded, sample_weight
from tests.ops.cuda_ops import CudaOps

CODECS = ["raw", "packed", "interleaved-huffman", "interleaved-sparse-huffman"]
STREAMS = CODECS[2:]
DECODED = [*CODECS, "bitmask"]  # no layer multiplies with the last


def spread(rows: int, row_size: int, width: float, density: float, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Weights as training leaves them: Laplace, most of them 0 if wanted."""
    generator = np.random.default_rng(seed)
    values = np.rint(generator.laplace(0, width, (rows, row_size))).clip(-127, 127)
    return (values * (generator.random((rows, row_size)) < density)).astype(np.int8)


# By which turns streams take words (periods of 4, 2 and 1), with and without plain bits, chunks and tails.
WEIGHTS = {
    "one code": np.full((7, 100), -3, np.int8),
    "two codes": spread(9, 700, 0.3, 1.0).clip(0, 1),
    "short codes": spread(11, 600, 0.9, 1.0).clip(-3, 3),
    "uniform": sample_weight(5, 1024, 4, 1.0, torch.Generator().manual_seed(1)),
    "medium": spread(16, 777, 4.0, 1.0),
    "wide": spread(13, 801, 40.0, 1.0),
    "sparse": spread(24, 1500, 9.0, 0.08),
    "very sparse": spread(30, 3000, 30.0, 0.002),
    "zeros": np.zeros((5, 33), np.int8),
    "tiny": spread(1, 3, 9.0, 1.0),
}


@pytest.mark.parametrize("codec", DECODED)
@pytest.mark.parametrize("name", WEIGHTS)
def test_decodes_as_the_cpu(cuda_ops: CudaOps, codec: str, name: str) -> None:
    weight = WEIGHTS[name]
    payload = coded(weight, codec)
    assert torch.equal(cuda_ops.call("decode_weight", payload, codec, *weight.shape), torch.tensor(weight))


@pytest.mark.parametrize("codec", [*STREAMS, "bitmask"])
def test_several_chunks_of_a_large_weight(cuda_ops: CudaOps, codec: str) -> None:
    weight = spread(150, 2001, 3.0, 1.0 if codec == "interleaved-huffman" else 0.6)
    if cuda_ops.emulated and codec != "interleaved-huffman":
        weight = weight[:, :1200]
    payload = coded(np.ascontiguousarray(weight), codec)
    assert torch.equal(cuda_ops.call("decode_weight", payload, codec, *weight.shape), torch.tensor(weight))


@pytest.mark.parametrize("codec", [*STREAMS, "bitmask"])
def test_streams_begin_at_any_byte(cuda_ops: CudaOps, codec: str) -> None:
    weight = spread(3, 1111, 5.0, 0.5)
    payload = coded(weight, codec).to(cuda_ops.device)
    for shift in (1, 2, 7, 15):
        memory = torch.cat([payload.new_full((shift,), 255), payload, payload.new_full((9,), 255)])
        view = memory[shift : shift + len(payload)]
        assert torch.equal(cuda_ops.decode_weight(view, codec, 3, 1111).cpu(), torch.tensor(weight))


def test_more_tiles_of_a_mask_than_are_placed_at_once(cuda_ops: CudaOps) -> None:
    """A block of 1024 threads places tiles of 4096 weights."""
    weight = np.zeros(1025 * 4096 + 5, np.int8)
    places = np.random.default_rng(7).integers(0, len(weight), 5000)
    weight[[*places, -1]] = 1 + np.arange(5001) % 127
    payload = coded(weight[None], "bitmask")
    assert torch.equal(cuda_ops.call("decode_weight", payload, "bitmask", 1, len(weight))[0], torch.tensor(weight))


def refused(function: Any, *args: Any) -> bool:
    try:
        function(*args)
    except RuntimeError as error:
        return "payload" in str(error)
    return False


@pytest.mark.parametrize("codec", DECODED)
def test_refuses_what_the_cpu_refuses(cuda_ops: CudaOps, codec: str) -> None:
    """Cut, longer and damaged payloads; what is whole by chance gives the same weight."""
    weight = spread(4, 600, 3.0, 0.7, seed=3)
    whole = coded(weight, codec)
    generator = torch.Generator().manual_seed(5)
    payloads = [whole[:cut] for cut in (0, 1, 3, 40, len(whole) - 1)]
    payloads += [torch.cat([whole, torch.zeros(1, dtype=torch.uint8)])]
    places = [*range(min(12, len(whole))), *torch.randint(0, len(whole), (12,), generator=generator).tolist()]
    for place in places:
        damaged = whole.clone()
        damaged[place] ^= 1 << place % 8
        payloads.append(damaged)
    for payload in payloads:
        expected = refused(torch.ops.pqk.decode_weight, payload, codec, 4, 600)
        assert refused(cuda_ops.call, "decode_weight", payload, codec, 4, 600) == expected
        if expected:
            continue
        decoded = torch.ops.pqk.decode_weight(payload, codec, 4, 600)
        assert torch.equal(cuda_ops.call("decode_weight", payload, codec, 4, 600), decoded)


def test_faults_of_a_mask_are_named(cuda_ops: CudaOps) -> None:
    whole = coded(np.array([[0, 5, 0, 0, -7, 0, 0, 0, 1, 0, 0, 0, 9]], np.int8), "bitmask")
    assert len(whole) == 2 + 4
    zero, spare = whole.clone(), whole.clone()
    zero[3], spare[1] = 0, whole[1] | 0x40
    longer = torch.cat([whole, whole[-1:]])
    for payload, code in (
        (zero, "E_VALUE_RANGE"),
        (torch.cat([spare, whole[-1:]]), "E_PADDING"),
        (whole[:5], "E_TRUNCATED"),
        (whole[:1], "E_TRUNCATED"),
        (longer, "E_SIZE_MISMATCH"),
        (longer.repeat(3), "E_SIZE_MISMATCH"),
    ):
        for call in (cuda_ops.call, lambda _, *args: torch.ops.pqk.decode_weight(*args)):
            with pytest.raises(RuntimeError, match=f"payload.* .{code}."):
                call("decode_weight", payload, "bitmask", 1, 13)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("shape", "out_features"), [((33,), 17), ((2, 2, 32), 40), ((5, 600), 9), ((19, 100), 24), ((0, 8), 3)]
)
def test_coded_linear_has_the_bits_of_the_cpu(
    cuda_ops: CudaOps, codec: str, shape: tuple[int, ...], out_features: int
) -> None:
    generator = torch.Generator().manual_seed(out_features)
    weight = spread(out_features, shape[-1], 6.0, 0.5)
    payload = coded(weight, codec)
    input = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    for zero_point, float_output, with_residual in [(0, False, False), (131, False, True), (7, True, True)]:
        multiplier, bias = sample_constants(torch.tensor(weight), zero_point, generator)
        out_shape = (*shape[:-1], out_features)
        residual = torch.randint(0, 256, out_shape, generator=generator, dtype=torch.uint8) if with_residual else None
        args = (input, payload, multiplier, bias, codec, zero_point, 2, 250, residual, 0.7, 90, float_output)
        assert torch.equal(cuda_ops.call("coded_linear", *args), torch.ops.pqk.coded_linear(*args))


@pytest.mark.parametrize("codec", CODECS)
def test_coded_linear_of_extremes_and_no_columns(cuda_ops: CudaOps, codec: str) -> None:
    for weight in (np.full((3, 520), -128, np.int8), np.zeros((3, 0), np.int8)):
        input = torch.full((2, weight.shape[1]), 255, dtype=torch.uint8)
        args = (input, coded(weight, codec), torch.ones(3), torch.ones(3), codec, 255, 0, 255, None, 1.0, 0, True)
        assert torch.equal(cuda_ops.call("coded_linear", *args), torch.ops.pqk.coded_linear(*args))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("rows", "in_features", "size"), [(1, 33, 2), (6, 96, 16), (2, 513, 200)])
def test_codebook_linear_is_near_the_dense_product(
    cuda_ops: CudaOps, codec: str, rows: int, in_features: int, size: int
) -> None:
    generator = torch.Generator().manual_seed(size)
    zero = size // 2
    codes = spread(21, in_features, size / 6, 0.7).clip(-zero, min(127, size - 1 - zero))
    codebook = torch.randn(size, generator=generator)
    weight = codebook[torch.tensor(codes).long() + zero].double()
    input, bias = torch.randn(rows, in_features, generator=generator), torch.randn(21, generator=generator)
    args = (coded(codes, codec), codebook, codec, 21, zero)
    for given in (None, bias):
        expected = input.double() @ weight.T + (0 if given is None else bias.double())
        bound = (input.double().abs() @ weight.abs().T + 1) * 2.0**-24 * in_features
        output = cuda_ops.call("codebook_linear", input, *args, given)
        assert ((output.double() - expected).abs() <= bound).all()
        again = cuda_ops.call("codebook_linear", input, *args, given)
        assert torch.equal(output, again)


@pytest.mark.parametrize("codec", STREAMS)
def test_damaged_payloads_spoil_the_output(cuda_ops: CudaOps, codec: str) -> None:
    """Of a damaged header all of it, of a damaged chunk that chunk's rows; nothing is waited for or thrown."""
    whole = coded(spread(4, 600, 3.0, 0.7, seed=3), codec)
    header, chunk = whole.clone(), whole.clone()
    header[0] = 0xFF
    chunk[-1] ^= 0x80
    cases = [(payload, rows) for payload in (header, chunk) for rows in (3, 11)]
    for payload, rows in cases:
        input = torch.full((rows, 600), 9, dtype=torch.uint8)
        for float_output in (True, False):
            args = (input, payload, torch.ones(4), torch.ones(4), codec, 3, 17, 250, None, 1.0, 0, float_output)
            output = cuda_ops.call("coded_linear", *args)
            assert output.isnan().all() if float_output else output.eq(17).all()
        output = cuda_ops.call("codebook_linear", input.float(), payload, torch.randn(200), codec, 4, 100, None)
        assert output.isnan().all()


def test_codes_outside_of_the_codebook_give_nan(cuda_ops: CudaOps) -> None:
    codes = np.zeros((3, 40), np.int8)
    codes[1, 7] = 5
    output = cuda_ops.call("codebook_linear", torch.ones(1, 40), coded(codes, "raw"), torch.ones(3), "raw", 3, 1, None)
    assert output.isnan().tolist() == [[False, True, False]]


def arguments(**change: object) -> tuple[object, ...]:
    named: dict[str, object] = {
        "input": torch.zeros(2, 4, dtype=torch.uint8),
        "payload": torch.zeros(24, dtype=torch.uint8),
        "multiplier": torch.ones(6),
        "bias": torch.zeros(6),
        "codec": "raw",
    }
    return (*(named | change).values(), 0, 0, 255, None, 1.0, 0, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(2, 4)}, "input must be Byte, got Float"),
        ({"input": torch.zeros(2, 5, dtype=torch.uint8)}, r"payload: expected one of 30 .* got 24 bytes \[E_SIZE_MIS"),
        ({"payload": torch.zeros(6, 4, dtype=torch.uint8)}, r"payload must have 1 dimension, got shape \[6, 4\]"),
        ({"codec": "huffman"}, "codec must be one whose rows can be decoded by themselves, got 'huffman'"),
        ({"codec": "bitmask"}, "on CUDA codec must be raw, packed, .* got 'bitmask'"),
        ({"codec": "zip"}, r"codec: expected one of raw, .*, got zip \[E_ENUM\]"),
        ({"bias": torch.ones(5)}, r"bias must have shape \[6\], got \[5\]"),
    ],
)
def test_bad_arguments_are_named(cuda_ops: CudaOps, change: dict[str, object], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"(?s)pqk::coded_linear: .*{message}"):
        cuda_ops.call("coded_linear", *arguments(**change))


def test_other_layouts(cuda_ops: CudaOps) -> None:
    weight = spread(6, 64, 4.0, 1.0)
    input = torch.arange(2 * 64, dtype=torch.uint8).reshape(64, 2)
    payload: Tensor = coded(weight, "packed").repeat_interleave(2)
    device = cuda_ops.device
    args = (torch.ones(6), torch.zeros(6), "packed", 9, 0, 255, None, 1.0, 0, True)
    expected = torch.ops.pqk.coded_linear(input.T.contiguous(), payload[::2].contiguous(), *args)
    moved = [a.to(device) if isinstance(a, Tensor) else a for a in args]
    assert torch.equal(cuda_ops.coded_linear(input.to(device).T, payload.to(device)[::2], *moved).cpu(), expected)
