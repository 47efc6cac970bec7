"""Memory formats, types and devices of prepared models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pqk_ext import models
from pqk_ext.config import PQKConfig
from pqk_ext.nn import Role
from pqk_ext.preparation import prepare

from ..networks import SmallNet, batch
from .stages import CONFIG, STAGES, at, gradients, optimizer_of, train


def is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def layouts_of_layers(network: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, tuple[bool, bool]]:
    """Whether the output of each convolution, and the gradient that comes back to it, are channels_last."""
    outputs: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            output.retain_grad()
            outputs[name] = output

        return hook

    convolutions = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    handles = [module.register_forward_hook(remember(name)) for name, module in convolutions.items()]
    run(x).square().sum().backward()
    for handle in handles:
        handle.remove()
    # On 1x1 images and single channels both formats are one.
    apart = {name: value for name, value in outputs.items() if value.shape[1] > 1 and value.shape[2] > 1}
    return {name: (is_channels_last(value), is_channels_last(value.grad)) for name, value in apart.items()}


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2"])
def test_channels_last_stays_channels_last_forward_and_backward(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    network = models.create(name).to(memory_format=torch.channels_last)
    model = prepare(network, PQKConfig(sparsity=0.5), example_inputs=x)
    expected = layouts_of_layers(network.train(), network, x)
    assert len(expected) > 6
    for role in Role:
        model.zero_grad()
        found = layouts_of_layers(model, lambda x, role=role: model(x, role), x)
        for layer, (forward, backward) in expected.items():
            assert forward
            assert found[layer][0], (role, layer)
            assert found[layer][1] or not backward, (role, layer)  # torch's own chain may leave the format
        for layer in model.pqk.layers():
            if isinstance(layer, nn.Conv2d):
                assert is_channels_last(layer.weight)
                assert is_channels_last(layer.weight_mask)
                assert is_channels_last(layer.weight.grad)


def test_both_memory_formats_train_alike_and_evaluate_to_the_same_bits() -> None:
    one, other = at("phase 1"), at("phase 1").to(memory_format=torch.channels_last)
    optimizers = optimizer_of(one), optimizer_of(other)
    for step in range(STAGES["phase 1"], CONFIG.total_steps):
        losses = [train(m, o, step) for m, o in zip((one, other), optimizers, strict=True)]
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
        assert is_channels_last(other.conv2.weight)
    x, _ = batch(1)
    evaluated = other.eval()(x)
    assert torch.equal(evaluated, other(x.contiguous(memory_format=torch.channels_last)))
    assert torch.equal(evaluated, other.to(memory_format=torch.contiguous_format)(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_refused_and_nothing_is_changed(dtype: torch.dtype) -> None:
    model = at("phase 1")
    with pytest.raises(TypeError, match=f"stays in float32, got {dtype}: train it under torch.autocast"):
        model.to(dtype)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model.to(torch.float32).float().pqk.loss(*batch(1)).backward()
    with pytest.raises(TypeError, match=rf"conv1.weight must be float32, got {dtype}"):
        prepare(SmallNet().to(dtype), CONFIG, example_inputs=batch(0)[0])


def test_the_meta_device_has_shapes_and_no_ranges() -> None:
    with torch.device("meta"):
        network, x = SmallNet(), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"model: conv1.weight is on the meta device; prepare a model that has"):
        prepare(network, CONFIG, example_inputs=torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"example_inputs must hold values .* got a tensor on the meta device"):
        prepare(SmallNet(), CONFIG, example_inputs=x)
    original = at("phase 2")
    shell = at("phase 2").to("meta")
    assert shell.train()(x).shape == (2, 5)
    filled = shell.to_empty(device="cpu")
    filled.load_state_dict(original.state_dict())
    assert filled.pqk.phase == 2
    filled.pqk.loss(*batch(1)).backward()
    original.pqk.loss(*batch(1)).backward()
    torch.testing.assert_close(gradients(filled), gradients(original), rtol=0, atol=0)
    assert torch.equal(filled.eval()(batch(1)[0]), original.eval()(batch(1)[0]))
