"""int8_semi_structured_linear's CUDA kernels against its CPU results, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pqk_ext.ops._int8 import epilogue_arguments
from pqk_ext.ops._spec import SPECS
from tests.ops.cuda_ops import CudaOps, cuda_ops, require_gpu
from tests.ops.test_semi_structured_linear import compressed, layer

__all__ = ["cuda_ops"]


def assert_same_bits(cuda_ops: CudaOps, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Tensor:
    arguments = (*args, *epilogue_arguments(kwargs))
    expected = torch.ops.pqk.int8_semi_structured_linear(*arguments)
    actual: Tensor = cuda_ops.call("int8_semi_structured_linear", *arguments)
    assert actual.is_contiguous()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    return actual


def test_samples(cuda_ops: CudaOps) -> None:
    for args, _ in SPECS["int8_semi_structured_linear"].opcheck_samples():
        actual = cuda_ops.call("int8_semi_structured_linear", *args)
        assert torch.equal(actual, torch.ops.pqk.int8_semi_structured_linear(*args))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    groups=st.integers(1, 40) | st.sampled_from([64, 96, 127, 130]),
    out_features=st.integers(1, 130),
    with_residual=st.booleans(),
    float_output=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_layer(cuda_ops: CudaOps, rows: int, groups: int, out_features: int, seed: int, **kwargs: bool) -> None:
    args, kwargs = layer((rows, 4 * groups), out_features, seed, **kwargs)
    assert_same_bits(cuda_ops, compressed(args), kwargs)


# Large tiles, small ones, and those for few rows or few outputs; the depth in whole stages, and with a rest in the
# first or the second half of one.
@pytest.mark.parametrize(("rows", "out_features"), [(300, 272), (200, 130), (70, 64), (17, 200), (16, 96), (1, 33)])
@pytest.mark.parametrize("in_features", [128, 384, 144, 340])
def test_every_tile(cuda_ops: CudaOps, rows: int, out_features: int, in_features: int) -> None:
    args, kwargs = layer((rows, in_features), out_features, with_residual=True)
    codes = assert_same_bits(cuda_ops, compressed(args), kwargs)
    assert ((codes == 0) | (codes == 255)).float().mean().item() < 0.2


@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("in_features", [4, 4096, 131584])
@pytest.mark.parametrize("weight_code", [-128, 127])
def test_extreme_sums(cuda_ops: CudaOps, rows: int, in_features: int, weight_code: int) -> None:
    if cuda_ops.emulated and rows > 1 and in_features > 10000:
        in_features = 2560  # the emulation is slow
    weight = torch.tensor([0, weight_code, 0, weight_code], dtype=torch.int8).repeat(3, in_features // 4)
    for code, zero_point in ((255, 0), (0, 255)):
        input = torch.full((rows, in_features), code, dtype=torch.uint8)
        kwargs = {"input_zero_point": zero_point, "float_output": True}
        output = assert_same_bits(cuda_ops, compressed((input, weight, torch.ones(3), torch.zeros(3))), kwargs)
        exact = torch.tensor((code - zero_point) * weight_code * in_features // 2).float()
        assert output.unique().tolist() == [exact.item()]


def test_layouts(cuda_ops: CudaOps) -> None:
    for rows in (3, 20):
        args, kwargs = layer((rows, 128), 18, with_residual=True)
        input, values, indices, multiplier, bias = compressed(args)
        codes = assert_same_bits(cuda_ops, (input, values, indices, multiplier, bias), kwargs)

        def shifted(tensor: Tensor) -> Tensor:
            """Contiguous, at an address that is no multiple of 16."""
            memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
            return memory[1:].view(tensor.shape).copy_(tensor)

        for view in (input.T.contiguous().T, torch.cat([input, input], dim=1)[:, 128:], shifted(input)):
            assert torch.equal(assert_same_bits(cuda_ops, (view, values, indices, multiplier, bias), kwargs), codes)
        for kept, places in (
            (values.T.contiguous().T, indices),
            (values, torch.cat([indices, indices], dim=1)[:, 16:]),
            (shifted(values), indices),
            (values, shifted(indices)),
        ):
            assert torch.equal(assert_same_bits(cuda_ops, (input, kept, places, multiplier, bias), kwargs), codes)
        kwargs["residual"] = kwargs["residual"].T.contiguous().T
        constants = torch.stack([multiplier, bias], dim=1).unbind(1)
        assert torch.equal(assert_same_bits(cuda_ops, (input, values, indices, *constants), kwargs), codes)


def test_nothing_to_compute(cuda_ops: CudaOps) -> None:
    for shape, out_features in (((4, 32), 0), ((2, 0, 32), 5), ((0, 128), 7), ((3, 0), 2)):
        args, kwargs = layer(shape, out_features, input_zero_point=3)
        assert assert_same_bits(cuda_ops, compressed(args), kwargs).shape == (*shape[:-1], out_features)


@pytest.mark.cuda
def test_compressing_on_a_gpu() -> None:
    require_gpu()
    (_, weight, *_), _ = layer((1, 260), 70)
    actual = torch.ops.pqk.semi_structured_compress(weight.cuda())
    expected = torch.ops.pqk.semi_structured_compress(weight)
    assert all(torch.equal(a.cpu(), e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(2, 8), "input must be Byte, got Float"),
        (0, torch.zeros(2, 6, dtype=torch.uint8), "input must have a multiple of 4 features, got 6"),
        (1, torch.zeros(6, 3, dtype=torch.int8), r"values must have shape \[O, 4\], got \[6, 3\]"),
        (2, torch.zeros(6, 2, dtype=torch.uint8), r"indices must have shape \[6, 1\], got \[6, 2\]"),
        (3, torch.ones(5), r"multiplier must have shape \[6\], got \[5\]"),
        (5, -1, r"input_zero_point must be in \[0, 255\], got -1"),
        (8, torch.zeros(2, 5, dtype=torch.uint8), r"residual must have the output's shape \[2, 6\], got \[2, 5\]"),
    ],
)
def test_bad_arguments_are_named(cuda_ops: CudaOps, index: int, value: object, message: str) -> None:
    values, indices = torch.zeros(6, 4, dtype=torch.int8), torch.full((6, 1), 0x44, dtype=torch.uint8)
    input = torch.zeros(2, 8, dtype=torch.uint8)
    constants = (torch.ones(6), torch.zeros(6), *epilogue_arguments({"input_zero_point": 0}))
    arguments = [input, values, indices, *constants]
    arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        cuda_ops.call("int8_semi_structured_linear", *arguments)
