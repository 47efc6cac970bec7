"""`share_weights`: centroids that train, zeros that stay, state that travels."""

from __future__ import annotations

import copy
import io
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import pqk_ext
from pqk_ext import PQKConfig, codebook, models, prepare, share_weights
from pqk_ext.codebook import SharedWeight, shared_layers, unshare_weights

from ..networks import SmallNet, batch

LAYERS = ("conv1", "conv2", "fc")


def small(seed: int = 0) -> SmallNet:
    torch.manual_seed(seed)
    return SmallNet().eval()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def train(model: nn.Module, steps: int = 5, **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01} | settings)
    losses = []
    for step in range(steps):
        x, y = batch(step)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


# --- what it makes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(codebook.METHODS))
def test_weights_are_what_the_method_gives(method: str) -> None:
    model = small()
    before = weights(model)
    shared = share_weights(model, 8, method, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    assert list(shared_layers(shared)) == list(LAYERS)
    for name, weight in weights(shared).items():
        found = codebook.METHODS[method](before[name].flatten(), 8, generator)
        assert torch.equal(weight, found.centroids[found.codes].view(weight.shape))
        assert torch.equal(weights(model)[name], before[name])  # the model itself is as it was
    assert not parametrize.is_parametrized(model)
    assert not shared.training
    x, _ = batch(0)
    plain = small()
    for name, weight in weights(shared).items():
        plain.get_submodule(name).weight.data = weight
    assert torch.equal(shared(x), plain(x))


def test_a_function_as_method() -> None:
    fine, coarse = (
        share_weights(small(), 200, partial(codebook.entropy, rate_weight=weight)) for weight in (1e-6, 1e-3)
    )
    for name in LAYERS:
        assert shared_layers(coarse)[name].entropy < shared_layers(fine)[name].entropy


def test_properties() -> None:
    model = small()
    with torch.no_grad():
        model.fc.weight[:] = 2.0
        model.fc.weight[0] = -0.0
        model.fc.weight[1, :64] = 1.0
    layer = shared_layers(share_weights(model, 4))["fc"]
    assert layer.distinct == 3
    assert layer.sparsity == pytest.approx(0.2)
    shares = torch.tensor([0.2, 0.1, 0.7])
    assert layer.entropy == pytest.approx(float(-(shares * shares.log2()).sum()), rel=1e-5)
    values, counts = layer.values_and_counts()
    assert values.tolist() == [0.0, 1.0, 2.0]
    assert counts.tolist() == [128, 64, 448]
    with torch.no_grad():
        layer.centroids.fill_(2.0)  # trained to be equal: one value
    assert layer.distinct == 2


def test_a_constant_layer_has_no_entropy() -> None:
    model = small()
    nn.init.constant_(model.fc.weight, 0.5)
    assert str(shared_layers(share_weights(model))["fc"].entropy) == "0.0"


def test_only_chosen_layers() -> None:
    shared = share_weights(small(), 4, layers=["conv2", "fc"])
    assert list(shared_layers(shared)) == ["conv2", "fc"]
    assert torch.equal(shared.conv1.weight, small().conv1.weight)
    assert shared_layers(small()) == {}


@pytest.mark.parametrize("ranking", ["global", "per_layer"])
def test_prunes_first(ranking: str) -> None:
    model = small()
    shared = share_weights(model, 8, sparsity=0.75, ranking=ranking)
    masks = pqk_ext.prune.compute_masks(list(weights(model).values()), 0.75, ranking=ranking)
    for (name, weight), mask in zip(weights(shared).items(), masks, strict=True):
        assert torch.equal(weight != 0, mask), name
        assert shared_layers(shared)[name].distinct <= 9


def test_zeros_as_values_like_others() -> None:
    model = small()
    with torch.no_grad():
        model.fc.weight[:3] = 0
    shared = share_weights(model, 4, keep_zeros=False)
    train(shared.train(), lr=0.5)
    assert 1 <= shared_layers(shared)["fc"].distinct <= 4
    assert shared_layers(shared)["fc"].sparsity == 0  # their centroid has moved


def test_all_zero_layer() -> None:
    model = small()
    nn.init.zeros_(model.fc.weight)
    shared = share_weights(model, 4)
    train(shared.train())
    assert bool((shared.fc.weight == 0).all())
    assert shared_layers(shared)["fc"].centroids.shape == (0,)


def test_survivors_that_a_method_rounds_to_zero_stay_zero() -> None:
    model = small()
    shared = share_weights(model, 3, "uniform")
    zeros = {name: weight == 0 for name, weight in weights(shared).items()}
    assert any(bool(zero.any()) for zero in zeros.values())
    train(shared.train())
    assert all(torch.equal(weights(shared)[name] == 0, zero) for name, zero in zeros.items())


# --- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "kind", "network"])
def test_gradients_are_sums_over_the_weights(scope: str) -> None:
    shared = share_weights(small().train(), 8, scope=scope, sparsity=0.5)
    x, y = batch(0)
    torch.manual_seed(1)
    F.cross_entropy(shared(x), y).backward()

    plain = unshare_weights(shared)
    assert not shared_layers(plain)
    torch.manual_seed(1)
    F.cross_entropy(plain(x), y).backward()

    expected: dict[int, Tensor] = {}
    found: dict[int, Tensor] = {}
    for name, layer in shared_layers(shared).items():
        gradient = plain.get_submodule(name).weight.grad.double()
        sums = torch.stack([(gradient * (layer.codes == i + 1)).sum() for i in range(len(layer.centroids))])
        expected[id(layer.centroids)] = expected.get(id(layer.centroids), 0) + sums
        found[id(layer.centroids)] = layer.centroids.grad
    assert len(found) == {"layer": 3, "kind": 2, "network": 1}[scope]
    for key, gradient in found.items():
        assert torch.allclose(gradient.double(), expected[key], rtol=1e-4, atol=1e-6)


def test_gradient_check() -> None:
    layer = share_weights(nn.Sequential(nn.Linear(6, 5).double()), 4)[0]
    parametrization = layer.parametrizations.weight[0]
    centroids = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(parametrization, (centroids,))


def test_gradients_do_not_depend_on_threads() -> None:
    layer = share_weights(nn.Sequential(nn.Linear(700, 700)), 8, sparsity=0.1)[0]
    output_gradient = torch.randn(700, 700, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            layer.parametrizations.weight.original.grad = None
            layer.weight.backward(output_gradient)
            found.append(layer.parametrizations.weight.original.grad)
            layer.parametrizations.weight.original.grad = None
            layer.weight.backward(output_gradient.T.contiguous().T)  # the same numbers in another layout
            found.append(layer.parametrizations.weight.original.grad)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(gradient, found[0]) for gradient in found)


@pytest.mark.parametrize("scope", ["layer", "kind", "network"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_keeps_values_shared_and_zeros_zero(scope: str, optimizer: type[torch.optim.Optimizer]) -> None:
    shared = share_weights(small().train(), 8, scope=scope, sparsity=0.6)
    before = weights(shared)
    steps = optimizer(shared.parameters(), lr=0.01, weight_decay=0.1)
    losses = []
    for step in range(60):
        x, y = batch(step, 64)
        loss = F.cross_entropy(shared(x), y)
        steps.zero_grad()
        loss.backward()
        steps.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.96 * sum(losses[:10])
    values = []
    for name, weight in weights(shared).items():
        assert torch.equal(weight == 0, before[name] == 0)
        moved = weight[weight != 0] != before[name][weight != 0]
        assert bool(moved.any()), name  # updates add up from step to step
        values.append(weight[weight != 0].unique())
    groups = {"layer": [[0], [1], [2]], "kind": [[0, 1], [2]], "network": [[0, 1, 2]]}[scope]
    for group in groups:
        assert len(torch.cat([values[i] for i in group]).unique()) <= 8


def test_common_centroids_are_one_parameter() -> None:
    shared = share_weights(small(), 8, scope="network")
    layers = shared_layers(shared)
    assert len({id(layer.centroids) for layer in layers.values()}) == 1
    assert sum(p is layers["fc"].centroids for p in shared.parameters()) == 1
    copied = copy.deepcopy(shared)
    assert len({id(layer.centroids) for layer in shared_layers(copied).values()}) == 1
    assert shared_layers(copied)["fc"].centroids is not layers["fc"].centroids
    with torch.no_grad():
        shared_layers(copied)["fc"].centroids.add_(1)
    assert not torch.equal(copied.conv1.weight, shared.conv1.weight)
    with pytest.raises(RuntimeError, match="shares its centroids with others"):
        shared.fc.weight = torch.zeros_like(shared.fc.weight)


def test_frozen_layers_stay_frozen() -> None:
    model = small()
    model.conv1.weight.requires_grad_(False)
    shared = share_weights(model, 4)
    assert not shared_layers(shared)["conv1"].centroids.requires_grad
    before = weights(shared)
    train(shared.train())
    assert torch.equal(shared.conv1.weight, before["conv1"])
    assert not torch.equal(shared.fc.weight, before["fc"])


def test_assigning_a_weight_takes_the_nearest_centroids() -> None:
    shared = share_weights(small(), 4)
    codes = shared_layers(shared)["fc"].codes
    target = torch.randn(shared.fc.weight.shape, generator=torch.Generator().manual_seed(0))
    shared.fc.weight = target
    for i in range(4):
        assert torch.allclose(shared.fc.weight[codes == i + 1], target[codes == i + 1].mean(), atol=1e-6)


# --- state -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_state_dict_round_trip(scope: str) -> None:
    shared = share_weights(small(), 8, scope=scope, sparsity=0.5)
    train(shared.train())
    stored = io.BytesIO()
    torch.save(shared.state_dict(), stored)
    stored.seek(0)
    other = share_weights(small(1), 8, scope=scope, sparsity=0.5)
    other.load_state_dict(torch.load(stored, weights_only=True), strict=True)
    for name, weight in weights(shared).items():
        assert torch.equal(weight, weights(other)[name])
    x, _ = batch(3)
    assert torch.equal(shared.eval()(x), other.eval()(x))
    state = shared.state_dict()
    assert {k for k in state if "conv1" in k} == {
        "conv1.parametrizations.weight.original",
        "conv1.parametrizations.weight.0.codes",
    }
    assert state["conv1.parametrizations.weight.0.codes"].dtype == torch.int32


def test_deepcopy_is_independent() -> None:
    shared = share_weights(small(), 8)
    copied = copy.deepcopy(shared)
    train(copied.train())
    assert torch.equal(weights(shared)["fc"], weights(share_weights(small(), 8))["fc"])
    assert not torch.equal(weights(shared)["fc"], weights(copied)["fc"])


def test_double_and_removal() -> None:
    shared = share_weights(small(), 8).double()
    x, _ = batch(0)
    assert shared(x.double()).dtype == torch.float64
    parametrize.remove_parametrizations(shared.fc, "weight")
    assert len(shared.fc.weight.unique()) == 8


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_unshared_weights_are_plain_again(scope: str) -> None:
    shared = share_weights(small(), 8, scope=scope)
    before = weights(shared)
    plain = unshare_weights(shared)
    for name, weight in before.items():
        assert torch.equal(plain.get_parameter(f"{name}.weight"), weight)
        assert torch.equal(weights(shared)[name], weight)
    x, _ = batch(0)
    assert torch.equal(plain(x), shared(x))
    prepare(plain, PQKConfig(), example_inputs=x)


def test_representation_and_cache() -> None:
    shared = share_weights(small(), 8)
    assert "SharedWeight(centroids=8, common=False)" in repr(shared)
    assert isinstance(shared.fc.parametrizations.weight[0], SharedWeight)
    with parametrize.cached():
        assert shared.fc.weight is shared.fc.weight


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 1}, r"k: expected an integer in 2\.\.256, got 1"),
        ({"k": 257}, r"k: expected an integer in 2\.\.256, got 257"),
        ({"k": 8.0}, "k: expected an integer"),
        ({"method": "median"}, "method: expected one of .*kmeans.*, or a function, got 'median'"),
        ({"scope": "model"}, "scope: expected 'layer', 'kind' or 'network', got 'model'"),
        ({"layers": "fc"}, "layers: expected a list of names, got the string 'fc'"),
        ({"layers": ["fc", "bn1"]}, r"layers: no convolution or linear layer \['bn1'\]; there are conv1, conv2, fc"),
        ({"layers": []}, "expected at least one"),
        ({"sparsity": 1.0}, "sparsity: expected a number in"),
        ({"ranking": "none"}, "ranking: expected"),
        ({"k": 256, "sparsity": 0.5}, "k: expected at most 255, since 0 is one value more, got 256"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        share_weights(small(), **arguments)


def test_largest_k_without_zeros() -> None:
    assert shared_layers(share_weights(small(), 256))["fc"].distinct == 256


def test_wrong_models() -> None:
    with pytest.raises(TypeError, match="expected a module, got Tensor"):
        share_weights(torch.zeros(3))  # type: ignore[arg-type]
    prepared = prepare(small(), PQKConfig(), example_inputs=batch(0)[0])
    with pytest.raises(TypeError, match="expected a plain float model"):
        share_weights(prepared)
    with pytest.raises(ValueError, match="at least one convolution or linear"):
        share_weights(nn.ReLU())
    with pytest.raises(ValueError, match="the weight of conv1 is parametrized already"):
        share_weights(share_weights(small()))
    with pytest.raises(ValueError, match="model: conv1 computes its weight by a parametrization"):
        prepare(share_weights(small()), PQKConfig(), example_inputs=batch(0)[0])
    model = small()
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="the weight of conv2 is not finite"):
        share_weights(model)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="0 and 1 have one weight parameter"):
        share_weights(tied)


def test_a_layer_used_twice_is_shared_once() -> None:
    layer = nn.Linear(4, 4)
    shared = share_weights(nn.Sequential(layer, nn.ReLU(), layer), 4)
    assert list(shared_layers(shared)) == ["0"]
    assert shared[0] is shared[2]


def test_zoo_network() -> None:
    shared = share_weights(models.create("resnet8"), 16, sparsity=0.8)
    assert all(layer.distinct <= 17 for layer in shared_layers(shared).values())
