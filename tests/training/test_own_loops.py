"""What people do around a loop of their own: accumulation, clipping, optimizers, schedules, wrappers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pqk_ext
from pqk_ext.config import PQKConfig
from pqk_ext.preparation import PreparedModel, prepare

from ..networks import SmallNet, batch

STEPS = 16
CONFIG = PQKConfig(sparsity=0.6, total_steps=STEPS, mask_update_interval=2, warmup_fraction=0.3)
# One step inside of each part of the schedule.
PARTS = pytest.mark.parametrize("at", [1, 5, 12], ids=["warm-up", "phase-1", "phase-2"])


def prepared(config: PQKConfig = CONFIG, **changes: Any) -> PreparedModel:
    torch.manual_seed(0)
    config = PQKConfig(**{**config.to_dict(), **changes})
    return prepare(SmallNet(), config, example_inputs=batch(0)[0])


def sgd(model: PreparedModel) -> torch.optim.SGD:
    return torch.optim.SGD(model.pqk.parameter_groups(0.05, 1e-3), momentum=0.9)


def train(
    model: PreparedModel, optimizer: torch.optim.Optimizer, start: int = 0, stop: int = STEPS, **zero_grad: Any
) -> None:
    for step in range(start, stop):
        torch.manual_seed(step)
        model.pqk.loss(*batch(step)).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad(**zero_grad)


def at_step(at: int, **changes: Any) -> PreparedModel:
    model = prepared(**changes)
    train(model, sgd(model), 0, at)
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_state(a: nn.Module, b: nn.Module) -> None:
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


# --- gradient accumulation ----------------------------------------------------------------------------------------


@PARTS
@pytest.mark.parametrize("kl_direction", ["one_way", "two_way"])
def test_accumulated_gradients_are_the_mean_over_micro_batches(at: int, kl_direction: str) -> None:
    """Everything that the loss of a step moves is divided with it, also what the teacher's part moves."""
    model = at_step(at, kl_direction=kl_direction)
    parts: list[dict[str, Tensor]] = []
    alone = copy.deepcopy(model)  # batch norm statistics follow both in the same way
    for micro in range(3):
        torch.manual_seed(micro)
        alone.pqk.loss(*batch(100 + micro)).backward()
        parts.append(gradients(alone))
        alone.zero_grad()
    for micro in range(3):
        torch.manual_seed(micro)
        (model.pqk.loss(*batch(100 + micro)) / 3).backward()
    assert model.pqk.global_step == at
    accumulated = gradients(model)
    assert accumulated.keys() == parts[0].keys()
    assert ("fc.teacher.weight" in accumulated) == (at >= CONFIG.phase1_steps)
    for name, gradient in accumulated.items():
        if name == "conv2.bias":
            continue  # before a batch norm: zero but for rounding
        mean = sum(part[name] for part in parts) / 3
        # Gradients of step sizes are sums of cancelling terms.
        assert float((gradient - mean).norm()) <= 1e-4 * float(mean.norm()) + 1e-7, name


@PARTS
def test_micro_batches_give_the_gradient_of_the_whole(at: int) -> None:
    """Without batch norm and dropout, which see each micro-batch by itself."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    model = prepare(net, CONFIG, example_inputs=batch(0)[0])
    train(model, sgd(model), 0, at)
    whole = copy.deepcopy(model)
    x, y = batch(50, 24)
    whole.pqk.loss(x, y).backward()
    for part in range(3):
        (model.pqk.loss(x[part * 8 : part * 8 + 8], y[part * 8 : part * 8 + 8]) / 3).backward()
    # Sums in another order, and products of them: step sizes have gradients of cancelling terms.
    for name, gradient in gradients(whole).items():
        own = model.get_parameter(name).grad
        assert own is not None
        assert float((own - gradient).norm()) <= 1e-4 * float(gradient.norm()) + 1e-7, name


def test_each_micro_batch_of_an_observing_step_is_observed() -> None:
    model = prepared()
    quantizer = model.pqk.quantizers()[0]
    before = int(quantizer.batches)
    for micro in range(3):
        (model.pqk.loss(*batch(micro)) / 3).backward()
    assert int(quantizer.batches) == before + 3
    assert model.pqk.global_step == 0


# --- clipping -----------------------------------------------------------------------------------------------------


@PARTS
def test_clipping_sees_every_gradient(at: int) -> None:
    model = at_step(at)
    model.pqk.loss(*batch(50)).backward()
    before = gradients(model)
    norm = torch.stack([g.norm() for g in before.values()]).norm()
    limit = float(norm) / 4
    returned = nn.utils.clip_grad_norm_(model.parameters(), limit, error_if_nonfinite=True)
    torch.testing.assert_close(returned, norm)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, before[name] / 4, rtol=1e-4, atol=1e-9)
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    assert max(float(g.abs().max()) for g in gradients(model).values()) <= 1.0001e-3


def test_clipping_does_not_free_unimportant_weights() -> None:
    model = prepared()
    optimizer = sgd(model)
    for step in range(CONFIG.phase1_steps):
        masks = [layer.weight_mask.clone() for layer in model.pqk.prunable_layers()]
        old = [layer.weight.detach().clone() for layer in model.pqk.prunable_layers()]
        model.pqk.loss(*batch(step)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
        for layer, mask, weight in zip(model.pqk.prunable_layers(), masks, old, strict=True):
            assert torch.equal(layer.weight.detach()[~mask], weight[~mask])
    assert model.pqk.sparsity > 0.5


# --- optimizers, schedules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True, foreach=True),
        lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=True),
    ],
    ids=["foreach", "fused"],
)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_sgd_variants_train_alike(make: Callable[[Any], torch.optim.Optimizer], set_to_none: bool) -> None:
    expected, model = prepared(teacher=False), prepared(teacher=False)
    train(
        expected, torch.optim.SGD(expected.pqk.parameter_groups(0.05, 1e-3), momentum=0.9, nesterov=True, foreach=False)
    )
    train(model, make(model.pqk.parameter_groups(0.05, 1e-3)), set_to_none=set_to_none)
    assert model.pqk.sparsity == expected.pqk.sparsity
    for layer, other in zip(model.pqk.layers(), expected.pqk.layers(), strict=True):
        # Rounding may move a code by one, and so a weight here and there.
        weight, expected_weight = layer.weight.detach(), other.weight.detach()
        assert float((weight - expected_weight).norm()) <= 0.01 * float(expected_weight.norm())


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.Adam(groups, fused=True),
        lambda groups: torch.optim.AdamW(groups, foreach=True),
        lambda groups: torch.optim.AdamW(groups, fused=True, amsgrad=True),
        lambda groups: torch.optim.RMSprop(groups),
    ],
    ids=["adam-fused", "adamw-foreach", "adamw-fused", "rmsprop"],
)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_other_optimizers_keep_what_pqk_promises(
    make: Callable[[Any], torch.optim.Optimizer], set_to_none: bool
) -> None:
    model = prepared()
    optimizer = make(model.pqk.parameter_groups(0.01, 0.1))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=STEPS
    )
    for step in range(STEPS):
        frozen = [layer.weight.detach()[~layer.weight_mask].clone() for layer in model.pqk.prunable_layers()]
        masks = [layer.weight_mask.clone() for layer in model.pqk.prunable_layers()]
        first_phase = model.pqk.phase == 1
        train(model, optimizer, step, step + 1, set_to_none=set_to_none)
        scheduler.step()
        for layer, mask, old in zip(model.pqk.prunable_layers(), masks, frozen, strict=True):
            assert torch.equal(layer.weight.detach()[~mask], old) == (first_phase or not old.numel())
    for scale in (layer.weight_scale for layer in model.pqk.layers()):
        assert bool((scale > 0).all())
    logits = model.eval()(batch(1)[0])
    assert bool(logits.isfinite().all())


def test_lbfgs_takes_the_loss_as_its_closure() -> None:
    """One ``pqk.step()`` a call of ``optimizer.step``, however often that calls the loss.

    It moves parameters several times between two calls of ``pqk.step()``, which keeps step sizes positive: so it gets
    the weights alone. Groups it refuses.
    """
    model = prepared(total_steps=8, teacher=False)
    weights, _ = model.pqk.parameter_groups(0.5)
    optimizer = torch.optim.LBFGS(weights["params"], lr=0.5, max_iter=3, history_size=4)
    x, y = batch(0)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        torch.manual_seed(0)
        optimizer.zero_grad()
        loss = model.pqk.loss(x, y)
        loss.backward()
        return loss

    losses = []
    for step in range(8):
        losses.append(float(optimizer.step(closure).detach()))
        model.pqk.step()
        assert model.pqk.global_step == step + 1
    assert calls > 8
    assert model.pqk.sparsity > 0.5
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="per-parameter options"):
        torch.optim.LBFGS(model.pqk.parameter_groups(0.1))


# --- wrappers -----------------------------------------------------------------------------------------------------


def test_the_controller_is_found_through_wrappers() -> None:
    model = prepared()
    around = torch.optim.swa_utils.AveragedModel(nn.Sequential(model))
    assert pqk_ext.controller(model) is model.pqk
    assert pqk_ext.unwrap(nn.DataParallel(nn.Sequential(model))) is model
    assert pqk_ext.unwrap(torch.compile(model, backend="eager")) is model  # type: ignore[arg-type]
    assert pqk_ext.unwrap(around) is around.module[0]
    with pytest.raises(TypeError, match=r"expected a prepared model.*got SmallNet"):
        pqk_ext.unwrap(SmallNet())
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got dict"):
        pqk_ext.controller({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one prepared model, found \['0', '1\.module\.0'\]"):
        pqk_ext.unwrap(nn.Sequential(model, around))


def test_following_an_optimizer_is_calling_step() -> None:
    expected, model = prepared(), prepared()
    train(expected, sgd(expected))
    optimizer = sgd(model)
    handle = pqk_ext.step_with(optimizer, nn.Sequential(model))
    for step in range(STEPS):
        torch.manual_seed(step)
        model.pqk.loss(*batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    same_state(expected, model)
    handle.remove()
    optimizer.step()
    assert model.pqk.global_step == STEPS
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer, got int"):
        pqk_ext.step_with(3, model)  # type: ignore[arg-type]
