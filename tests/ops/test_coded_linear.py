"""coded_linear: the bits of int8_linear on the decoded weight, on any instruction set and thread count; its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pqk_ext import _core
from pqk_ext.ops import coded_linear, int8_linear
from pqk_ext.ops._int8 import sample_constants
from pqk_ext.ops.coded_linear import coded, sample_weight

CODECS = _core.codec_names(openable=True)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_equals_the_product_of_the_decoded_weight(isa: str, codec: str, density: float) -> None:
    """Several chunks, a last one of fewer rows; one row of x, as many as are multiplied together, and more."""
    generator = torch.Generator().manual_seed(0)
    weight = sample_weight(301, 2000, 4, density, generator)
    payload = coded(weight, codec)
    threads = torch.get_num_threads()
    try:
        for rows, zero_point in [(1, 0), (1, 77), (4, 0), (7, 128), (33, 3)]:
            input = torch.randint(0, 256, (rows, 2000), generator=generator, dtype=torch.uint8)
            constants = sample_constants(torch.tensor(weight), zero_point, generator)
            kwargs: dict[str, Any] = {"input_zero_point": zero_point, "quant_max": 250}
            expected = int8_linear(input, torch.tensor(weight), *constants, **kwargs)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                actual = coded_linear(input, payload, *constants, codec=codec, **kwargs)
                torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("in_features", [1, 63, 64, 65, 4096, 65793])
@pytest.mark.parametrize("weight_code", [-128, 127])
def test_extreme_sums_are_exact(isa: str, in_features: int, weight_code: int) -> None:
    input = torch.full((2, in_features), 255, dtype=torch.uint8)
    payload = torch.full((5 * in_features,), weight_code, dtype=torch.int8).view(torch.uint8)
    for zero_point in (0, 255):
        output = coded_linear(
            input,
            payload,
            torch.ones(5),
            torch.zeros(5),
            codec="raw",
            input_zero_point=zero_point,
            float_output=True,
        )
        expected = torch.tensor((255 - zero_point) * weight_code * in_features).float().item()
        assert output.unique().tolist() == [expected]


def test_empty_shapes() -> None:
    for codec in CODECS:
        nothing = coded(sample_weight(3, 0, 4, 1.0, torch.Generator()), codec)
        output = coded_linear(
            torch.zeros(5, 0, dtype=torch.uint8),
            nothing,
            torch.ones(3),
            torch.zeros(3),
            codec=codec,
            input_zero_point=9,
        )
        assert output.tolist() == [[0] * 3] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(2, 4)}, "input must be Byte, got Float"),
        ({"input": torch.tensor(1, dtype=torch.uint8)}, "input must have at least 1 dimension"),
        ({"input": torch.zeros(2, 5, dtype=torch.uint8)}, r"payload: expected 30 bytes, got 24 \[E_SIZE_MISMATCH\]"),
        ({"input": torch.zeros(1, 65794, dtype=torch.uint8)}, "weight must have at most 65793 elements"),
        ({"payload": torch.zeros(24, dtype=torch.int8)}, "payload must be Byte, got Char"),
        ({"payload": torch.zeros(6, 4, dtype=torch.uint8)}, r"payload must have 1 dimension, got shape \[6, 4\]"),
        ({"codec": "zip"}, r"codec: expected one of raw, .*, got zip \[E_ENUM\]"),
        ({"codec": "huffman"}, "codec must be one whose rows can be decoded by themselves, got 'huffman'"),
        ({"multiplier": torch.ones(6, 1)}, r"multiplier must have shape \[O\], got \[6, 1\]"),
        ({"bias": torch.full((6,), torch.inf)}, "bias must be finite, got inf at index 0"),
        ({"bias": torch.ones(5)}, r"bias must have shape \[6\], got \[5\]"),
        ({"input_zero_point": -1}, r"input_zero_point must be in \[0, 255\], got -1"),
        ({"quant_min": -1}, "0 <= quant_min"),
        ({"residual": torch.zeros(2, 5, dtype=torch.uint8)}, r"residual must have the output's shape \[2, 6\]"),
        ({"residual_zero_point": 300}, "residual_zero_point must be in"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, Any] = {
        "input": torch.zeros(2, 4, dtype=torch.uint8),
        "payload": torch.zeros(24, dtype=torch.uint8),
        "multiplier": torch.ones(6),
        "bias": torch.zeros(6),
        "codec": "raw",
        "input_zero_point": 0,
    }
    with pytest.raises(RuntimeError, match=message):
        coded_linear(**{**arguments, **change})


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_damaged_payloads_are_refused(isa: str, codec: str, num_threads: int) -> None:
    """By an error, or, where it is another weight's payload by chance, by nothing: never by a crash."""
    generator = torch.Generator().manual_seed(1)
    whole = coded(sample_weight(300, 2000, 4, 0.2, generator), codec)
    input = torch.randint(0, 256, (1, 2000), generator=generator, dtype=torch.uint8)
    threads, refused, accepted = torch.get_num_threads(), 0, 0
    torch.set_num_threads(num_threads)
    try:
        for cut in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
            with pytest.raises(RuntimeError, match=r"pqk::coded_linear: payload.* \[E_\w+\]"):
                coded_linear(input, whole[:cut], torch.ones(300), torch.ones(300), codec=codec, input_zero_point=0)
        for place in torch.randint(0, len(whole), (60,), generator=generator).tolist():
            damaged = whole.clone()
            damaged[place] ^= 1 << place % 8
            try:
                coded_linear(input, damaged, torch.ones(300), torch.ones(300), codec=codec, input_zero_point=0)
            except RuntimeError as error:
                refused += "pqk::coded_linear: payload" in str(error)
            else:
                accepted += 1
    finally:
        torch.set_num_threads(threads)
    assert refused + accepted == 60
    assert refused > 0 or codec in ("raw", "packed")
