"""fake_quantize into memory that is there: strides, overlaps, autograd, and large tensors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pqk_ext.ops import fake_quantize

INT8 = {"quant_min": -127, "quant_max": 127}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(input: Tensor, axis: int | None, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    channels = 1 if axis is None else input.shape[axis]
    return (randn(channels, seed=1).abs() * 0.02 + 0.005).to(dtype), (randn(channels, seed=2) * 5).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_out_takes_any_strides_and_input_itself(dtype: torch.dtype, isa: str) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    input = randn(3, 20, 7, 9).to(dtype)
    mask = randn(3, 20, 7, 9, seed=4) > 0
    outs = {
        "contiguous": torch.empty_like(input),
        "channels_last": torch.empty_like(input, memory_format=torch.channels_last),
        "permuted": torch.empty(9, 3, 20, 7, dtype=dtype).permute(1, 2, 3, 0),
        "with gaps": torch.full((3, 20, 7, 18), 5.0, dtype=dtype)[..., ::2],
        "input": input.clone(),
    }
    for axis, keep in itertools.product((None, 0, 1), (None, mask)):
        arguments = parameters(input, axis, wide)
        kwargs: dict[str, Any] = {"axis": axis, "mask": keep, **INT8}
        expected = fake_quantize(input, *arguments, **kwargs)
        for name, out in outs.items():
            if name == "input":
                out.copy_(input)
            assert fake_quantize(out if name == "input" else input, *arguments, out=out, **kwargs) is out
            assert torch.equal(out, expected), name
    assert outs["with gaps"].as_strided((3, 20, 7, 9), (2520, 126, 18, 2), 1).eq(5).all()


def test_out_is_refused_where_it_cannot_be_right() -> None:
    base, mask = torch.zeros(2, 12), torch.ones(2, 8, dtype=torch.bool)
    input, arguments = base[:, :8], (torch.tensor([0.1]), torch.tensor([0], dtype=torch.int32))
    for out, message in (
        (torch.zeros(2, 9), r"out must have the shape of input, \[2, 8\], got \[2, 9\]"),
        (torch.zeros(2, 8, dtype=torch.float64), "out must be Float, got Double"),
        (base[:, 4:], "out must not share memory with input, unless it is that tensor itself"),
    ):
        with pytest.raises(RuntimeError, match=message):
            fake_quantize(input, *arguments, out=out, **INT8)
    out = torch.zeros(2, 8)
    overlapping = out.view(torch.bool)[:, :8]
    with pytest.raises(RuntimeError, match="out must not share memory with mask"):
        fake_quantize(input.contiguous(), *arguments, mask=overlapping, out=out, **INT8)
    for leaf in (True, False):
        tensors = torch.zeros(2, 8, requires_grad=leaf), torch.zeros(2, 8, requires_grad=not leaf)
        with pytest.raises(RuntimeError, match="out takes no gradient"):
            fake_quantize(tensors[0], *arguments, mask=mask, out=tensors[1], **INT8)
    with torch.no_grad():
        fake_quantize(torch.zeros(2, 8, requires_grad=True), *arguments, out=torch.zeros(2, 8), **INT8)


def test_out_under_autograd_and_compile() -> None:
    torch._dynamo.reset()
    input, (scale, zero_point) = randn(20, 33), parameters(randn(20, 33), 0)
    mask = randn(20, 33, seed=4) > 0

    def twice(input: Tensor, out: Tensor) -> Tensor:
        fake_quantize(input, scale, zero_point, axis=0, mask=mask, out=out, **INT8)
        return out * 2

    expected = fake_quantize(input, scale, zero_point, axis=0, mask=mask, **INT8)
    out = torch.zeros(20, 33)
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(input, out), expected * 2)
    assert torch.equal(out, expected)
    common = (input, scale, zero_point, -127, 127, 0, mask)
    torch.library.opcheck(torch.ops.pqk.fake_quantize.out, common, {"out": torch.zeros(20, 33)})
    # A tensor that a graph has saved may not be overwritten unnoticed.
    leaf = randn(20, 33, seed=5).requires_grad_()
    loss = (leaf * out).sum()
    fake_quantize(input, scale, zero_point, axis=0, out=out, **INT8)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("inner", [4096, 4093])
def test_large_tensors_have_the_bits_of_small_ones(inner: int, isa: str) -> None:
    """Outputs of large calls go past the caches, which only whole rows of lines can."""
    input, grad_output = randn(520, inner), randn(520, inner, seed=3)
    scale, zero_point = parameters(input, 0)
    mask = randn(520, inner, seed=4) > -1
    for learn, keep in ((True, None), (True, mask), (False, None), (False, mask)):
        leaf = input.clone().requires_grad_()
        s, z = (p.detach().requires_grad_(learn) for p in (scale, zero_point))
        output = fake_quantize(leaf, s, z, axis=0, mask=keep, **INT8)
        got = torch.autograd.grad(output, (leaf, s, z) if learn else (leaf,), grad_output)
        for rows in (slice(0, 4), slice(516, 520)):
            leaf = input[rows].clone().requires_grad_()
            s, z = (p[rows].detach().requires_grad_(learn) for p in (scale, zero_point))
            small = fake_quantize(leaf, s, z, axis=0, mask=None if keep is None else keep[rows], **INT8)
            assert torch.equal(output[rows], small)
            wanted = torch.autograd.grad(small, (leaf, s, z) if learn else (leaf,), grad_output[rows])
            for ours, theirs in zip(got, wanted, strict=True):
                assert torch.equal(ours[rows], theirs)
            if inner % 16 == 0:
                out = torch.empty_like(input)
                fake_quantize(input, scale, zero_point, axis=0, mask=keep, out=out, **INT8)
                assert torch.equal(out, output)
