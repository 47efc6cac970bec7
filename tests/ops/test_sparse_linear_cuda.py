"""sparse_linear and int8_sparse_linear on CUDA against their CPU results, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pqk_ext.ops._sparse import from_dense, sample_matrix
from pqk_ext.ops._spec import SPECS
from tests.ops.cuda_ops import CudaOps, cuda_ops

__all__ = ["cuda_ops"]

# Shapes of the input; fewer than 32 rows and fewer than 9 have kernels of their own.
SHAPES = [(70,), (1, 70), (5, 33), (8, 130), (9, 64), (31, 50), (2, 20, 40), (600, 24), (0, 7)]


def assert_same_bits(cuda_ops: CudaOps, name: str, *args: object) -> Tensor:
    expected = getattr(torch.ops.pqk, name)(*args)
    actual: Tensor = cuda_ops.call(name, *args)
    assert actual.is_contiguous()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    return actual


@pytest.mark.parametrize("name", ["sparse_linear", "int8_sparse_linear"])
def test_samples(cuda_ops: CudaOps, name: str) -> None:
    for args, kwargs in SPECS[name].opcheck_samples():
        assert not kwargs
        assert_same_bits(cuda_ops, name, *(a.detach() if isinstance(a, Tensor) else a for a in args))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float(cuda_ops: CudaOps, shape: tuple[int, ...], sparsity: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 37):
        csr = sample_matrix(rows, shape[-1], sparsity, dtype, generator)
        input = torch.randn(shape, generator=generator, dtype=dtype) * 1000
        bias = torch.randn(rows, generator=generator, dtype=dtype)
        assert_same_bits(cuda_ops, "sparse_linear", input, *csr, bias)
        assert_same_bits(cuda_ops, "sparse_linear", input, *csr, None)


@pytest.mark.parametrize("rows", [3, 40])
def test_float_specials(cuda_ops: CudaOps, rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(9, 6, generator=generator)
    dense[:, 1:4] = 0
    dense[4] = 0
    input = torch.randn(rows, 6, generator=generator)
    input[0, 0], input[1, 5], input[2, 2] = torch.inf, torch.nan, torch.inf
    actual = assert_same_bits(cuda_ops, "sparse_linear", input, *from_dense(dense), None)
    assert actual[2].isfinite().all(), "an infinite input without a stored weight reached the result"
    negative = assert_same_bits(cuda_ops, "sparse_linear", -torch.zeros(rows, 6), *from_dense(dense), None)
    assert not negative.signbit().any(), "sums begin with a positive zero"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.7])
@pytest.mark.parametrize("zero_point", [0, 200])
def test_int8(cuda_ops: CudaOps, shape: tuple[int, ...], sparsity: float, zero_point: int) -> None:
    generator = torch.Generator().manual_seed(2)
    for rows, float_output in ((1, True), (37, False)):
        csr = sample_matrix(rows, shape[-1], sparsity, torch.int8, generator)
        input = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        multiplier = torch.randn(rows, generator=generator) * 1e-3
        bias = torch.randn(rows, generator=generator) * 20 + 120
        assert_same_bits(
            cuda_ops, "int8_sparse_linear", input, *csr, multiplier, bias, zero_point, 3, 250, float_output
        )


@pytest.mark.parametrize("rows", [1, 12])
@pytest.mark.parametrize("value", [127, -128])
def test_int8_extremes(cuda_ops: CudaOps, rows: int, value: int) -> None:
    csr = from_dense(torch.full((1, 65793), value, dtype=torch.int8))
    for code, zero_point in ((0, 255), (255, 0)):
        input = torch.full((rows, 65793), code, dtype=torch.uint8)
        arguments = (input, *csr, torch.ones(1), torch.zeros(1), zero_point, 0, 255, True)
        actual = assert_same_bits(cuda_ops, "int8_sparse_linear", *arguments)
        exact = torch.tensor((code - zero_point) * value * 65793).float()
        assert actual.unique().tolist() == [exact.item()]


def test_layouts(cuda_ops: CudaOps) -> None:
    generator = torch.Generator().manual_seed(3)
    for rows in (4, 50):
        csr = sample_matrix(11, 20, 0.5, torch.float32, generator)
        wide = torch.randn(20, 2 * rows, generator=generator)
        strided = tuple(torch.stack([part, part], dim=1)[:, 0] for part in csr)
        for input in (wide[:, :rows].T, wide[:, ::2].T, wide[:, :rows].T.contiguous()):
            assert_same_bits(cuda_ops, "sparse_linear", input, *strided, wide[:11, 0])


def test_entries_outside_of_the_matrix_are_left_out(cuda_ops: CudaOps) -> None:
    crow = torch.tensor([0, 2, 9], dtype=torch.int32)
    col = torch.tensor([1, 7, -3, 2], dtype=torch.int32)
    for rows in (2, 40):
        output = cuda_ops.call(
            "sparse_linear", torch.ones(rows, 4), crow, col, torch.tensor([1.0, 2.0, 4.0, 8.0]), None
        )
        assert output.tolist() == [[1.0, 8.0]] * rows
        codes = torch.ones(rows, 4, dtype=torch.uint8)
        values = torch.tensor([1, 2, 4, 8], dtype=torch.int8)
        arguments = (codes, crow, col, values, torch.ones(2), torch.zeros(2), 0, 0, 255, False)
        assert cuda_ops.call("int8_sparse_linear", *arguments).tolist() == [[1, 8]] * rows


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(2, 4, dtype=torch.int32), "input must be Float or Double, got Int"),
        (1, torch.zeros(4), "crow_indices must be Int, got Float"),
        (2, torch.zeros(3, dtype=torch.int32), r"col_indices: expected 5 entries, .* got 3 \[E_CSR_NNZ\]"),
        (3, torch.ones(5, dtype=torch.float64), "values must be Float, got Double"),
        (4, torch.ones(2), r"bias must have shape \[3\], got \[2\]"),
    ],
)
def test_bad_arguments_are_named(cuda_ops: CudaOps, index: int, value: Tensor, message: str) -> None:
    crow, col = torch.tensor([0, 2, 2, 5], dtype=torch.int32), torch.tensor([1, 3, 0, 1, 3], dtype=torch.int32)
    arguments = [torch.zeros(2, 4), crow, col, torch.ones(5), torch.ones(3)]
    arguments[index] = value
    with pytest.raises(RuntimeError, match=f"pqk::sparse_linear: {message}"):
        cuda_ops.call("sparse_linear", *arguments)
