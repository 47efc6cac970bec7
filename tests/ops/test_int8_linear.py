"""int8_linear against an exact reference over shapes, extremes and threads; its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pqk_ext.ops import int8_linear
from pqk_ext.ops._int8 import sample_constants
from pqk_ext.ops.int8_linear import int8_linear_reference


def layer(
    shape: tuple[int, ...], out_features: int, seed: int = 0, **kwargs: Any
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Random codes with constants that spread the output over all codes."""
    generator = torch.Generator().manual_seed(seed)
    input = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (out_features, shape[-1]), generator=generator, dtype=torch.int8)
    kwargs.setdefault("input_zero_point", int(torch.randint(0, 256, (1,), generator=generator)))
    if kwargs.pop("with_residual", False):
        kwargs["residual"] = torch.randint(0, 256, (*shape[:-1], out_features), generator=generator, dtype=torch.uint8)
        kwargs |= {"residual_multiplier": 0.31, "residual_zero_point": 130}
    return (input, weight, *sample_constants(weight, kwargs["input_zero_point"], generator)), kwargs


def assert_exact(args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    actual = int8_linear(*args, **kwargs)
    torch.testing.assert_close(actual, int8_linear_reference(*args, **kwargs), rtol=0, atol=0)
    return actual


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    in_features=st.integers(1, 70) | st.sampled_from([127, 128, 512, 1023]),
    out_features=st.integers(1, 130),
    with_residual=st.booleans(),
    float_output=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_layer_is_exact(
    isa: str, rows: int, in_features: int, out_features: int, seed: int, **kwargs: bool
) -> None:
    assert_exact(*layer((rows, in_features), out_features, seed, **kwargs))


def test_outputs_are_spread(isa: str) -> None:
    codes = assert_exact(*layer((64, 300), 100))
    assert ((codes == 0) | (codes == 255)).float().mean().item() < 0.2
    assert codes.unique().numel() > 200


@pytest.mark.parametrize("in_features", [1, 2, 3, 4, 5, 4095, 4096, 65793])
@pytest.mark.parametrize("weight_code", [-128, 127])
def test_extreme_sums_are_exact(isa: str, in_features: int, weight_code: int) -> None:
    input = torch.full((2, in_features), 255, dtype=torch.uint8)
    weight = torch.full((5, in_features), weight_code, dtype=torch.int8)
    output = int8_linear(input, weight, torch.ones(5), torch.zeros(5), input_zero_point=0, float_output=True)
    assert output.unique().tolist() == [torch.tensor(255 * weight_code * in_features).float().item()]


def test_same_bits_for_any_thread_count(isa: str) -> None:
    args, kwargs = layer((301, 256), 90, with_residual=True)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert_exact(args, kwargs)
    finally:
        torch.set_num_threads(threads)


def test_leading_dimensions_are_kept() -> None:
    assert assert_exact(*layer((12,), 7)).shape == (7,)
    assert assert_exact(*layer((2, 3, 4, 12), 7, with_residual=True)).shape == (2, 3, 4, 7)
    assert int8_linear(*layer((5, 0), 3)[0], input_zero_point=0).shape == (5, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(2, 4)}, "input must be Byte, got Float"),
        ({"input": torch.tensor(1, dtype=torch.uint8)}, "input must have at least 1 dimension"),
        ({"input": torch.zeros(2, 5, dtype=torch.uint8)}, r"weight must have shape \[O, 5\], got \[6, 4\]"),
        ({"weight": torch.zeros(6, 4)}, "weight must be Char, got Float"),
        (
            {
                "input": torch.zeros(1, 65794, dtype=torch.uint8),
                "weight": torch.zeros(6, 65794, dtype=torch.int8),
            },
            "weight must have at most 65793 elements",
        ),
        ({"multiplier": torch.ones(6, 1)}, r"multiplier must have shape \[6\], got \[6, 1\]"),
        ({"bias": torch.full((6,), torch.inf)}, "bias must be finite, got inf at index 0"),
        ({"input_zero_point": -1}, r"input_zero_point must be in \[0, 255\], got -1"),
        ({"quant_min": -1}, "0 <= quant_min"),
        ({"residual": torch.zeros(2, 5, dtype=torch.uint8)}, r"residual must have the output's shape \[2, 6\]"),
        ({"residual_multiplier": float("nan")}, "residual_multiplier must be finite"),
        ({"residual_zero_point": 300}, "residual_zero_point must be in"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, Any] = {
        "input": torch.zeros(2, 4, dtype=torch.uint8),
        "weight": torch.zeros(6, 4, dtype=torch.int8),
        "multiplier": torch.ones(6),
        "bias": torch.zeros(6),
        "input_zero_point": 0,
    }
    with pytest.raises(RuntimeError, match=message):
        int8_linear(**{**arguments, **change})
