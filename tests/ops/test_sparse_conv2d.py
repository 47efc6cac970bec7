"""Gradients, random shapes and refused arguments of sparse_conv2d and int8_sparse_conv2d."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqk_ext import _core
from pqk_ext.ops import int8_sparse_conv2d, sparse_conv2d
from pqk_ext.ops._sparse import sample_matrix
from pqk_ext.ops._spec import SPECS


@pytest.mark.parametrize(
    "convolution",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (2, 3), "padding": (0, 1, 2, 3), "stride": (2, 1), "dilation": (1, 2), "groups": 2},
    ],
)
def test_gradients(convolution: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    columns = 4 // convolution.get("groups", 1) * (9 if convolution["kernel_size"] == 3 else 6)
    crow, col, values = sample_matrix(6, columns, 0.7, torch.float64, generator)
    input = torch.randn(2, 4, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    values.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *leaves: sparse_conv2d(leaves[0], crow, col, leaves[1], leaves[2], **convolution),
        (input, values, bias),
    )


def same_bits_on_every_isa(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    results = []
    for isa in _core.supported_isas():
        _core.force_isa(isa)
        results.append(function(*args, **kwargs))
    _core.force_isa("")
    assert all(torch.equal(result, results[0]) for result in results)
    return results[0]


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = [draw(st.integers(1, 5)), draw(st.integers(1, 4))]
    dilation = [draw(st.integers(1, 3)), draw(st.integers(1, 3))]
    padding = [draw(st.integers(0, 4)) for _ in range(4)]
    size = [
        max(1, dilation[i] * (kernel[i] - 1) + 1 - padding[i] - padding[i + 2]) + draw(st.integers(0, 20))
        for i in range(2)
    ]
    return {
        "shape": (draw(st.integers(1, 5)), groups * draw(st.integers(1, 9)), *size),
        "out_channels": groups * draw(st.integers(1, 11)),
        "sparsity": draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        "channels_last": draw(st.booleans()),
        "convolution": {
            "kernel_size": kernel,
            "stride": [draw(st.integers(1, 4)), draw(st.integers(1, 4))],
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
        },
    }


@given(convolutions(), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_random_shapes(case: dict[str, Any], zero_point: int) -> None:
    generator = torch.Generator().manual_seed(zero_point)
    shape, out_channels, convolution = case["shape"], case["out_channels"], case["convolution"]
    columns = shape[1] // convolution["groups"] * convolution["kernel_size"][0] * convolution["kernel_size"][1]
    layout = torch.channels_last if case["channels_last"] else torch.contiguous_format

    input = torch.randn(shape, generator=generator).to(memory_format=layout)
    args = (input, *sample_matrix(out_channels, columns, case["sparsity"], torch.float32, generator))
    actual = same_bits_on_every_isa(sparse_conv2d, args, convolution)
    torch.testing.assert_close(actual, SPECS["sparse_conv2d"].reference(*args, **convolution), rtol=1e-4, atol=1e-4)

    codes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(memory_format=layout)
    csr = sample_matrix(out_channels, columns, case["sparsity"], torch.int8, generator)
    multiplier, bias = torch.rand(out_channels, generator=generator) * 2e-3, torch.full((out_channels,), 120.0)
    for float_output in (False, True):
        keywords = {"input_zero_point": zero_point, "float_output": float_output, **convolution}
        arguments = (codes, *csr, multiplier, bias)
        integers = same_bits_on_every_isa(int8_sparse_conv2d, arguments, keywords)
        assert torch.equal(integers, SPECS["int8_sparse_conv2d"].reference(*arguments, **keywords))


def test_no_output_channels() -> None:
    csr = (torch.zeros(1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0))
    assert sparse_conv2d(torch.ones(2, 3, 5, 5), *csr, kernel_size=3).shape == (2, 0, 3, 3)


def arguments(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    crow, col, values = sample_matrix(4, 9, 0.5, dtype, torch.Generator().manual_seed(0))
    input = torch.zeros(1, 2, 5, 5, dtype=torch.uint8 if dtype == torch.int8 else dtype)
    common = {"input": input, "crow_indices": crow, "col_indices": col, "values": values}
    return {**common, "kernel_size": 3, "groups": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(2, 5, 5)}, r"input must have shape \[N, C, H, W\], got \[2, 5, 5\]"),
        ({"kernel_size": 0}, "kernel_size must be in .*, got 0"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size must have 2 elements, got 3"),
        ({"kernel_size": 7}, "kernel_size with dilation covers 7 x 7 pixels, more than the padded input's 5 x 5"),
        ({"dilation": 3}, "kernel_size with dilation covers 7 x 7 pixels"),
        ({"stride": 0}, "stride must be in .*, got 0"),
        ({"dilation": 0}, "dilation must be in .*, got 0"),
        ({"padding": -1}, "padding must be in .*, got -1"),
        ({"padding": (1, 1, 1)}, "padding must have 4 elements, got 3"),
        ({"groups": 0}, "groups must be positive and divide 2 input and 4 output channels, got 0"),
        ({"groups": 3}, "groups must be positive and divide 2 input and 4 output channels, got 3"),
        ({"kernel_size": 2}, r"\[E_CSR_(NNZ|INDEX)\]"),
        ({"crow_indices": torch.zeros(5, dtype=torch.int32)}, r"crow_indices: expected .* \[E_CSR_INDPTR\]"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_bad_arguments_are_named(change: dict[str, Any], message: str, dtype: torch.dtype) -> None:
    function, keywords = sparse_conv2d, {**arguments(dtype), **change}
    if dtype == torch.int8:
        function = int8_sparse_conv2d
        keywords |= {"multiplier": torch.ones(4), "bias": torch.ones(4), "input_zero_point": 0}
    with pytest.raises(RuntimeError, match=message):
        function(**keywords)
