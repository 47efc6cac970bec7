"""The scale of the input's codes learns as if the input had a gradient; images train in channels_last."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext import PQKConfig, prepare
from pqk_ext.nn import ActivationQuantizer
from pqk_ext.nn.input_scale import with_scale_gradient
from pqk_ext.nn.layout import fast_layout, own_layout, strided


def quantizer(scale: float) -> ActivationQuantizer:
    made = ActivationQuantizer(bits=4, nonnegative=False)
    made.scale.data.fill_(scale)
    made.zero_point.fill_(6)
    return made


@pytest.mark.parametrize("threads", [1, 2])
def test_equals_the_gradient_through_the_input(threads: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(8, 3, 20, 18), torch.randn(5, 3, 3, 3), torch.randn(5)
    x[0, 0, 0, 0] = torch.nan
    fake = quantizer(0.2)  # some values lie outside the range
    grad = torch.randn(8, 5, 10, 9)

    def layer(values: Tensor) -> Tensor:
        return F.conv2d(values, weight, None, stride=2, padding=1)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        quantized = fake(x.requires_grad_())
        (expected,) = torch.autograd.grad(layer(quantized), fake.scale, grad)
        output = layer(quantized.detach()) + bias.view(-1, 1, 1)
        (found,) = torch.autograd.grad(with_scale_gradient(output, x.detach(), fake, layer), fake.scale, grad)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Padded(nn.Module):
    """A padding module, and two readers of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((1, 0, 2, 1))
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, (2, 1), padding=(1, 0))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv1(self.pad(x)), self.conv2(x)
        return self.fc(torch.flatten(self.pool(torch.relu(a)) + self.pool(torch.relu(b)), 1))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


@pytest.mark.parametrize(("network", "shape"), [(Padded, (4, 2, 8, 7)), (Dense, (4, 6))])
def test_whole_networks(network: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(shape) - 0.3, torch.tensor([0, 1, 2, 0])
    model = prepare(network(), PQKConfig(warmup_fraction=0.0), example_inputs=x)
    scale = model.pqk_quantizers["q0"].scale
    gradients = []
    for input in (x, x.clone().requires_grad_()):
        model.zero_grad()
        model.pqk.loss(input, y).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        assert scale.grad is not None
        assert scale.grad != 0
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("channels", [1, 3])
def test_layers_keep_channels_last(channels: int) -> None:
    layer = nn.Conv2d(channels, 4, 3, padding=1)
    x = torch.rand(2, channels, 6, 5)
    fast = fast_layout(x)
    assert torch.equal(fast, x)
    output = layer(F.pad(fast, (1, 1, 0, 0)))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert not output.is_contiguous()


def test_other_inputs_stay_as_they_are() -> None:
    for x in (torch.rand(4, 6), torch.rand(2, 3, 7), torch.rand(0, 3, 4, 4)):
        assert fast_layout(x) is x


def test_slices_keep_the_memory_format_in_both_directions() -> None:
    x = torch.rand(2, 3, 7, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    index = (slice(None), slice(0, 2), slice(1, None, 2), slice(None, None, 3))
    output = strided(x, index)
    assert torch.equal(output, x[index])
    grad = torch.rand_like(output)
    (found,) = torch.autograd.grad(output, x, grad)
    (expected,) = torch.autograd.grad(x[index], x, grad)
    assert torch.equal(found, expected)
    assert found.stride() == x.stride()


@pytest.mark.parametrize(("groups", "kernel"), [(4, 3), (1, 1), (1, 3)])
def test_gradients_of_weights_have_their_strides(groups: int, kernel: int) -> None:
    layer = nn.Conv2d(4, 4, kernel, groups=groups)
    x = fast_layout(torch.rand(2, 4, 6, 5))
    F.conv2d(x, own_layout(layer.weight), groups=groups).square().sum().backward()
    assert layer.weight.grad.stride() == layer.weight.stride()
    expected = torch.autograd.grad(F.conv2d(x.contiguous(), layer.weight, groups=groups).square().sum(), layer.weight)[
        0
    ]
    torch.testing.assert_close(layer.weight.grad, expected)
