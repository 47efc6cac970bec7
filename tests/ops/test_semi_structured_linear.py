"""2:4 weights: their format against its description and torch's, the linear layer against the dense one; errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from pqk_ext.ops import int8_linear, int8_semi_structured_linear, semi_structured_compress
from pqk_ext.ops._int8 import sample_constants
from pqk_ext.ops.semi_structured_linear import compress_in_torch, expanded, sample_weight
from pqk_ext.prune import compute_masks


def layer(
    shape: tuple[int, ...], out_features: int, seed: int = 0, **kwargs: Any
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Random codes, a dense 2:4 weight and constants that spread the output over all codes."""
    generator = torch.Generator().manual_seed(seed)
    input = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    weight = sample_weight(out_features, shape[-1], generator)
    kwargs.setdefault("input_zero_point", int(torch.randint(0, 256, (1,), generator=generator)))
    if kwargs.pop("with_residual", False):
        kwargs["residual"] = torch.randint(0, 256, (*shape[:-1], out_features), generator=generator, dtype=torch.uint8)
        kwargs |= {"residual_multiplier": 0.31, "residual_zero_point": 130}
    return (input, weight, *sample_constants(weight, kwargs["input_zero_point"], generator)), kwargs


def compressed(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    input, weight, *constants = args
    return (input, *semi_structured_compress(weight), *constants)


def assert_exact(args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Tensor:
    """Equal to the dense layer in int64 and to :func:`int8_linear`."""
    actual = int8_semi_structured_linear(*compressed(args), **kwargs)
    torch.testing.assert_close(actual, int8_linear(*args, **kwargs), rtol=0, atol=0)
    input, weight, multiplier, bias = args
    if "residual" not in kwargs and kwargs.get("float_output"):
        sums = (input.long() - kwargs["input_zero_point"]) @ weight.long().T
        assert torch.equal(actual, sums.float() * multiplier + bias)
    return actual


def test_the_format_is_as_described() -> None:
    weight = torch.tensor(
        [
            [7, 0, 0, -3, 0, 5, 6, 0, 0, 0, 0, 9],
            [0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0],
        ],
        dtype=torch.int8,
    )
    values, indices = semi_structured_compress(weight)
    assert values.tolist() == [[7, -3, 5, 6, 0, 9], [0, 0, 1, 0, 0, 2]]
    assert indices.tolist() == [
        [0 | 3 << 2 | (1 | 2 << 2) << 4, 0 | 3 << 2],
        [0 | 1 << 2 | (0 | 1 << 2) << 4, 0 | 1 << 2],
    ]


def test_words_of_indices_are_the_metadata_of_tensor_cores() -> None:
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(16, 16, 4, generator=generator).argsort(-1)
    weight = torch.where(order < 2, torch.randint(1, 128, (16, 16, 4), generator=generator), 0)
    dense = weight.flatten(1).to(torch.int8)
    values, indices = semi_structured_compress(dense)
    theirs, metadata = sparse_semi_structured_from_dense_cutlass(dense)
    assert torch.equal(values, theirs)
    # The word of each lane, as core/cuda/mma.h says where it comes from.
    words = indices.view(torch.int32)
    lanes = [words[lane // 4 + 8 * (lane % 2), lane % 4 // 2].item() for lane in range(32)]
    assert lanes == metadata.flatten().tolist()


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 30), groups=st.integers(0, 40), seed=st.integers(0, 2**31))
def test_compressing_loses_nothing(rows: int, groups: int, seed: int) -> None:
    weight = sample_weight(rows, 4 * groups, torch.Generator().manual_seed(seed))
    values, indices = semi_structured_compress(weight)
    assert torch.equal(expanded(values, indices), weight)
    assert all(map(torch.equal, (values, indices), compress_in_torch(weight)))


def test_what_pruning_leaves_is_compressed() -> None:
    weight = torch.randn(20, 48, generator=torch.Generator().manual_seed(3))
    (mask,) = compute_masks([weight], sparsity=0.5, granularity="2:4")
    codes = (weight * mask * 40).round().clamp(-127, 127).to(torch.int8)
    assert torch.equal(expanded(*semi_structured_compress(codes)), codes)


def test_layouts_of_the_weight() -> None:
    weight = sample_weight(6, 24, torch.Generator().manual_seed(2))
    values, indices = semi_structured_compress(weight)
    for view in (weight.T.contiguous().T, torch.cat([weight, weight], dim=1)[:, 24:], weight.repeat(2, 1)[6:]):
        assert all(map(torch.equal, semi_structured_compress(view), (values, indices)))
    args, kwargs = layer((5, 24), 6)
    codes = int8_semi_structured_linear(*compressed(args), **kwargs)
    input, values, indices, *constants = compressed(args)
    wide = torch.cat([indices, indices], dim=1)
    for kept, places in ((values.T.contiguous().T, indices), (values, wide[:, 3:]), (values, indices.T.clone().T)):
        assert torch.equal(int8_semi_structured_linear(input, kept, places, *constants, **kwargs), codes)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 70),
    groups=st.integers(1, 40) | st.sampled_from([64, 127, 128, 255, 260]),
    out_features=st.integers(1, 130),
    with_residual=st.booleans(),
    float_output=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_layer_is_exact(isa: str, rows: int, groups: int, out_features: int, seed: int, **kwargs: bool) -> None:
    assert_exact(*layer((rows, 4 * groups), out_features, seed, **kwargs))


def test_outputs_are_spread(isa: str) -> None:
    for rows in (20, 64):
        codes = assert_exact(*layer((rows, 300), 100))
        assert ((codes == 0) | (codes == 255)).float().mean().item() < 0.2
        assert codes.unique().numel() > 200


@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("in_features", [4, 8, 4096, 131584])
@pytest.mark.parametrize("weight_code", [-128, 127])
def test_extreme_sums_are_exact(isa: str, rows: int, in_features: int, weight_code: int) -> None:
    weight = torch.tensor([weight_code, 0, 0, weight_code], dtype=torch.int8).repeat(3, in_features // 4)
    for code, zero_point in ((255, 0), (0, 255), (255, 255)):
        input = torch.full((rows, in_features), code, dtype=torch.uint8)
        arguments = (input, *semi_structured_compress(weight), torch.ones(3), torch.zeros(3))
        output = int8_semi_structured_linear(*arguments, input_zero_point=zero_point, float_output=True)
        exact = torch.tensor((code - zero_point) * weight_code * in_features // 2).float()
        assert output.unique().tolist() == [exact.item()]


@pytest.mark.parametrize("rows", [7, 301])
def test_same_bits_for_any_thread_count(isa: str, rows: int) -> None:
    args, kwargs = layer((rows, 256), 200, with_residual=True)
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
    for rows in (5, 50):
        assert assert_exact(*layer((rows, 0), 3)).shape == (rows, 3)
        assert assert_exact(*layer((rows, 8), 0)).shape == (rows, 0)


WEIGHT = torch.tensor([[0, 1, 0, 2] * 3] * 70, dtype=torch.int8)


@pytest.mark.parametrize("compress", [semi_structured_compress, compress_in_torch])
def test_weights_that_are_not_2_4_are_named(compress: Any) -> None:
    wrong = WEIGHT.clone()
    wrong[64, 4], wrong[68, 0] = 3, 3
    with pytest.raises(RuntimeError, match=r"at most 2 non-zeros .* got more in row 64, columns 4 to 7"):
        compress(wrong)
    for weight, message in (
        (WEIGHT.float(), "weight must be Char, got"),
        (WEIGHT[:, :10], r"weight must have shape \[O, I\], I a multiple of 4, got \[70, 10\]"),
        (WEIGHT[0], r"weight must have shape \[O, I\], I a multiple of 4, got \[12\]"),
    ):
        with pytest.raises(RuntimeError, match=f"pqk::semi_structured_compress: {message}"):
            compress(weight)


def unordered(row: int, byte: int, value: int) -> Tensor:
    indices = semi_structured_compress(WEIGHT)[1].clone()
    indices[row, byte] = value
    return indices


def bad_arguments() -> list[tuple[str, object, str]]:
    """Which argument, what it is instead, and the message."""
    codes = torch.zeros(2, 8, dtype=torch.uint8)
    return [
        ("input", torch.zeros(2, 12), "input must be Byte, got Float"),
        ("input", torch.tensor(1, dtype=torch.uint8), "input must have at least 1 dimension"),
        ("input", codes[:, :6], "input must have a multiple of 4 features, got 6"),
        ("input", codes, r"values must have shape \[O, 4\], got \[70, 6\]"),
        ("values", torch.zeros(70, 6), "values must be Char, got Float"),
        ("indices", torch.zeros(70, 2), "indices must be Byte, got Float"),
        ("indices", torch.zeros(70, 3, dtype=torch.uint8), r"indices must have shape \[70, 2\], got \[70, 3\]"),
        ("multiplier", torch.ones(69), r"multiplier must have shape \[70\], got \[69\]"),
        ("input_zero_point", -1, r"input_zero_point must be in \[0, 255\], got -1"),
        ("quant_max", 256, "0 <= quant_min"),
        ("residual", codes, r"residual must have the output's shape \[2, 70\], got \[2, 8\]"),
        ("residual_multiplier", float("nan"), "residual_multiplier must be finite"),
        ("residual_zero_point", 300, "residual_zero_point must be in"),
    ]


def arguments() -> dict[str, Any]:
    values, indices = semi_structured_compress(WEIGHT)
    constants = {"multiplier": torch.ones(70), "bias": torch.zeros(70), "input_zero_point": 0}
    return {"input": torch.zeros(2, 12, dtype=torch.uint8), "values": values, "indices": indices, **constants}


@pytest.mark.parametrize(("name", "value", "message"), bad_arguments())
def test_bad_arguments_are_named(name: str, value: object, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"pqk::int8_semi_structured_linear: .*{message}"):
        int8_semi_structured_linear(**{**arguments(), name: value})


@pytest.mark.parametrize(("row", "byte", "value", "group"), [(69, 1, 0x05, 2), (3, 0, 0x1D, 1), (1, 0, 0xDF, 0)])
def test_indices_out_of_order_are_named(isa: str, row: int, byte: int, value: int, group: int) -> None:
    indices = unordered(row, byte, value)
    with pytest.raises(RuntimeError, match=rf"indices must rise .* in row {row}, group {group}$"):
        int8_semi_structured_linear(**{**arguments(), "indices": indices})
    indices[0, 0] = 0x44 ^ 0x02  # and the first is what is named
    with pytest.raises(RuntimeError, match=r"row 0, group 0$"):
        int8_semi_structured_linear(**{**arguments(), "indices": indices})


def test_non_finite_constants_are_named() -> None:
    with pytest.raises(RuntimeError, match="bias must be finite, got inf at index 0"):
        int8_semi_structured_linear(**{**arguments(), "bias": torch.full((70,), torch.inf)})


def test_too_many_values_are_refused() -> None:
    changed = {"input": torch.zeros(1, 131588, dtype=torch.uint8), "values": torch.zeros(70, 65794, dtype=torch.int8)}
    changed["indices"] = torch.zeros(70, 16449, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="must have at most 65793 elements"):
        int8_semi_structured_linear(**{**arguments(), **changed})
