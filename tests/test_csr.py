"""CSR conversion and the refusal of every kind of broken index (csrc/core/csr.cpp)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pqk_ext import _core
from pqk_ext.errors import FormatError


def int32(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def reference(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, columns = np.nonzero(dense)
    counts = np.bincount(rows, minlength=dense.shape[0])
    return np.concatenate([[0], np.cumsum(counts)]), columns, dense[rows, columns]


@given(
    arrays(
        np.int8,
        array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=20),
        elements=st.sampled_from([0, 0, 0, 1, -1, 127, -128]),
    )
)
def test_int8_round_trip(dense: np.ndarray) -> None:
    csr = _core.csr_from_dense(dense)
    for actual, expected in zip(csr, reference(dense), strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert [part.dtype for part in csr] == [np.int32, np.int32, np.int8]
    np.testing.assert_array_equal(_core.csr_to_dense(*csr, dense.shape[1]), dense)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.99, 1.0])
def test_float_round_trip(sparsity: float) -> None:
    generator = np.random.default_rng(0)
    dense = generator.standard_normal((37, 113), dtype=np.float32)
    dense[generator.random(dense.shape) < sparsity] = 0
    csr = _core.csr_from_dense(dense)
    for actual, expected in zip(csr, reference(dense), strict=True):
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(_core.csr_to_dense(*csr, 113), dense)


def test_special_floats() -> None:
    dense = np.array([[np.nan, -0.0, np.inf, 1e-45]], dtype=np.float32)
    _, columns, values = _core.csr_from_dense(dense)
    assert columns.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(values, dense[0, [0, 2, 3]])


CROW, COL, VALUES = int32(0, 2, 2, 5), int32(1, 3, 0, 1, 3), np.ones(5, dtype=np.int8)


@pytest.mark.parametrize(
    ("change", "code", "field", "offset", "message"),
    [
        ({"crow": int32(1, 2, 2, 5)}, "E_CSR_INDPTR", "crow_indices", 0, "0 for row 0, got 1"),
        ({"crow": int32(0, 2, 1, 5)}, "E_CSR_INDPTR", "crow_indices", 8, "at least 2 as the end of row 1, got 1"),
        ({"crow": int32(0, 2, -1, 5)}, "E_CSR_INDPTR", "crow_indices", 8, "got -1"),
        ({"crow": int32(0, 2, 2, 4)}, "E_CSR_INDPTR", "crow_indices", 12, "5 .* as the end of row 2, got 4"),
        ({"crow": int32(0, 2, 2, 6)}, "E_CSR_INDPTR", "crow_indices", 12, "got 6"),
        ({"crow": int32(0, 2, 2**31 - 1, 5)}, "E_CSR_INDPTR", "crow_indices", 12, "got 5"),
        ({"crow": int32()}, "E_CSR_NNZ", "values", -1, "at most 0 x 4 values"),
        ({"col": int32(1, 4, 0, 1, 3)}, "E_CSR_INDEX", "col_indices", 4, r"\[2, 4\) in row 0, position 1, got 4"),
        ({"col": int32(1, 3, 0, 1, 4)}, "E_CSR_INDEX", "col_indices", 16, r"row 2, position 4, got 4"),
        ({"col": int32(-1, 3, 0, 1, 3)}, "E_CSR_INDEX", "col_indices", 0, r"row 0, position 0, got -1"),
        ({"col": int32(1, 3, 0, 0, 3)}, "E_CSR_INDEX", "col_indices", 12, r"row 2, position 3, got 0"),
        ({"col": int32(1, 3, 1, 0, 3)}, "E_CSR_INDEX", "col_indices", 12, r"row 2, position 3, got 0"),
        ({"col": int32(1, 3, 5, 1, 3)}, "E_CSR_INDEX", "col_indices", 8, r"row 2, position 2, got 5"),
        ({"col": int32(1, 3, 0, 1)}, "E_CSR_NNZ", "col_indices", -1, "5 entries, one for each value, got 4"),
        ({"cols": 1}, "E_CSR_NNZ", "values", -1, "at most 3 x 1 values"),
        ({"cols": 0}, "E_CSR_NNZ", "values", -1, "at most 3 x 0 values"),
    ],
)
def test_broken_indices_are_refused(
    change: dict[str, object], code: str, field: str, offset: int, message: str
) -> None:
    arguments = {"crow": CROW, "col": COL, "values": VALUES, "cols": 4, **change}
    with pytest.raises(FormatError, match=message) as caught:
        _core.csr_to_dense(*arguments.values())
    assert (caught.value.code, caught.value.field, caught.value.offset) == (code, field, offset)


def test_an_empty_giant_is_not_made_dense() -> None:
    empty = np.empty(0, dtype=np.float32)
    with pytest.raises(FormatError, match="at most 1024 bytes, got 1000 x 2147483647 values of 4 bytes") as caught:
        _core.csr_to_dense(np.zeros(1001, dtype=np.int32), int32(), empty, 2**31 - 1, max_bytes=1024)
    assert caught.value.code == "E_BOMB"


@given(
    st.lists(st.integers(-2, 6), max_size=6),
    st.lists(st.integers(-2, 6), max_size=6),
    st.integers(0, 6),
)
def test_accepts_exactly_the_valid(crow: list[int], col: list[int], cols: int) -> None:
    rows = [col[begin:end] for begin, end in itertools.pairwise(crow)]
    valid = (
        len(crow) > 0
        and crow[0] == 0
        and crow == sorted(crow)
        and crow[-1] == len(col)
        and all(row == sorted(set(row)) and all(0 <= column < cols for column in row) for row in rows)
    )
    try:
        _core.csr_to_dense(int32(*crow), int32(*col), np.ones(len(col), dtype=np.int8), cols)
    except FormatError:
        assert not valid
    else:
        assert valid
