"""int8_conv2d's CUDA kernels against its CPU results, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pqk_ext.ops._spec import SPECS
from tests.ops.cuda_ops import CudaOps, cuda_ops
from tests.ops.test_int8_conv2d import layer, layers

__all__ = ["cuda_ops"]

FULL = {
    "quant_min": 0,
    "quant_max": 255,
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "residual": None,
    "residual_multiplier": 1.0,
    "residual_zero_point": 0,
    "float_output": False,
}
CHANNELS_LAST = torch.channels_last


def raw_arguments(args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The op's arguments in the order of its schema."""
    given = {**FULL, **kwargs}

    def values(name: str, count: int) -> list[int]:
        value = given[name]
        sequence = [value] * 2 if isinstance(value, int) else list(value)
        return sequence * (count // len(sequence))

    return (
        *args,
        *(given[name] for name in ("input_zero_point", "quant_min", "quant_max")),
        *(values("stride", 2), values("padding", 4), values("dilation", 2), given["groups"]),
        *(given[name] for name in ("residual", "residual_multiplier", "residual_zero_point", "float_output")),
    )


def assert_same_bits(cuda_ops: CudaOps, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Tensor:
    arguments = raw_arguments(args, kwargs)
    expected = torch.ops.pqk.int8_conv2d(*arguments)
    actual: Tensor = cuda_ops.call("int8_conv2d", *arguments)
    assert actual.dtype == expected.dtype
    assert actual.stride() == expected.stride()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    return actual


def test_samples(cuda_ops: CudaOps) -> None:
    for args, _ in SPECS["int8_conv2d"].opcheck_samples():
        assert torch.equal(cuda_ops.call("int8_conv2d", *args), torch.ops.pqk.int8_conv2d(*args))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=layers(), channels_last=st.booleans())
def test_any_layer(cuda_ops: CudaOps, case: tuple[tuple[Tensor, ...], dict[str, Any]], channels_last: bool) -> None:
    (input, *rest), kwargs = case
    assert_same_bits(
        cuda_ops, (input.contiguous(memory_format=CHANNELS_LAST) if channels_last else input, *rest), kwargs
    )


# Every tile of the matrix product: the emulated device has 3 multiprocessors, and the largest tile that gives each
# a block is taken.
@pytest.mark.parametrize(
    ("input_shape", "weight_shape", "kwargs"),
    [
        ((1, 32, 20, 20), (96, 32, 3, 3), {"padding": 1, "with_residual": True}),  # 128 x 128
        ((2, 48, 14, 15), (64, 48, 3, 3), {"padding": 1, "stride": 1, "with_residual": True}),  # 128 x 64
        ((1, 16, 20, 20), (16, 16, 3, 3), {"padding": 1, "with_residual": True}),  # 128 x 16
        ((3, 64, 8, 8), (24, 64, 3, 3), {"padding": 1, "stride": 2, "quant_min": 9}),  # 64 x 32
        ((1, 64, 4, 4), (64, 64, 3, 3), {"padding": 1, "with_residual": True}),  # 16 x 32, depth over warps
        ((1, 256, 3, 3), (17, 256, 1, 1), {"with_residual": True}),  # the same, odd columns
        ((1, 3, 21, 21), (16, 3, 3, 3), {"padding": 1}),  # few channels: 128 x 16
        ((1, 4, 21, 21), (48, 4, 5, 5), {"padding": 2, "with_residual": True}),  # 128 x 64
        ((1, 12, 6, 6), (20, 12, 3, 3), {"padding": 1}),  # 32 x 32
        ((2, 64, 9, 9), (64, 16, 3, 3), {"padding": 1, "groups": 4, "with_residual": True}),
        ((2, 40, 9, 9), (24, 20, 3, 3), {"padding": 1, "groups": 2}),
        ((1, 64, 12, 5), (64, 1, 3, 3), {"padding": 1, "groups": 64, "with_residual": True}),
        ((2, 33, 9, 9), (33, 1, 5, 5), {"padding": 2, "groups": 33, "stride": 2}),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("float_output", [False, True])
def test_every_tile(
    cuda_ops: CudaOps,
    input_shape: tuple[int, int, int, int],
    weight_shape: tuple[int, int, int, int],
    kwargs: dict[str, Any],
    memory_format: torch.memory_format,
    float_output: bool,
) -> None:
    (input, weight, *constants), kwargs = layer(input_shape, weight_shape, float_output=float_output, **kwargs)
    input, weight = input.contiguous(memory_format=memory_format), weight.contiguous(memory_format=memory_format)
    result = assert_same_bits(cuda_ops, (input, weight, *constants), kwargs)
    if not float_output:
        assert ((result == 0) | (result == 255)).float().mean().item() < 0.2, (
            "the case says little: outputs are clamped"
        )


@pytest.mark.parametrize("weight_code", [-128, 127])
@pytest.mark.parametrize("zero_point", [0, 255])
@pytest.mark.parametrize(("fan_in", "groups"), [(65793, 1), (65792, 1), (4099, 2), (9, 1)])
def test_extreme_sums(cuda_ops: CudaOps, weight_code: int, zero_point: int, fan_in: int, groups: int) -> None:
    input = torch.full((1, fan_in * groups, 1, 2), 255 - zero_point, dtype=torch.uint8)
    weight = torch.full((3 * groups, fan_in, 1, 1), weight_code, dtype=torch.int8)
    ones, zeros = torch.ones(3 * groups), torch.zeros(3 * groups)
    kwargs = {"input_zero_point": zero_point, "groups": groups, "float_output": True}
    output = assert_same_bits(cuda_ops, (input, weight, ones, zeros), kwargs)
    assert output.unique().tolist() == [torch.tensor((255 - 2 * zero_point) * weight_code * fan_in).float().item()]


@pytest.mark.parametrize("weight_code", [-128, 127])
def test_extreme_depthwise_sums(cuda_ops: CudaOps, weight_code: int) -> None:
    weight = torch.full((33, 1, 5, 5), weight_code, dtype=torch.int8)
    ones, zeros = torch.ones(33), torch.zeros(33)
    for code, zero_point in ((255, 0), (0, 255), (255, 255)):
        input = torch.full((1, 33, 7, 7), code, dtype=torch.uint8)
        kwargs = {"input_zero_point": zero_point, "groups": 33, "float_output": True}
        output = assert_same_bits(cuda_ops, (input, weight, ones, zeros), kwargs)
        assert output.unique().tolist() == [(code - zero_point) * weight_code * 25.0]


@pytest.mark.parametrize("multiplier", [3e38, -3e38, 1e-45, 0.0])
@pytest.mark.parametrize("groups", [1, 20])
def test_huge_and_tiny_multipliers_clamp(cuda_ops: CudaOps, multiplier: float, groups: int) -> None:
    (input, weight, _, bias), kwargs = layer((1, 20, 6, 6), (20, 20 // groups, 3, 3), groups=groups)
    assert_same_bits(cuda_ops, (input, weight, torch.full((20,), multiplier), bias), kwargs)


@pytest.mark.parametrize("offset", [0.0, -0.5, 0.5, 1.5, 254.5, 255.5])
def test_ties_round_to_even(cuda_ops: CudaOps, offset: float) -> None:
    input = torch.arange(0, 256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    weight = torch.ones(17, 1, 1, 1, dtype=torch.int8)
    args = (input, weight, torch.full((17,), 0.5), torch.full((17,), offset))
    assert_same_bits(cuda_ops, args, {"input_zero_point": 128})


def test_layouts_and_offsets(cuda_ops: CudaOps) -> None:
    for channels, groups in ((4, 1), (16, 1), (20, 1), (32, 2), (12, 12)):
        (input, weight, *constants), kwargs = layer(
            (2, channels, 6, 6), (2 * groups if groups < 12 else 12, channels // groups, 3, 3), groups=groups
        )
        # Neither begins at a multiple of 16 bytes.
        shifted = torch.cat([torch.zeros(3, dtype=torch.uint8), input.permute(0, 2, 3, 1).flatten()])[3:]
        nhwc = shifted.view(2, 6, 6, channels).permute(0, 3, 1, 2)
        part = torch.cat([weight, weight], dim=1)[:, weight.shape[1] :]
        expanded = input[:, :, :, :1].expand(-1, -1, -1, 6)
        cropped = torch.nn.functional.pad(input, (1, 2, 3, 1))[:, :, 3:-1, 1:-2]
        for view in (input.flip(3), input.transpose(2, 3), nhwc, expanded, cropped, nhwc[:1]):
            assert_same_bits(cuda_ops, (view, weight, *constants), kwargs)
            assert_same_bits(cuda_ops, (view, part, *constants), kwargs)


def test_strided_residual_and_constants(cuda_ops: CudaOps) -> None:
    (input, weight, multiplier, bias), kwargs = layer((2, 16, 6, 6), (16, 16, 3, 3), with_residual=True)
    residual = kwargs["residual"]
    multiplier, bias = torch.stack([multiplier, bias], dim=1).unbind(1)
    for other in (residual, residual.contiguous(memory_format=CHANNELS_LAST), residual.transpose(2, 3)):
        assert_same_bits(cuda_ops, (input, weight, multiplier, bias), {**kwargs, "residual": other})


def test_nothing_to_compute(cuda_ops: CudaOps) -> None:
    args, kwargs = layer((0, 16, 5, 5), (4, 16, 3, 3))
    assert assert_same_bits(cuda_ops, args, kwargs).shape == (0, 4, 3, 3)
    no_channels = (torch.empty(0, 16, 3, 3, dtype=torch.int8), torch.empty(0), torch.empty(0))
    args = (torch.zeros(2, 16, 5, 5, dtype=torch.uint8), *no_channels)
    assert assert_same_bits(cuda_ops, args, kwargs).shape == (2, 0, 3, 3)
    bias = torch.tensor([3.0, 250.5, 300.0])
    args = (torch.empty(2, 0, 4, 4, dtype=torch.uint8), torch.empty(3, 0, 3, 3, dtype=torch.int8), torch.ones(3), bias)
    assert assert_same_bits(cuda_ops, args, {"input_zero_point": 9})[0, :, 0, 0].tolist() == [3, 250, 255]


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(1, 4, 5, 5), "input must be Byte, got Float"),
        (1, torch.zeros(6, 3, 3, 3, dtype=torch.int8), "weight must have 4 input channels"),
        (2, torch.ones(5), r"multiplier must have shape \[6\], got \[5\]"),
        (3, torch.ones(6).double(), "bias must be Float, got Double"),
        (4, 256, r"input_zero_point must be in \[0, 255\], got 256"),
        (6, 256, "quant_max <= 255"),
        (7, [0, 1], "stride must be at least 1, got 0"),
        (11, torch.zeros(1, 6, 3, 4, dtype=torch.uint8), r"residual must have the output's shape \[1, 6, 3"),
        (12, float("inf"), "residual_multiplier must be finite"),
    ],
)
def test_bad_arguments_are_named(cuda_ops: CudaOps, index: int, value: object, message: str) -> None:
    input, weight = torch.zeros(1, 4, 5, 5, dtype=torch.uint8), torch.zeros(6, 4, 3, 3, dtype=torch.int8)
    arguments = list(raw_arguments((input, weight, torch.ones(6), torch.zeros(6)), {"input_zero_point": 0}))
    arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        cuda_ops.call("int8_conv2d", *arguments)
