"""Gradients, extremes and refused arguments of sparse_linear and int8_sparse_linear."""

from __future__ import annotations

import pytest
import torch

from pqk_ext import _core
from pqk_ext.ops import int8_sparse_linear, sparse_linear
from pqk_ext.ops._sparse import from_dense, sample_matrix


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    crow, col, values = sample_matrix(5, 7, 0.6, torch.float64, generator)
    input = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    values.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *leaves: sparse_linear(leaves[0], crow, col, leaves[1], leaves[2]), (input, values, bias)
    )
    assert torch.autograd.gradcheck(lambda *leaves: sparse_linear(leaves[0], crow, col, leaves[1]), (input, values))


def test_every_isa_gives_the_serial_sum() -> None:
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(3, 50, generator=generator) * 1000
    input = torch.randn(70, 50, generator=generator)
    bias = torch.randn(3, generator=generator)
    expected = torch.zeros(70, 3)
    for column in range(50):
        expected = expected + input[:, column, None] * dense[:, column]
    expected = expected + bias
    for isa in _core.supported_isas():
        _core.force_isa(isa)
        actual = sparse_linear(input, *from_dense(dense), bias)
        assert torch.equal(actual, expected), isa
    _core.force_isa("")


@pytest.mark.parametrize("value", [127, -128])
@pytest.mark.parametrize("code", [0, 255])
def test_int8_extremes_at_length_4096(value: int, code: int, isa: str) -> None:
    csr = from_dense(torch.full((3, 4096), value, dtype=torch.int8))
    input = torch.full((5, 4096), code, dtype=torch.uint8)
    ones, zeros = torch.ones(3), torch.zeros(3)
    for zero_point in (0, 128, 255):
        actual = int8_sparse_linear(input, *csr, ones, zeros, input_zero_point=zero_point, float_output=True)
        expected = float((code - zero_point) * value * 4096)
        assert actual.unique().tolist() == [float(torch.tensor(expected, dtype=torch.float32))]


def test_non_finite_input_reaches_only_stored_weights(isa: str) -> None:
    input = torch.tensor([[1.0, torch.inf, torch.nan]])
    csr = (int32(0, 1, 2, 3, 3), int32(0, 1, 2), torch.ones(3))
    actual = sparse_linear(input, *csr)
    torch.testing.assert_close(actual, torch.tensor([[1.0, torch.inf, torch.nan, 0.0]]), equal_nan=True)


CSR = {
    "crow_indices": int32(0, 2, 2, 5),
    "col_indices": int32(1, 3, 0, 1, 3),
    "values": torch.ones(5),
}
BROKEN = [
    ({"crow_indices": int32(1, 2, 2, 5)}, r"crow_indices: expected 0 for row 0, got 1 \[E_CSR_INDPTR\]"),
    ({"crow_indices": int32(0, 2, 1, 5)}, r"crow_indices: expected at least 2 .* row 1, got 1 \[E_CSR_INDPTR\]"),
    ({"crow_indices": int32(0, 2, 2, 6)}, r"crow_indices: expected 5 .* row 2, got 6 \[E_CSR_INDPTR\]"),
    ({"col_indices": int32(1, 4, 0, 1, 3)}, r".* in \[2, 4\) in row 0, position 1, got 4 \[E_CSR_INDEX\]"),
    ({"col_indices": int32(-1, 3, 0, 1, 3)}, r".* in row 0, position 0, got -1 \[E_CSR_INDEX\]"),
    ({"col_indices": int32(1, 3, 0, 0, 3)}, r".* in \[1, 4\) in row 2, position 3, got 0 \[E_CSR_INDEX\]"),
    ({"col_indices": int32(1, 3, 0, 1)}, r"col_indices: expected 5 entries, .* got 4 \[E_CSR_NNZ\]"),
    ({"values": torch.ones(13), "col_indices": int32(*range(13))}, r"values: expected at most 3 x 4 .*\[E_CSR_NNZ\]"),
    ({"crow_indices": torch.zeros(4)}, "crow_indices must be Int, got Float"),
    ({"crow_indices": int32()}, r"crow_indices must have out_channels \+ 1 elements, got 0"),
    ({"col_indices": torch.zeros(5, dtype=torch.int64)}, "col_indices must be Int, got Long"),
    ({"col_indices": int32(0)[0]}, "col_indices must have 1 dimension"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_broken_csr_is_refused(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"pqk::sparse_linear: {message}"):
        sparse_linear(torch.zeros(2, 4), **{**CSR, **change})
    arguments = {**CSR, **change}
    arguments["values"] = arguments["values"].to(torch.int8)
    with pytest.raises(RuntimeError, match=f"pqk::int8_sparse_linear: {message}"):
        int8_sparse_linear(
            torch.zeros(2, 4, dtype=torch.uint8), **arguments, multiplier=ONES, bias=ONES, input_zero_point=0
        )


ONES = torch.ones(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(2, 4)}, "input must be Byte, got Float"),
        ({"input": torch.tensor(0, dtype=torch.uint8)}, "input must have at least 1 dimension"),
        ({"values": torch.ones(5)}, "values must be Char, got Float"),
        ({"multiplier": torch.ones(2)}, r"multiplier must have shape \[3\], got \[2\]"),
        ({"multiplier": torch.tensor([1, torch.nan, 1])}, "multiplier must be finite, got nan at index 1"),
        ({"bias": torch.tensor([1, 1, torch.inf])}, "bias must be finite, got inf at index 2"),
        ({"bias": torch.ones(3, dtype=torch.float64)}, "bias must be Float, got Double"),
        ({"input_zero_point": 256}, r"input_zero_point must be in \[0, 255\], got 256"),
        ({"quant_min": -1}, "got quant_min -1 and quant_max 255"),
    ],
)
def test_bad_int8_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = {
        "input": torch.zeros(2, 4, dtype=torch.uint8),
        **CSR,
        "values": torch.ones(5, dtype=torch.int8),
        "multiplier": ONES,
        "bias": ONES,
        "input_zero_point": 0,
    }
    with pytest.raises(RuntimeError, match=message):
        int8_sparse_linear(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(2, 4, dtype=torch.int32)}, "input must be Float or Double, got Int"),
        ({"input": torch.zeros(2, 4, dtype=torch.float64)}, "values must be Double, got Float"),
        ({"bias": torch.ones(2)}, r"bias must have shape \[3\], got \[2\]"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        sparse_linear(**{"input": torch.zeros(2, 4), **CSR, **change})


def test_too_many_values_in_a_row() -> None:
    count = 65794
    input = torch.zeros(1, count, dtype=torch.uint8)
    csr = (int32(0, count), torch.arange(count, dtype=torch.int32), torch.ones(count, dtype=torch.int8))
    with pytest.raises(RuntimeError, match="a row may have at most 65793 values, row 0 has 65794"):
        int8_sparse_linear(input, *csr, torch.ones(1), torch.ones(1), input_zero_point=0)
