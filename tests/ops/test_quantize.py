"""Errors of quantize and dequantize."""

from __future__ import annotations

import pytest
import torch

from pqk_ext.ops import dequantize, quantize

ONE = torch.tensor([1.0])
ZERO = torch.tensor([0], dtype=torch.int32)


def test_nan_has_no_code(isa: str) -> None:
    input = torch.zeros(3, 50)
    input[1, 7] = torch.nan
    input[2, 3] = torch.nan
    with pytest.raises(RuntimeError, match="input must not contain NaN, found one at flat index 57"):
        quantize(input, ONE, ZERO, quant_min=-127, quant_max=127)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(3, dtype=torch.float64)}, "input must be Float, got Double"),
        ({"scale": torch.tensor([0.0])}, "scale must be finite, positive and normal, got 0 at index 0"),
        ({"scale": torch.tensor([-1.0])}, "scale must be finite, positive and normal"),
        ({"scale": torch.tensor([torch.nan])}, "scale must be finite, positive and normal"),
        ({"scale": torch.ones(2)}, "without axis, scale must have 1 element, got 2"),
        ({"zero_point": torch.zeros(2, dtype=torch.int32)}, "zero_point must have as many elements as scale"),
        ({"zero_point": torch.zeros(1)}, "zero_point must be Int, got Float"),
        ({"quant_min": 5, "quant_max": 4}, "quant_min 5 and quant_max 4"),
        ({"quant_max": 300}, "expected -128 <= quant_min <= quant_max <= 127"),
        ({"axis": 1}, r"axis must be in \[-1, 0\]"),
        ({"axis": 0}, r"scale must have shape \[3\] for axis 0"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = {
        "input": torch.zeros(3),
        "scale": ONE,
        "zero_point": ZERO,
        "quant_min": -127,
        "quant_max": 127,
    }
    with pytest.raises(RuntimeError, match=message):
        quantize(**{**arguments, **change})


def test_dequantize_refuses_other_dtypes() -> None:
    with pytest.raises(RuntimeError, match="input must be int8 or uint8, got Int"):
        dequantize(torch.zeros(3, dtype=torch.int32), ONE, ZERO)
