"""Gradients, masks, extremes, layouts and errors of fake_quantize."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pqk_ext import _core
from pqk_ext.ops import fake_quantize
from pqk_ext.ops.fake_quantize import fake_quantize_reference

INT8 = {"quant_min": -127, "quant_max": 127}
SHAPES_AND_AXES = [
    ((4096 * 3 + 5,), None),
    ((5, 4099), 0),
    ((64, 3, 3, 3), 0),
    ((300, 2, 3, 3), 0),
    ((3, 20, 17, 5), 1),
    ((513, 40), 1),
    ((2, 1100), -1),
    ((1, 3), 0),
    ((7, 0, 2), 0),
]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameters(input: Tensor, axis: int | None, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    channels = 1 if axis is None else input.shape[axis]
    return randn(channels, seed=1, dtype=dtype).abs() * 0.02 + 0.005, randn(channels, seed=2, dtype=dtype) * 5


class _Round(torch.autograd.Function):
    """Rounds half to even with gradient 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def composite(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The definition written with autograd's own operators, in the dtype of the arguments."""
    shape = [1] * input.dim()
    if axis is not None:
        shape[axis] = -1
    scale = scale.reshape(shape)
    zero_point = zero_point.to(scale.dtype).reshape(shape)
    codes = _Round.apply(input / scale) + _Round.apply(zero_point)
    values = (codes.clamp(quant_min, quant_max) - _Round.apply(zero_point)) * scale
    return values if mask is None else torch.where(mask, values, 0.0)


def gradients(function: Any, grad_output: Tensor, *tensors: Tensor, **kwargs: Any) -> list[Tensor | None]:
    leaves = [t.detach().clone() for t in tensors]
    for leaf in leaves:
        leaf.requires_grad_(leaf.is_floating_point())
    function(*leaves, **kwargs).backward(grad_output)
    return [leaf.grad for leaf in leaves]


def away_from_ties(input: Tensor, scale: Tensor, axis: int | None) -> Tensor:
    """Moves values whose code could differ between float32 and float64 to the middle of their cell."""
    shape = [1] * input.dim()
    if axis is not None:
        shape[axis] = -1
    codes = input / scale.reshape(shape)
    near = (codes - codes.floor() - 0.5).abs() < 1e-3
    return torch.where(near, codes.round() * scale.reshape(shape), input)


@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
@pytest.mark.parametrize("with_mask", [False, True])
def test_gradients_equal_the_composite_in_float64(
    shape: tuple[int, ...], axis: int | None, with_mask: bool, isa: str
) -> None:
    input = randn(*shape)
    scale, zero_point = parameters(input, axis)
    input = away_from_ties(input, scale, axis)
    grad_output = randn(*shape, seed=3)
    kwargs: dict[str, Any] = {"axis": axis, "mask": randn(*shape, seed=4) > 0 if with_mask else None, **INT8}
    actual = gradients(fake_quantize, grad_output, input, scale, zero_point, **kwargs)
    wide = [t.double() for t in (grad_output, input, scale, zero_point)]
    expected = gradients(composite, *wide, **kwargs)
    assert torch.equal(actual[0], expected[0].float())
    magnitude = max(1.0, input.numel() ** 0.5)
    torch.testing.assert_close(actual[1].double(), expected[1], rtol=2e-5, atol=2e-4 * magnitude)
    torch.testing.assert_close(actual[2].double(), expected[2], rtol=2e-5, atol=2e-6 * magnitude)


@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
def test_float64_gradients(shape: tuple[int, ...], axis: int | None) -> None:
    input = randn(*shape, dtype=torch.float64)
    scale, zero_point = parameters(input, axis, torch.float64)
    grad_output = randn(*shape, seed=3, dtype=torch.float64)
    arguments = (grad_output, away_from_ties(input, scale, axis), scale, zero_point)
    actual = gradients(fake_quantize, *arguments, axis=axis, **INT8)
    expected = gradients(composite, *arguments, axis=axis, **INT8)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-9)


def test_bfloat16_is_the_float32_result_rounded(isa: str) -> None:
    input, grad_output = randn(37, 131).bfloat16(), randn(37, 131, seed=3).bfloat16()
    input[0, 0] = torch.nan
    scale, zero_point = parameters(input, 0)
    narrow = gradients(fake_quantize, grad_output, input, scale, zero_point, axis=0, **INT8)
    wide = gradients(fake_quantize, grad_output.float(), input.float(), scale, zero_point, axis=0, **INT8)
    assert narrow[0].dtype == torch.bfloat16
    assert torch.equal(narrow[0], wide[0].bfloat16())
    assert torch.equal(narrow[1], wide[1])
    assert torch.equal(narrow[2], wide[2])


@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
def test_same_bits_on_every_instruction_set_and_thread_count(shape: tuple[int, ...], axis: int | None) -> None:
    input, grad_output = randn(*shape), randn(*shape, seed=3)
    scale, zero_point = parameters(input, axis)
    mask = randn(*shape, seed=4) > -1
    seen = []
    threads = torch.get_num_threads()
    try:
        for isa, count in itertools.product(_core.supported_isas(), (1, 2, 3)):
            _core.force_isa(isa)
            torch.set_num_threads(count)
            output = fake_quantize(input, scale, zero_point, axis=axis, mask=mask, **INT8)
            seen += [
                (output, *gradients(fake_quantize, grad_output, input, scale, zero_point, axis=axis, mask=mask, **INT8))
            ]
    finally:
        _core.force_isa("")
        torch.set_num_threads(threads)
    for other in seen[1:]:
        for first, tensor in zip(seen[0], other, strict=True):
            assert torch.equal(first.view(torch.int32), tensor.view(torch.int32))


def test_equals_torch_on_ordinary_data(isa: str) -> None:
    input = randn(64, 32, 3, 3)
    scale, zero_point = torch.tensor([0.02]), torch.tensor([3], dtype=torch.int32)
    ours = fake_quantize(input, scale, zero_point, quant_min=-128, quant_max=127)
    assert torch.equal(ours, torch.fake_quantize_per_tensor_affine(input, 0.02, 3, -128, 127))
    for axis in range(4):
        scale, zero_point = parameters(input, axis)
        zero_point = zero_point.int()
        ours = fake_quantize(input, scale, zero_point, axis=axis, **INT8)
        assert torch.equal(ours, torch.fake_quantize_per_channel_affine(input, scale, zero_point, axis, -127, 127))


@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
@pytest.mark.parametrize("with_mask", [False, True])
def test_straight_through_alone_gives_the_same_input_gradient(
    shape: tuple[int, ...], axis: int | None, with_mask: bool, isa: str
) -> None:
    input, grad_output = randn(*shape), randn(*shape, seed=3)
    scale, zero_point = parameters(input, axis)
    kwargs: dict[str, Any] = {"axis": axis, "mask": randn(*shape, seed=4) > 0 if with_mask else None, **INT8}
    full = gradients(fake_quantize, grad_output, input, scale, zero_point, **kwargs)[0]
    leaf = input.clone().requires_grad_()
    fake_quantize(leaf, scale, zero_point, **kwargs).backward(grad_output)
    assert torch.equal(leaf.grad, full)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_straight_through_dtypes(dtype: torch.dtype, isa: str) -> None:
    leaf = randn(1003).mul(3).to(dtype).requires_grad_()
    grad_output = randn(1003, seed=3).to(dtype)
    grad_output[5] = torch.nan
    scale = torch.tensor([0.02], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    fake_quantize(leaf, scale, torch.tensor([0], dtype=torch.int32), **INT8).backward(grad_output)
    in_range = (leaf.detach().to(scale.dtype) * (1 / scale)).round().abs() <= 127
    expected = torch.where(in_range, grad_output, torch.zeros((), dtype=dtype))
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=0, equal_nan=True)


def test_what_is_saved_for_backward() -> None:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    input, scale = randn(1000).requires_grad_(), torch.tensor([0.1])
    zero_point = torch.tensor([0], dtype=torch.int32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fake_quantize(input, scale, zero_point, **INT8)
        assert [(t.dtype, t.numel()) for t in saved] == [(torch.uint8, 125)]
        saved.clear()
        with torch.no_grad():
            fake_quantize(input, scale, zero_point, **INT8)
        fake_quantize(input.detach(), scale, zero_point, **INT8)
        assert not saved
        fake_quantize(input, scale.requires_grad_(), zero_point, **INT8)
        assert [t.data_ptr() for t in saved] == [t.data_ptr() for t in (input, scale, zero_point)]


def test_mask_gives_exact_zero_whatever_the_zero_point(isa: str) -> None:
    input = randn(3, 50)
    input[0, 0] = torch.nan
    mask = torch.ones(3, 50, dtype=torch.bool)
    mask[0] = False
    scale, zero_point = torch.tensor([0.1]), torch.tensor([200.0])
    leaf, grad_output = input.clone().requires_grad_(), torch.full((3, 50), torch.inf)
    scale.requires_grad_()
    output = fake_quantize(leaf, scale, zero_point, quant_min=0, quant_max=100, mask=mask)
    output.backward(grad_output.masked_fill(mask, 1.0))
    assert output[0].detach().view(torch.int32).eq(0).all()
    assert output[1:].ne(0).all()
    assert leaf.grad[0].eq(0).all()
    assert scale.grad.isfinite().all()
    torch.testing.assert_close(scale.grad, torch.tensor([100.0 * (100 - 200)]))


def test_nan_infinities_ties_and_subnormals(isa: str) -> None:
    scale, zero_point = torch.tensor([1.0]), torch.tensor([1], dtype=torch.int32)
    values = [torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 0.5, 1.5, 2.5, -0.5, -1.5, 1e-40, -1e-40, -0.0]
    expected = [torch.nan, 6.0, -9.0, 6.0, -9.0, 0.0, 2.0, 2.0, 0.0, -2.0, 0.0, 0.0, 0.0]
    input = torch.tensor(values, requires_grad=True)
    scale.requires_grad_()
    output = fake_quantize(input, scale, zero_point, quant_min=-8, quant_max=7)
    torch.testing.assert_close(output, torch.tensor(expected), rtol=0, atol=0, equal_nan=True)
    output.sum().backward()
    assert input.grad.tolist() == [0.0] * 5 + [1.0] * 8
    # NaN adds nothing; clamped elements add their code - zero_point; ties add rint(v) - v.
    assert scale.grad.item() == pytest.approx(6 - 9 + 6 - 9 - 0.5 + 0.5 - 0.5 + 0.5 - 0.5)


@pytest.mark.parametrize("value", [3e38, 9.2e14, -9.2e14])
def test_huge_values_saturate(value: float, isa: str) -> None:
    output = fake_quantize(torch.full((20,), value), torch.tensor([1e-4]), torch.tensor([0], dtype=torch.int32), **INT8)
    assert torch.equal(output, torch.full((20,), 127 * torch.tensor(1e-4).item()).copysign(torch.tensor(value)))


def test_flushing_denormals_does_not_matter_at_ordinary_scales(isa: str) -> None:
    input = torch.tensor([1e-40, -1e-40, 5e-39, 0.06]).repeat(9)
    arguments = (torch.tensor([0.1]), torch.tensor([5], dtype=torch.int32))
    expected = fake_quantize(input, *arguments, **INT8)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        assert torch.equal(fake_quantize(input, *arguments, **INT8), expected)
    finally:
        torch.set_flush_denormal(False)


def test_learned_zero_point_is_rounded_half_to_even() -> None:
    input, scale = randn(100), torch.tensor([0.1])
    for learned, used in ((2.5, 2), (3.5, 4), (-0.5, 0)):
        ours = fake_quantize(input, scale, torch.tensor([learned]), quant_min=0, quant_max=255)
        assert torch.equal(
            ours, fake_quantize(input, scale, torch.tensor([used], dtype=torch.int32), quant_min=0, quant_max=255)
        )


def test_grad_scale_multiplies_parameter_gradients_only() -> None:
    input, grad_output = randn(500), randn(500, seed=3)
    arguments = (grad_output, input, torch.tensor([0.005]), torch.tensor([1.0]))
    plain = gradients(fake_quantize, *arguments, **INT8)
    halved = gradients(fake_quantize, *arguments, **INT8, grad_scale=0.5)
    assert torch.equal(plain[0], halved[0])
    assert torch.equal(plain[1] * 0.5, halved[1])
    assert torch.equal(plain[2] * 0.5, halved[2])


def test_dense_layouts_are_kept_and_others_accepted(isa: str) -> None:
    base = randn(4, 20, 6, 5)
    layouts = {
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "permuted": base.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        "strided": torch.stack([base, base], -1)[..., 0],
        "expanded": base[:, :1].expand(4, 20, 6, 5),
        "transposed_grad": base,
    }
    for name, input in layouts.items():
        scale, zero_point = parameters(input, 1)
        kwargs: dict[str, Any] = {"axis": 1, **INT8}
        mask = (randn(4, 20, 6, 5, seed=4) > 0).contiguous(memory_format=torch.channels_last)
        for keep, learn in itertools.product((None, mask), (False, True)):
            leaf = input.detach().requires_grad_()
            scale = scale.detach().requires_grad_(learn)
            output = fake_quantize(leaf, scale, zero_point, mask=keep, **kwargs)
            assert output.stride() == torch.empty_like(input).stride(), name
            assert torch.equal(output, fake_quantize_reference(input, scale, zero_point, mask=keep, **kwargs)), name
            grad_output = randn(5, 6, 20, 4, seed=3).permute(3, 2, 1, 0)
            actual = torch.autograd.grad(output, leaf, grad_output)[0]
            plain = gradients(
                fake_quantize, grad_output.contiguous(), input.contiguous(), scale, zero_point, mask=keep, **kwargs
            )
            assert torch.equal(actual, plain[0]), name


def test_compiles_with_backward() -> None:
    torch._dynamo.reset()

    def loss(input: Tensor, scale: Tensor, zero_point: Tensor, mask: Tensor) -> Tensor:
        learned = fake_quantize(input, scale, zero_point, axis=0, mask=mask, **INT8)
        fixed = fake_quantize(input, scale.detach(), zero_point.detach(), axis=0, **INT8)
        return (learned * 2 + fixed).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for shape in ((20, 33), (20, 70)):
        input = randn(*shape)
        scale, zero_point = parameters(input, 0)
        mask = randn(*shape, seed=4) > 0
        ours = gradients(loss, torch.tensor(1.0), input, scale, zero_point, mask=mask)
        theirs = gradients(compiled, torch.tensor(1.0), input, scale, zero_point, mask=mask)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("axis", [None, 1])
def test_opcheck_of_every_overload(axis: int | None) -> None:
    input = randn(3, 5, 4).transpose(0, 2).requires_grad_()
    scale, zero_point = parameters(input, axis)
    mask = randn(4, 5, 3, seed=4) > 0
    integers = zero_point.int()
    common = (-127, 127, axis, mask)
    ops = torch.ops.pqk
    torch.library.opcheck(ops.fake_quantize_ste.default, (input, scale, integers, *common))
    dense = input.detach()
    torch.library.opcheck(ops.fake_quantize_backward.default, (dense, dense, scale, zero_point, *common, 0.5))
    torch.library.opcheck(ops.fake_quantize_backward.default, (dense, dense, scale, integers, *common, 0.5))
    in_range = ops.fake_quantize_ste(dense, scale, integers, *common)[1]
    torch.library.opcheck(ops.fake_quantize_ste_backward.default, (dense, in_range))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(2, 3, dtype=torch.int32)}, "input must be Float, Double or BFloat16, got Int"),
        ({"scale": torch.tensor([0.0])}, "scale must be finite, positive and normal, got 0 at index 0"),
        ({"scale": torch.tensor([-1.0])}, "scale must be finite, positive and normal, got -1"),
        ({"scale": torch.tensor([torch.nan])}, "scale must be finite, positive and normal"),
        ({"scale": torch.tensor([torch.inf])}, "scale must be finite, positive and normal"),
        ({"scale": torch.tensor([1.0], dtype=torch.float64)}, "scale must be Float, got Double"),
        ({"scale": torch.ones(2)}, "without axis, scale must have 1 element, got 2"),
        ({"scale": torch.ones(3), "axis": 0}, r"scale must have shape \[2\] for axis 0"),
        ({"zero_point": torch.zeros(2)}, r"zero_point must have as many elements as scale \(1\), got 2"),
        ({"zero_point": torch.zeros(1, dtype=torch.int64)}, "zero_point must be Int or Float, got Long"),
        ({"zero_point": torch.tensor([torch.nan])}, "zero_point must be within"),
        ({"zero_point": torch.tensor([2**24], dtype=torch.int32)}, "zero_point must be within"),
        ({"quant_min": 5, "quant_max": 4}, "quant_min 5 and quant_max 4"),
        ({"quant_max": 2**24}, "expected -8388608 <= quant_min <= quant_max <= 8388608"),
        ({"axis": 2}, r"axis must be in \[-2, 1\]"),
        ({"mask": torch.ones(3, 2, dtype=torch.bool)}, r"mask must have the shape of input, \[2, 3\], got \[3, 2\]"),
        ({"mask": torch.ones(2, 3)}, "mask must be Bool, got Float"),
    ],
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_bad_arguments_are_named(change: dict[str, Any], message: str, requires_grad: bool) -> None:
    arguments = {
        "input": torch.zeros(2, 3),
        "scale": torch.tensor([1.0]),
        "zero_point": torch.tensor([0], dtype=torch.int32),
        **INT8,
        **change,
    }
    if requires_grad and arguments["input"].is_floating_point():
        arguments["input"] = arguments["input"].clone().requires_grad_()
    with pytest.raises(RuntimeError, match=message):
        fake_quantize(**arguments)
