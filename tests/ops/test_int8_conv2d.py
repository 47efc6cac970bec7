"""int8_conv2d against an exact reference over shapes, extremes and threads; its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pqk_ext.ops import int8_conv2d
from pqk_ext.ops._int8 import sample_constants
from pqk_ext.ops.int8_conv2d import int8_conv2d_reference

CHANNELS = [1, 2, 3, 4, 5, 16, 17, 33, 63, 64, 65]


def layer(
    input_shape: tuple[int, int, int, int], weight_shape: tuple[int, int, int, int], seed: int = 0, **kwargs: Any
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Random codes with constants that spread the output over all codes."""
    generator = torch.Generator().manual_seed(seed)
    input = torch.randint(0, 256, input_shape, generator=generator, dtype=torch.uint8)
    weight = torch.randint(-128, 128, weight_shape, generator=generator, dtype=torch.int8)
    kwargs.setdefault("input_zero_point", int(torch.randint(0, 256, (1,), generator=generator)))
    multiplier, bias = sample_constants(weight, kwargs["input_zero_point"], generator)
    if kwargs.pop("with_residual", False):
        shape = int8_conv2d_reference(input, weight, multiplier, bias, **kwargs).shape
        kwargs["residual"] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        kwargs |= {"residual_multiplier": 0.31, "residual_zero_point": 130}
    return (input, weight, multiplier, bias), kwargs


def assert_exact(args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    expected = int8_conv2d_reference(*args, **kwargs)
    actual = int8_conv2d(*args, **kwargs)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    return actual


@st.composite
def layers(draw: st.DrawFn) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    kernel = draw(st.tuples(st.integers(1, 10), st.integers(1, 10)) | st.sampled_from([(1, 1), (3, 3), (5, 5)]))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(*[st.integers(0, 3)] * 4))
    kind = draw(st.sampled_from(["dense", "dense", "depthwise", "grouped"]))
    if kind == "dense":
        groups, in_group, out_group = 1, draw(st.sampled_from(CHANNELS)), draw(st.sampled_from(CHANNELS))
    elif kind == "depthwise":
        groups, in_group, out_group = draw(st.sampled_from(CHANNELS)), 1, draw(st.sampled_from([1, 1, 2]))
    else:
        groups, in_group, out_group = draw(st.integers(2, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 20))
    size = [
        max(1, dilation[i] * (kernel[i] - 1) + 1 - padding[i] - padding[2 + i]) + draw(st.integers(0, 9))
        for i in range(2)
    ]
    quant_min = draw(st.sampled_from([0, 0, 17]))
    return layer(
        (draw(st.integers(1, 3)), groups * in_group, size[0], size[1]),
        (groups * out_group, in_group, *kernel),
        seed=draw(st.integers(0, 2**31)),
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding=padding,
        dilation=dilation,
        groups=groups,
        quant_min=quant_min,
        quant_max=draw(st.sampled_from([255, 255, 201, quant_min])),
        with_residual=draw(st.booleans()),
        float_output=draw(st.booleans()),
    )


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=layers())
def test_any_layer_is_exact(isa: str, case: tuple[tuple[torch.Tensor, ...], dict[str, Any]]) -> None:
    assert_exact(*case)


@pytest.mark.parametrize(
    ("input_shape", "weight_shape", "kwargs"),
    [
        ((1, 3, 32, 32), (16, 3, 3, 3), {"padding": 1}),
        ((1, 16, 32, 32), (16, 16, 3, 3), {"padding": 1, "with_residual": True}),
        ((1, 16, 32, 32), (32, 16, 3, 3), {"stride": 2, "padding": (0, 0, 1, 1)}),
        ((1, 64, 8, 8), (64, 64, 3, 3), {"padding": 1, "with_residual": True}),
        ((1, 1, 49, 10), (64, 1, 10, 4), {"stride": 2, "padding": (4, 1, 5, 1)}),
        ((1, 64, 25, 5), (64, 1, 3, 3), {"padding": 1, "groups": 64}),
        ((1, 96, 9, 9), (96, 1, 5, 5), {"padding": 2, "groups": 96, "stride": 2}),
        ((1, 64, 25, 5), (64, 64, 1, 1), {}),
        ((1, 256, 2, 2), (96, 256, 3, 3), {"padding": 1}),
        ((1, 3, 30, 30), (64, 3, 7, 7), {"padding": 3, "stride": 2}),
    ],
)
def test_layers_of_real_networks(
    isa: str,
    input_shape: tuple[int, int, int, int],
    weight_shape: tuple[int, int, int, int],
    kwargs: dict[str, Any],
) -> None:
    codes = assert_exact(*layer(input_shape, weight_shape, **kwargs))
    saturated = ((codes == 0) | (codes == 255)).float().mean().item()
    assert saturated < 0.2, "the case says little: most outputs are clamped"
    assert codes.unique().numel() > 100


@pytest.mark.parametrize("fan_in", [1, 2, 3, 4, 5, 63, 64, 65, 1024, 4096, 65793])
@pytest.mark.parametrize("weight_code", [-128, -127, 127])
@pytest.mark.parametrize("groups", [1, 2])
def test_extreme_sums_are_exact(isa: str, fan_in: int, weight_code: int, groups: int) -> None:
    # A path that adds pairs of products in 16 bits saturates here and nowhere else.
    input = torch.full((1, fan_in * groups, 1, 2), 255, dtype=torch.uint8)
    weight = torch.full((3 * groups, fan_in, 1, 1), weight_code, dtype=torch.int8)
    ones, zeros = torch.ones(3 * groups), torch.zeros(3 * groups)
    output = int8_conv2d(input, weight, ones, zeros, input_zero_point=0, groups=groups, float_output=True)
    assert output.unique().tolist() == [torch.tensor(255 * weight_code * fan_in).float().item()]


@pytest.mark.parametrize("weight_code", [-128, 127])
def test_extreme_depthwise_sums_are_exact(isa: str, weight_code: int) -> None:
    input = torch.full((1, 33, 7, 7), 255, dtype=torch.uint8)
    weight = torch.full((33, 1, 5, 5), weight_code, dtype=torch.int8)
    ones, zeros = torch.ones(33), torch.zeros(33)
    output = int8_conv2d(input, weight, ones, zeros, input_zero_point=0, groups=33, float_output=True)
    assert output.unique().tolist() == [255.0 * weight_code * 25]


@pytest.mark.parametrize("multiplier", [3e38, -3e38, 1e-45, 0.0, 1e10])
def test_huge_and_tiny_multipliers_clamp(isa: str, multiplier: float) -> None:
    (input, weight, _, bias), kwargs = layer((1, 8, 6, 6), (20, 8, 3, 3))
    assert_exact((input, weight, torch.full((20,), multiplier), bias), kwargs)


@pytest.mark.parametrize("offset", [0.0, -0.5, 0.5, 1.5, 254.5, 255.5])
def test_ties_round_to_even(isa: str, offset: float) -> None:
    input = torch.arange(0, 256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    weight = torch.ones(17, 1, 1, 1, dtype=torch.int8)
    args = (input, weight, torch.full((17,), 0.5), torch.full((17,), offset))
    assert_exact(args, {"input_zero_point": 128})


@pytest.mark.parametrize("images", [1, 2, 3, 5])
def test_same_bits_for_any_thread_count(isa: str, images: int) -> None:
    args, kwargs = layer((images, 32, 40, 20), (48, 32, 3, 3), padding=1, with_residual=True)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(assert_exact(args, kwargs))
        assert all(torch.equal(result, results[0]) for result in results)
    finally:
        torch.set_num_threads(threads)


def test_output_is_channels_last_and_input_unchanged() -> None:
    args, kwargs = layer((2, 3, 6, 5), (7, 3, 3, 3), padding=1)
    copies = [argument.clone() for argument in args]
    output = int8_conv2d(*args, **kwargs)
    assert output.shape == (2, 7, 6, 5)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(copy, argument) for copy, argument in zip(copies, args, strict=True))


def test_expanded_and_flipped_inputs() -> None:
    (input, *constants), kwargs = layer((1, 1, 6, 6), (8, 4, 3, 3))
    assert_exact((input.expand(2, 4, 6, 6), *constants), kwargs)
    (input, weight, multiplier, bias), kwargs = layer((2, 4, 6, 6), (8, 4, 3, 3), with_residual=True)
    kwargs["residual"] = kwargs["residual"].transpose(2, 3).contiguous().transpose(2, 3)
    strided = torch.stack([multiplier, bias], dim=1)
    assert_exact((input.flip(3), weight.transpose(0, 1).contiguous().transpose(0, 1), *strided.unbind(1)), kwargs)


def test_no_input_channels_gives_the_bias(isa: str) -> None:
    bias = torch.tensor([3.0, 250.5, 300.0])
    args = (torch.empty(2, 0, 4, 4, dtype=torch.uint8), torch.empty(3, 0, 3, 3, dtype=torch.int8), torch.ones(3), bias)
    output = int8_conv2d(*args, input_zero_point=9)
    assert torch.equal(output, torch.tensor([3, 250, 255], dtype=torch.uint8)[:, None, None].expand(2, 3, 2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(1, 4, 5, 5)}, "input must be Byte, got Float"),
        ({"input": torch.zeros(4, 5, 5, dtype=torch.uint8)}, r"input must have 4 dimensions .* got \[4, 5, 5\]"),
        ({"input": torch.zeros(1, 4, 2, 5, dtype=torch.uint8)}, "input height 2 plus padding 0 is smaller than"),
        ({"input": torch.zeros(1, 4, 5, 0, dtype=torch.uint8)}, "input width 0 plus padding 0 is smaller than"),
        ({"weight": torch.zeros(6, 4, 3, 3, dtype=torch.uint8)}, "weight must be Char, got Byte"),
        ({"weight": torch.zeros(6, 3, 3, 3, dtype=torch.int8)}, "weight must have 4 input channels"),
        ({"weight": torch.zeros(6, 4, 0, 3, dtype=torch.int8)}, "weight must have a kernel"),
        ({"weight": torch.zeros(6, 4, dtype=torch.int8)}, "weight must have 4 dimensions"),
        ({"weight": torch.zeros(6, 4, 129, 128, dtype=torch.int8)}, "weight must have at most 65793 elements"),
        ({"multiplier": torch.ones(5)}, r"multiplier must have shape \[6\], got \[5\]"),
        ({"multiplier": torch.tensor([1, 1, torch.nan, 1, 1, 1])}, "multiplier must be finite, got nan at index 2"),
        ({"bias": torch.ones(6).double()}, "bias must be Float, got Double"),
        ({"bias": torch.full((6,), -torch.inf)}, "bias must be finite, got -inf at index 0"),
        ({"input_zero_point": 256}, r"input_zero_point must be in \[0, 255\], got 256"),
        ({"quant_min": 9, "quant_max": 8}, "quant_min 9 and quant_max 8"),
        ({"quant_max": 256}, "quant_max <= 255"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"stride": (1, 2, 3)}, "stride must have 2 elements, got 3"),
        ({"padding": (1, -1)}, "padding must be at least 0, got -1"),
        ({"padding": (1, 1, 1)}, "padding must have 4 elements, got 3"),
        ({"dilation": 0}, "dilation must be at least 1, got 0"),
        ({"groups": 3}, "groups must divide the 4 input and 6 output channels, got 3"),
        ({"groups": 0}, "groups must divide"),
        ({"residual": torch.zeros(1, 6, 3, 4, dtype=torch.uint8)}, r"residual must have the output's shape \[1, 6, 3"),
        ({"residual": torch.zeros(1, 6, 3, 3)}, "residual must be Byte, got Float"),
        ({"residual_multiplier": float("inf")}, "residual_multiplier must be finite"),
        ({"residual_zero_point": -1}, r"residual_zero_point must be in \[0, 255\], got -1"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, Any] = {
        "input": torch.zeros(1, 4, 5, 5, dtype=torch.uint8),
        "weight": torch.zeros(6, 4, 3, 3, dtype=torch.int8),
        "multiplier": torch.ones(6),
        "bias": torch.zeros(6),
        "input_zero_point": 0,
    }
    with pytest.raises(RuntimeError, match=message):
        int8_conv2d(**{**arguments, **change})
