"""One weight in several places: shared by layers, a layer called twice, a module under two names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pqk_ext import runtime
from pqk_ext.config import PQKConfig
from pqk_ext.deploy import assert_parity, export
from pqk_ext.preparation import PreparedModel, UnsupportedOperator, prepare

from ..networks import batch

CONFIG = PQKConfig(sparsity=0.6, total_steps=16, mask_update_interval=2, warmup_fraction=0.15, prune_linear=True)
X = batch(7)[0]


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4 * 4, 5)

    def end(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(nn.functional.max_pool2d(x, 2), 1))


class SharedWeight(Base):
    """Two layers with one weight, and biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.a(x)) + x)
        return self.end(torch.relu(self.b(x)))


class CalledTwice(Base):
    """A recurrent block."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for _ in range(2):
            x = torch.relu(self.norm(self.a(x)) + x)
        return self.end(x)


class TwoNames(Base):
    """One module, called under both of its names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.a

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.a(torch.relu(self.stem(x)))))
        return self.end(torch.relu(self.again(x)))


def optimizer_of(model: PreparedModel) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.pqk.parameter_groups(0.05, 1e-3), momentum=0.9)


def train(model: PreparedModel, start: int = 0, stop: int = 16, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = optimizer or optimizer_of(model)
    for step in range(start, stop):
        model.pqk.loss(*batch(step)).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()


def prepared(make: Callable[[], nn.Module], seed: int = 0) -> PreparedModel:
    torch.manual_seed(seed)
    return prepare(make(), CONFIG, example_inputs=X)


TIED = pytest.mark.parametrize("make", [SharedWeight, CalledTwice, TwoNames])


@TIED
def test_training_evaluation_and_file_agree(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = prepared(make)
    train(model)
    export(model.eval(), tmp_path / "net.pqk")
    assert_parity(model, tmp_path / "net.pqk", X)
    weights = {
        node.name: node.tensors["weight"] for node in runtime.load(tmp_path / "net.pqk").graph.nodes if node.tensors
    }
    first_use, second_use = [codes for name, codes in weights.items() if codes.shape == (8, 8, 3, 3)]
    assert (first_use == second_use).all()
    assert not first_use[~model.a.weight_mask.numpy()].any()


@TIED
def test_one_mask_one_scale_each_parameter_once(make: Callable[[], nn.Module]) -> None:
    model = prepared(make)
    train(model, 0, 8)
    distinct = [model.stem, model.a, model.fc]
    total = sum(layer.weight.numel() for layer in distinct)
    kept = sum(int(layer.weight_mask.sum()) for layer in distinct)
    assert abs(kept - 0.4 * total) <= 1
    assert model.pqk.sparsity == pytest.approx(1 - kept / total)
    for name in ("b", "again"):
        other = getattr(model, name, model.a)
        assert other.weight is model.a.weight
        assert other.weight_scale is model.a.weight_scale
        assert torch.equal(other.weight_mask, model.a.weight_mask)
    listed = [id(p) for group in model.pqk.parameter_groups(0.1) for p in group["params"]]
    assert sorted(listed) == sorted({id(p) for p in model.parameters()})


@TIED
def test_gradients_are_those_of_both_uses(make: Callable[[], nn.Module]) -> None:
    """Phase 1 with step sizes of nearly nothing and no zeros: the float network's gradients."""
    torch.manual_seed(0)
    model = prepare(make(), PQKConfig(warmup_fraction=0.5), example_inputs=X)
    plain = make()
    plain.load_state_dict(model.float_state_dict())
    model.pqk.loss(*batch(1)).backward()
    nn.functional.cross_entropy(plain.train()(batch(1)[0]), batch(1)[1]).backward()
    torch.testing.assert_close(model.a.weight.grad, plain.a.weight.grad)


@TIED
def test_states_and_copies_stay_tied(make: Callable[[], nn.Module]) -> None:
    whole = prepared(make)
    train(whole)
    model = prepared(make)
    optimizer = optimizer_of(model)
    train(model, 0, 5, optimizer)
    again = prepared(make, seed=1)
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    second = optimizer_of(again)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again = copy.deepcopy(again)
    second = optimizer_of(again)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(again, 5, 16, second)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    plain = make()
    plain.load_state_dict(again.float_state_dict(), strict=True)
    assert torch.equal(plain.a.weight, again.a.weight * again.a.weight_mask)


def test_not_pruning_one_is_not_pruning_the_other() -> None:
    model = prepare(SharedWeight(), CONFIG, example_inputs=X, exclude=["b"])
    train(model, 0, 8)
    assert bool(model.a.weight_mask.all())
    assert not model.a.prunable
    assert not bool(model.stem.weight_mask.all())


def test_one_weight_cannot_have_two_kinds_of_codes() -> None:
    config = PQKConfig(**{**CONFIG.to_dict(), "layers": {"b": {"weight_bits": 4}}})
    with pytest.raises(
        UnsupportedOperator, match=r"\['a', 'b'\]: one weight cannot be that of different layers.*4 bits"
    ):
        prepare(SharedWeight(), config, example_inputs=X)

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.layer2 = nn.Linear(6, 6), nn.Linear(6, 6)
            self.layer2.weight = self.layer1.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.layer2(torch.relu(self.layer1(x)))

    config = PQKConfig(**{**CONFIG.to_dict(), "last_layer_bits": 6})
    with pytest.raises(UnsupportedOperator, match=r"6 bits.*8 bits"):
        prepare(Head(), config, example_inputs=torch.randn(4, 6))
    model = prepare(Head(), CONFIG, example_inputs=torch.randn(4, 6))
    assert model.layer1.weight is model.layer2.weight
