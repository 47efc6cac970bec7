"""int8_linear's CUDA kernels against its CPU results, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pqk_ext.ops._int8 import epilogue_arguments
from pqk_ext.ops._spec import SPECS
from tests.ops.cuda_ops import CudaOps, cuda_ops
from tests.ops.test_int8_linear import layer

__all__ = ["cuda_ops"]


def assert_same_bits(cuda_ops: CudaOps, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Tensor:
    arguments = (*args, *epilogue_arguments(kwargs))
    expected = torch.ops.pqk.int8_linear(*arguments)
    actual: Tensor = cuda_ops.call("int8_linear", *arguments)
    assert actual.is_contiguous()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    return actual


def test_samples(cuda_ops: CudaOps) -> None:
    for args, _ in SPECS["int8_linear"].opcheck_samples():
        assert torch.equal(cuda_ops.call("int8_linear", *args), torch.ops.pqk.int8_linear(*args))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    in_features=st.integers(1, 70) | st.sampled_from([16, 64, 127, 128, 512, 1023, 1040]),
    out_features=st.integers(1, 130),
    with_residual=st.booleans(),
    float_output=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_layer(
    cuda_ops: CudaOps, rows: int, in_features: int, out_features: int, seed: int, **kwargs: bool
) -> None:
    assert_same_bits(cuda_ops, *layer((rows, in_features), out_features, seed, **kwargs))


# Up to 8 rows have a kernel of their own.
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, 17])
@pytest.mark.parametrize("in_features", [16, 48, 512, 1040])
def test_few_rows(cuda_ops: CudaOps, rows: int, in_features: int) -> None:
    codes = assert_same_bits(cuda_ops, *layer((rows, in_features), 37, with_residual=True))
    assert codes.unique().numel() > 20


@pytest.mark.parametrize(("rows", "out_features"), [(300, 130), (260, 200), (200, 70), (400, 16), (100, 40)])
def test_every_tile(cuda_ops: CudaOps, rows: int, out_features: int) -> None:
    (input, weight, *constants), kwargs = layer((rows, 144), out_features, with_residual=True)
    codes = assert_same_bits(cuda_ops, (input, weight, *constants), kwargs)
    # What lies behind a row's end is of other rows, or of nobody.
    part = torch.cat([weight, weight.flip(1)], dim=1)[:, :144]
    assert torch.equal(assert_same_bits(cuda_ops, (input, part, *constants), kwargs), codes)
    assert ((codes == 0) | (codes == 255)).float().mean().item() < 0.2


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("in_features", [1, 5, 4096, 65792, 65793])
@pytest.mark.parametrize("weight_code", [-128, 127])
def test_extreme_sums(cuda_ops: CudaOps, rows: int, in_features: int, weight_code: int) -> None:
    weight = torch.full((3, in_features), weight_code, dtype=torch.int8)
    for code, zero_point in ((255, 0), (0, 255), (255, 255)):
        input = torch.full((rows, in_features), code, dtype=torch.uint8)
        kwargs = {"input_zero_point": zero_point, "float_output": True}
        output = assert_same_bits(cuda_ops, (input, weight, torch.ones(3), torch.zeros(3)), kwargs)
        exact = torch.tensor((code - zero_point) * weight_code * in_features).float()
        assert output.unique().tolist() == [exact.item()]


def test_layouts(cuda_ops: CudaOps) -> None:
    for rows in (3, 20):
        (input, weight, multiplier, bias), kwargs = layer((rows, 32), 18, with_residual=True)
        wide = torch.cat([weight, weight], dim=1)
        for other in (weight.T.contiguous().T, wide[:, 32:], wide[:, 1:33], weight.flip(0)):
            for view in (input, input.T.contiguous().T, torch.cat([input, input], dim=1)[:, 7:39]):
                assert_same_bits(cuda_ops, (view, other, multiplier, bias), kwargs)
        kwargs["residual"] = kwargs["residual"].T.contiguous().T
        assert_same_bits(cuda_ops, (input, weight, *torch.stack([multiplier, bias], dim=1).unbind(1)), kwargs)


def test_nothing_to_compute(cuda_ops: CudaOps) -> None:
    no_features = (torch.empty(0, 32, dtype=torch.int8), torch.empty(0), torch.empty(0))
    args = (torch.zeros(4, 32, dtype=torch.uint8), *no_features)
    assert assert_same_bits(cuda_ops, args, {"input_zero_point": 3}).shape == (4, 0)
    assert assert_same_bits(cuda_ops, *layer((2, 0, 32), 5)).shape == (2, 0, 5)
    args = (torch.zeros(3, 0, dtype=torch.uint8), torch.zeros(2, 0, dtype=torch.int8), torch.ones(2), torch.ones(2) * 7)
    assert assert_same_bits(cuda_ops, args, {"input_zero_point": 3}).tolist() == [[7, 7]] * 3


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(2, 4), "input must be Byte, got Float"),
        (0, torch.tensor(1, dtype=torch.uint8), "input must have at least 1 dimension"),
        (1, torch.zeros(6, 3, dtype=torch.int8), r"weight must have shape \[O, 4\], got \[6, 3\]"),
        (2, torch.ones(5), r"multiplier must have shape \[6\], got \[5\]"),
        (4, -1, r"input_zero_point must be in \[0, 255\], got -1"),
        (7, torch.zeros(2, 5, dtype=torch.uint8), r"residual must have the output's shape \[2, 6\], got \[2, 5\]"),
    ],
)
def test_bad_arguments_are_named(cuda_ops: CudaOps, index: int, value: object, message: str) -> None:
    input, weight = torch.zeros(2, 4, dtype=torch.uint8), torch.zeros(6, 4, dtype=torch.int8)
    arguments = [input, weight, torch.ones(6), torch.zeros(6), *epilogue_arguments({"input_zero_point": 0})]
    arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        cuda_ops.call("int8_linear", *arguments)
