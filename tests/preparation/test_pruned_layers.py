"""Layers of a prepared network leave pruned weights out, and never by an old mask."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pqk_ext.nn import PQKConv2d, PQKLinear, Role
from pqk_ext.nn import layers as layers_module
from pqk_ext.ops import masked_conv2d, masked_linear


class Sharing:
    routing = "disjoint"
    teacher_weights = "full"


@pytest.fixture(params=["conv", "linear"])
def layer(request: pytest.FixtureRequest) -> PQKConv2d | PQKLinear:
    torch.manual_seed(0)
    if request.param == "conv":
        return PQKConv2d(nn.Conv2d(32, 32, 3, padding=1), 8, True, Sharing())
    return PQKLinear(nn.Linear(512, 256), 8, True, Sharing())


@pytest.fixture
def masked_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the masked ops that layers called."""
    calls: list[str] = []

    def record(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            calls.append(function.__name__)
            output: Tensor = function(*args, **kwargs)
            return output

        return call

    monkeypatch.setattr(layers_module, "masked_conv2d", record(masked_conv2d))
    monkeypatch.setattr(layers_module, "masked_linear", record(masked_linear))
    return calls


def images(layer: PQKConv2d | PQKLinear, count: int = 128) -> Tensor:
    shape = (count, 32, 4, 4) if isinstance(layer, PQKConv2d) else (count, 512)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def prune(layer: PQKConv2d | PQKLinear, seed: int = 2, density: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer.weight_mask.copy_(torch.rand(layer.weight.shape, generator=generator) < density)


def check(layer: PQKConv2d | PQKLinear, input: Tensor) -> None:
    """The layer's output is that of its present mask."""
    weight = layer.student_weight().detach()
    assert not weight[~layer.weight_mask].any()
    if isinstance(layer, PQKConv2d):
        expected = nn.functional.conv2d(input, weight, layer.bias, padding=1)
    else:
        expected = nn.functional.linear(input, weight, layer.bias)
    torch.testing.assert_close(layer(input), expected, rtol=1e-4, atol=1e-5)


def test_a_pruned_layer_skips_zeros_and_trains(layer: PQKConv2d | PQKLinear, masked_calls: list[str]) -> None:
    input = images(layer)
    check(layer, input)
    assert masked_calls == []  # nothing is pruned
    prune(layer)
    check(layer, input)
    assert len(masked_calls) == 1
    layer(input).square().sum().backward()
    gradient = layer.weight.grad
    assert gradient is not None
    assert not gradient[~layer.weight_mask].any()
    assert gradient[layer.weight_mask].all()


def test_every_way_to_change_a_mask_is_seen(layer: PQKConv2d | PQKLinear, masked_calls: list[str]) -> None:
    input = images(layer)
    prune(layer)
    check(layer, input)
    prune(layer, seed=3)
    check(layer, input)
    state = copy.deepcopy(layer.state_dict())
    layer.weight_mask[0] = False
    check(layer, input)
    layer.load_state_dict(state)
    check(layer, input)
    layer.load_state_dict({**state, "weight_mask": state["weight_mask"].flip(0)}, assign=True)
    check(layer, input)
    layer.to(memory_format=torch.channels_last)
    check(layer, input)
    layer.double().float()
    check(layer, input)
    called = len(masked_calls)
    layer.weight_mask.fill_(True)
    check(layer, input)
    assert len(masked_calls) == called  # the full mask was seen too


def test_copies_count_their_own_masks(layer: PQKConv2d | PQKLinear, masked_calls: list[str]) -> None:
    input = images(layer)
    prune(layer)
    check(layer, input)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(input), layer(input))
        called = len(masked_calls)
        for _ in range(5):  # as many changes as the original has seen, or more
            twin.weight_mask.fill_(True)
            check(twin, input)
        assert len(masked_calls) == called


def test_what_stays_dense(layer: PQKConv2d | PQKLinear, masked_calls: list[str]) -> None:
    prune(layer)
    input = images(layer)
    layer(input, Role.TEACHER)
    layer(input, Role.FLOAT)
    layer(images(layer, count=4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(input)
    layer.double()(input.double())
    assert masked_calls == []


def test_grouped_and_oddly_padded_convolutions_stay_dense(masked_calls: list[str]) -> None:
    for options in ({"groups": 32}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}):
        layer = PQKConv2d(nn.Conv2d(32, 32, 3, **options), 8, True, Sharing())
        prune(layer)
        layer(images(layer))
    assert masked_calls == []


def test_two_runs_are_equal_to_the_bit(layer: PQKConv2d | PQKLinear) -> None:
    input = images(layer)
    prune(layer)
    results = []
    for _ in range(2):
        layer.zero_grad()
        output = layer(input)
        output.square().sum().backward()
        assert layer.weight.grad is not None
        results.append((output.detach().clone(), layer.weight.grad.clone()))
    assert all(map(torch.equal, *results))
