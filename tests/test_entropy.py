"""The estimated size of the coded weights, and training for it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pqk_ext
from pqk_ext.config import PQKConfig
from pqk_ext.deploy import export, quantize_post_training
from pqk_ext.deploy.lower import weight_codes
from pqk_ext.entropy import coded_size, coded_sizes
from pqk_ext.nn import PQKLayer
from pqk_ext.preparation import PreparedModel, prepare
from pqk_ext.runtime import format

from .networks import SmallNet, batch
from .test_phases import CONFIG, optimizer_of, prepared, train_step, trained


def with_penalty(weight: float, **changes: object) -> PQKConfig:
    return PQKConfig(**{**CONFIG.to_dict(), "size_penalty": weight, **changes})


def layers_of(model: nn.Module) -> dict[str, PQKLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PQKLayer)}


def entropy(counts: np.ndarray) -> float:
    """Bits a symbol."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def mask_and_values(codes: np.ndarray) -> float:
    """Bytes: entropy of the mask of non-zeros, and of the values of the non-zeros."""
    values = codes[codes != 0]
    mask = entropy(np.array([codes.size - values.size, values.size]))
    return (codes.size * mask + values.size * entropy(np.unique(values, return_counts=True)[1])) / 8


def plain(layer: PQKLayer, weight: Tensor, scale: Tensor) -> Tensor:
    """Soft bytes of a layer in torch's own operators and float64: a kernel matrix of elements x codes, and heat that
    flows along the codes, which is what the discrete Gaussian kernel is."""
    limit = layer.weight_quant_max
    u = (weight / scale.view(-1, *[1] * (weight.dim() - 1))).clamp(-limit, limit) * layer.weight_mask
    codes = torch.arange(-limit, limit + 1)
    counts = (1 - (u.flatten()[:, None] - codes).abs()).clamp_min(0).sum(0)
    values = counts * (codes != 0)
    number = values.sum().item()
    width = 1.06 * math.sqrt((values * codes**2).sum().item() / number) * number**-0.2
    wide = torch.zeros(6 * limit + 3, dtype=torch.float64)
    flow = torch.diag(wide - 2) + torch.diag(wide[1:] + 1, 1) + torch.diag(wide[1:] + 1, -1)
    heat = torch.linalg.matrix_exp(width**2 / 2 * flow)[2 * limit + 1 : -2 * limit - 1, 2 * limit + 1 : -2 * limit - 1]
    smooth = (heat @ values) * (codes != 0)
    shares = smooth / smooth.sum() * values.sum() / counts.sum()
    shares = torch.where(codes == 0, counts / counts.sum(), shares)
    return -(counts * shares.clamp_min(1e-300).log2()).sum() / 8


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounded_size_is_the_entropy_of_mask_and_values(bits: int) -> None:
    model = trained(with_penalty(0.0, weight_bits=bits, first_layer_bits=bits))
    sizes = coded_sizes(model, rounded=True)
    assert list(sizes) == ["conv1", "conv2", "fc"]
    for name, layer in layers_of(model).items():
        assert sizes[name].item() == pytest.approx(mask_and_values(weight_codes(layer)), rel=1e-5)
    assert coded_size(model, rounded=True).item() == pytest.approx(
        sum(size.item() for size in sizes.values()), rel=1e-5
    )


@pytest.mark.parametrize("steps", [0, 20, 32])
def test_soft_size_and_gradients_equal_plain_torch_s(steps: int) -> None:
    model = trained(with_penalty(0.0, weight_bits=4), steps)
    with torch.no_grad():
        for layer in layers_of(model).values():
            layer.weight_scale.mul_(1.01)  # fresh ones have the largest weights on the last code, a corner
    for name, size in coded_sizes(model).items():
        layer = layers_of(model)[name]
        weight = layer.weight.detach().double().requires_grad_()
        scale = layer.weight_scale.detach().double().requires_grad_()
        expected = plain(layer, weight, scale)
        assert size.item() == pytest.approx(expected.item(), rel=1e-5)
        ours = torch.autograd.grad(size, (layer.weight, layer.weight_scale), retain_graph=True)
        theirs = torch.autograd.grad(expected, (weight, scale))
        torch.testing.assert_close(ours[0], theirs[0].float(), rtol=1e-3, atol=1e-3 * theirs[0].abs().max().item())
        factor = 1 / math.sqrt(layer.weight[0].numel() * layer.weight_quant_max)
        torch.testing.assert_close(
            ours[1], (theirs[1] * factor).float(), rtol=1e-3, atol=1e-3 * factor * theirs[1].abs().max().item()
        )


def test_pruned_weights_get_no_gradient() -> None:
    model = trained()
    coded_size(model).backward()
    for layer in model.pqk.prunable_layers():
        assert layer.weight.grad is not None
        assert not layer.weight.grad[~layer.weight_mask].any()
        in_range = layer.weight.detach().abs() < (layer.weight_quant_max * layer.weight_scale.detach()).view(
            -1, 1, 1, 1
        )
        assert (in_range & layer.weight_mask).sum() > 0.3 * layer.weight_mask.sum()
        assert torch.equal(layer.weight.grad != 0, in_range & layer.weight_mask)
        assert layer.weight_scale.grad is not None
        assert layer.weight_scale.grad.any()


def test_soft_counts_are_exact_where_weights_lie_on_codes() -> None:
    model = trained(with_penalty(0.0, weight_bits=4))
    with torch.no_grad():
        for layer in layers_of(model).values():
            layer.weight_scale.copy_(2.0 ** layer.weight_scale.log2().round())  # so that code * scale / scale is exact
            layer.weight.copy_(layer.student_weight())
    for layer in layers_of(model).values():
        codes = torch.from_numpy(weight_codes(layer)).flatten().long() + layer.weight_quant_max
        assert layer.weight_histogram().tolist() == codes.bincount(minlength=2 * layer.weight_quant_max + 1).tolist()


class WideNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, bias=False)
        self.conv2 = nn.Conv2d(64, 96, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.conv1(x)))


def pruned(bits: int, sparsity: float) -> PreparedModel:
    config = PQKConfig(sparsity=sparsity, total_steps=2, phase1_fraction=1.0, warmup_fraction=0.0, ramp_end=0.01)
    config = PQKConfig(**{**config.to_dict(), "weight_bits": bits, "first_layer_bits": bits, "last_layer_bits": bits})
    torch.manual_seed(0)
    model = prepare(WideNet(), config, example_inputs=batch(0)[0])
    model.pqk.step()
    model.pqk.update_masks()
    for layer in layers_of(model).values():
        layer.initialize_scale()
    return model


@pytest.mark.parametrize(("bits", "sparsity", "soft"), [(8, 0.0, 0.02), (8, 0.8, 0.05), (8, 0.9, 0.05), (4, 0.8, 0.1)])
def test_size_is_that_of_the_file(bits: int, sparsity: float, soft: float, tmp_path: Path) -> None:
    model = pruned(bits, sparsity)
    export(model, tmp_path / "net.pqk")
    estimates = coded_sizes(model, rounded=True)
    for tensor in format.inspect(tmp_path / "net.pqk").weights:
        estimate = estimates[tensor.node].item()
        table = 2 * min(tensor.count, 2**bits) + 32
        assert 0.999 * estimate <= tensor.payload_bytes <= 1.12 * estimate + table
    whole = coded_size(model, rounded=True).item()
    assert coded_size(model).item() == pytest.approx(whole, rel=soft)


def test_a_plain_network_after_post_training_quantization() -> None:
    x, _ = batch(0)
    model = quantize_post_training(SmallNet(), example_inputs=x, calibration=x)
    for name, layer in layers_of(model).items():
        assert coded_sizes(model, rounded=True)[name].item() == pytest.approx(mask_and_values(weight_codes(layer)))
    assert coded_size(nn.Sequential(model)).item() == coded_size(model).item()


def test_training_for_size_alone_lowers_the_entropy() -> None:
    model = pruned(8, 0.5)
    optimizer = torch.optim.Adam(model.pqk.parameter_groups(lr=1e-3))
    before = coded_size(model, rounded=True).item()
    sizes = []
    for _ in range(40):
        size = coded_size(model)
        size.backward()
        optimizer.step()
        optimizer.zero_grad()
        sizes.append(size.item())
    assert all(later < earlier for earlier, later in itertools.pairwise(sizes))
    assert coded_size(model, rounded=True).item() < 0.8 * before


def test_layers_of_zeros_have_no_size_and_no_gradient() -> None:
    model = prepared()
    with torch.no_grad():
        model.conv2.weight.zero_()
        model.fc.weight_scale.fill_(1e6)  # all weights round to 0, though none is 0
    sizes = coded_sizes(model, rounded=True)
    assert sizes["conv2"].item() == sizes["fc"].item() == 0
    coded_size(model).backward()
    assert not model.conv2.weight.grad.any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    pointing_at_zero = model.fc.weight.grad.sign() * model.fc.weight.sign()
    assert (pointing_at_zero >= 0).all()


def test_nan_weights_make_the_size_nan() -> None:
    model = prepared()
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = torch.nan
    assert math.isnan(coded_size(model).item())


def test_same_bits_for_any_thread_count() -> None:
    model = pruned(8, 0.5)
    parameters = [p for layer in layers_of(model).values() for p in (layer.weight, layer.weight_scale)]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            size = coded_size(model)
            results.append([size.detach(), *torch.autograd.grad(size, parameters)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_wrong_models_are_refused() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got dict"):
        coded_size({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no quantized layer; pqk_ext\.prepare makes"):
        coded_sizes(nn.Linear(2, 2))


def test_it_is_public() -> None:
    assert pqk_ext.coded_size is coded_size
    assert pqk_ext.coded_sizes is coded_sizes


# --- the penalty of PQKConfig ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [10, 24])
def test_the_penalty_is_kilobytes_times_the_weight(step: int) -> None:
    model, without = trained(with_penalty(0.7), step), prepared()
    without.load_state_dict(model.state_dict())
    torch.manual_seed(2)
    loss = model.pqk.loss(*batch(50))
    torch.manual_seed(2)
    expected = without.pqk.loss(*batch(50)) + 0.7 * coded_size(model) / 1000
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.dtype == torch.float32
    assert model.pqk.metrics()["loss"] == loss.item()
    assert model.pqk.metrics()["coded_kb"] == pytest.approx(coded_size(model).item() / 1000)
    assert "coded_kb" not in without.pqk.metrics()


def test_warm_up_has_no_penalty() -> None:
    model, without = prepared(with_penalty(0.7)), prepared()
    losses = []
    for each in (model, without):
        torch.manual_seed(2)
        losses.append(each.pqk.loss(*batch(50)))
    assert losses[0].item() == losses[1].item()


def test_a_penalty_makes_the_network_smaller() -> None:
    sizes = [coded_size(trained(with_penalty(weight)), rounded=True).item() for weight in (0.0, 3.0, 30.0)]
    assert sizes[2] < sizes[1] < sizes[0]
    assert sizes[2] < 0.9 * sizes[0]


def test_a_penalty_leaves_the_teacher_s_weights_alone() -> None:
    model = trained(with_penalty(0.7), 24)
    (0.7 * coded_size(model)).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {f"{name}.{part}" for name in ("conv1", "conv2", "fc") for part in ("weight", "weight_scale")}


@pytest.mark.parametrize("stop", [1, 11, 20])
def test_resumes_bit_for_bit(stop: int) -> None:
    config = with_penalty(5.0)
    whole, model, again = trained(config), trained(config, stop), prepared(config)
    optimizer, second = optimizer_of(model), optimizer_of(again)
    del optimizer
    again.load_state_dict(model.state_dict())
    # Momentum is part of the optimizer's state: train the first part again to have it.
    first = prepared(config)
    optimizer = optimizer_of(first)
    torch.manual_seed(1)
    for step in range(stop):
        train_step(first, optimizer, step)
    second.load_state_dict(optimizer.state_dict())
    for step in range(stop, CONFIG.total_steps):
        train_step(again, second, step)
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_compiled_gradients_are_the_same_bits() -> None:
    model = trained(steps=20)
    parameters = [p for layer in layers_of(model).values() for p in (layer.weight, layer.weight_scale)]
    eager = torch.autograd.grad(coded_size(model), parameters)
    compiled = torch.compile(coded_size, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(model), parameters), eager, strict=True):
        assert torch.equal(a, b)
