"""codebook_linear against a dense float64 product, on any instruction set and thread count; its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pqk_ext import _core
from pqk_ext.ops import codebook_linear
from pqk_ext.ops.coded_linear import coded, sample_weight

CODECS = _core.codec_names(openable=True)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("size", "density"), [(2, 0.5), (16, 1.0), (32, 0.1), (33, 1.0), (128, 0.1), (256, 1.0)])
def test_equals_the_dense_product(isa: str, codec: str, size: int, density: float) -> None:
    """allclose at 1e-5, and the same bits for every number of threads; one row alone may have others."""
    generator = torch.Generator().manual_seed(size)
    zero = min(size // 2, 128)
    codes = sample_weight(150, 2050, 8, density, generator).clip(-zero, size - 1 - zero)
    codebook = torch.randn(size, generator=generator).sort().values
    codebook[zero] = 0.0
    payload = coded(codes, codec)
    weight = codebook[torch.tensor(codes).long() + zero]
    input = torch.randn(9, 2050, generator=generator)
    kwargs: dict[str, Any] = {"codec": codec, "out_features": 150, "zero": zero}
    expected = (input.double() @ weight.double().T).float()
    bound = (input.double().abs() @ weight.double().abs().T) * 2.0**-24 * 2050
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        all_rows = codebook_linear(input, payload, codebook, **kwargs)
        assert ((all_rows - expected).abs() <= bound).all()
        torch.testing.assert_close(all_rows, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        for rows in (1, 2, 3, 4, 8):
            torch.set_num_threads(1)
            serial = codebook_linear(input[:rows], payload, codebook, **kwargs)
            assert ((serial - expected[:rows]).abs() <= bound[:rows]).all()
            assert rows == 1 or serial.equal(all_rows[:rows])
            torch.set_num_threads(2)
            assert codebook_linear(input[:rows], payload, codebook, **kwargs).equal(serial)
    finally:
        torch.set_num_threads(threads)


def test_codes_at_the_ends_of_the_table(isa: str) -> None:
    """Codebooks whose codes are all positive, or all negative."""
    for zero, first in [(0, 0), (255, -128), (128, -128)]:
        codes = torch.arange(128).add(first).to(torch.int8).repeat(3, 1)
        codebook = torch.linspace(-2, 3, 256)
        output = codebook_linear(
            torch.ones(1, 128), codes.reshape(-1).view(torch.uint8), codebook, codec="raw", out_features=3, zero=zero
        )
        torch.testing.assert_close(output, codebook[codes.long() + zero].sum(1)[None])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(2, 4).double()}, "input must be Float, got Double"),
        ({"input": torch.tensor(1.0)}, "input must have at least 1 dimension"),
        ({"input": torch.zeros(2, 5)}, r"payload: expected 30 bytes, got 24 \[E_SIZE_MISMATCH\]"),
        ({"payload": torch.zeros(24)}, "payload must be Byte, got Float"),
        ({"payload": torch.full((24,), 3, dtype=torch.uint8)}, "payload: expected codes from -1 to 1, got another"),
        ({"codec": "csr"}, "codec must be one whose rows can be decoded by themselves, got 'csr'"),
        ({"codebook": torch.zeros(0)}, r"codebook must have shape \[K\] with K from 1 to 256, got \[0\]"),
        ({"codebook": torch.zeros(257)}, r"got \[257\]"),
        ({"codebook": torch.tensor([0.0, torch.nan, 1.0])}, "codebook must be finite, got nan at index 1"),
        ({"zero": 3}, r"zero must be in \[0, 2\], got 3"),
        ({"out_features": -1}, "out_features must not be negative, got -1"),
        ({"out_features": 2**62}, "out_features must leave fewer than 2\\^63 weights"),
        ({"bias": torch.zeros(5)}, r"bias must have shape \[6\], got \[5\]"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, Any] = {
        "input": torch.zeros(2, 4),
        "payload": torch.zeros(24, dtype=torch.uint8),
        "codebook": torch.tensor([-1.0, 0.0, 1.0]),
        "codec": "raw",
        "out_features": 6,
        "zero": 1,
    }
    with pytest.raises(RuntimeError, match=message):
        codebook_linear(**{**arguments, **change})
