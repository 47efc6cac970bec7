"""The invariants of PQK's two phases."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pqk_ext.config import PQKConfig
from pqk_ext.deploy.lower import lower
from pqk_ext.nn import PQKLayer, Role
from pqk_ext.preparation import PreparedModel, prepare

from .networks import SmallNet, batch

STEPS = 32
CONFIG = PQKConfig(sparsity=0.75, total_steps=STEPS, mask_update_interval=2, warmup_fraction=0.15)


def prepared(config: PQKConfig = CONFIG) -> PreparedModel:
    torch.manual_seed(0)
    return prepare(SmallNet(), config, example_inputs=batch(0)[0])


def optimizer_of(model: PreparedModel) -> torch.optim.SGD:
    groups = model.pqk.parameter_groups(lr=0.05, weight_decay=5e-3)
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)


def train_step(model: PreparedModel, optimizer: torch.optim.Optimizer, seed: int) -> Tensor:
    loss = model.pqk.loss(*batch(seed))
    loss.backward()
    optimizer.step()
    model.pqk.step()
    optimizer.zero_grad()
    return loss.detach()


def trained(config: PQKConfig = CONFIG, steps: int = STEPS) -> PreparedModel:
    model = prepared(config)
    optimizer = optimizer_of(model)
    torch.manual_seed(1)
    for step in range(steps):
        train_step(model, optimizer, step)
    return model


def test_mask_fraction_is_within_one_weight() -> None:
    model = trained()
    layers = model.pqk.prunable_layers()
    total = sum(layer.weight.numel() for layer in layers)
    kept = sum(int(layer.weight_mask.sum()) for layer in layers)
    assert abs(kept - 0.25 * total) <= 1
    assert model.pqk.sparsity == pytest.approx(0.75, abs=1 / total)


def test_blocks_are_pruned_whole_and_their_sparsity_is_reported() -> None:
    model = trained(PQKConfig(**{**CONFIG.to_dict(), "granularity": "1x4"}))
    kept = total = 0
    for layer in model.pqk.prunable_layers():
        mask = layer.weight_mask
        for block in mask.split(4, dim=1):  # conv1 has 3 input channels: its blocks are of 3
            assert torch.equal(block.all(1), block.any(1))
        assert int(layer.student_weight()[~mask].count_nonzero()) == 0
        kept, total = kept + int(mask.sum()), total + mask.numel()
    assert 0 <= kept - 0.25 * total <= 4
    assert model.pqk.sparsity == model.pqk.metrics()["sparsity"] == 1 - kept / total


def test_two_of_four_stay_in_convolutions_and_linear_layers() -> None:
    model = trained(PQKConfig(**{**CONFIG.to_dict(), "granularity": "2:4", "sparsity": 0.5, "prune_linear": True}))
    for layer in model.pqk.prunable_layers():
        kept = torch.stack([block.sum(1) for block in layer.weight_mask.split(4, dim=1)])
        assert int(kept.max()) <= 2
        if layer.weight.shape[1] % 4 == 0:
            assert int(kept.min()) == 2
            assert layer.student_weight().count_nonzero() <= layer.weight.numel() // 2


def test_sparsity_follows_the_cubic_schedule() -> None:
    model = prepared()
    optimizer = optimizer_of(model)
    seen = []
    for step in range(STEPS // 2):
        train_step(model, optimizer, step)
        seen.append(model.pqk.sparsity)
    assert seen[: CONFIG.warmup_steps] == [0.0] * CONFIG.warmup_steps
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(0.75, abs=0.01)


def test_unimportant_weights_survive_phase_1_exactly() -> None:
    model = prepared()
    optimizer = optimizer_of(model)
    moved = 0
    for step in range(CONFIG.phase1_steps):
        masks = [layer.weight_mask.clone() for layer in model.pqk.prunable_layers()]
        before = [layer.weight.detach().clone() for layer in model.pqk.prunable_layers()]
        train_step(model, optimizer, step)
        for layer, mask, old in zip(model.pqk.prunable_layers(), masks, before, strict=True):
            assert torch.equal(layer.weight.detach()[~mask], old[~mask])
            moved += int((layer.weight.detach()[mask] != old[mask]).sum())
    assert moved > 0


def gradients(model: PreparedModel, loss: Tensor) -> list[Tensor]:
    layers = model.pqk.prunable_layers()
    return list(torch.autograd.grad(loss, [layer.weight for layer in layers], allow_unused=False))


def test_teacher_loss_moves_no_parameter_of_the_student() -> None:
    model = trained(steps=STEPS - 4)
    x, y = batch(99)
    nn.functional.cross_entropy(model.run(x, Role.TEACHER), y).backward()
    for name, parameter in model.named_parameters():
        if ".teacher." in name or name in ("conv1.weight", "conv2.weight"):
            continue
        assert parameter.grad is None, name


def test_shared_routing_moves_important_weights_too() -> None:
    model = trained(PQKConfig(**{**CONFIG.to_dict(), "routing": "shared"}), STEPS - 4)
    x, y = batch(99)
    teacher = nn.functional.cross_entropy(model.run(x, Role.TEACHER), y)
    for layer, gradient in zip(model.pqk.prunable_layers(), gradients(model, teacher), strict=True):
        assert gradient[layer.weight_mask].any()


def student_state(model: PreparedModel) -> dict[str, Tensor]:
    """What is deployed: everything but the teacher's own parameters and the unimportant weights."""
    state = {k: v for k, v in model.state_dict().items() if ".teacher." not in k}
    for name, module in model.named_modules():
        if isinstance(module, PQKLayer):
            state[f"{name}.weight"] = module.weight.detach() * module.weight_mask
    return state


def test_without_kl_the_student_goes_on_as_in_phase_1_bit_for_bit() -> None:
    with_teacher = trained(PQKConfig(**{**CONFIG.to_dict(), "kd_weight": 0.0}))
    without = trained(PQKConfig(**{**CONFIG.to_dict(), "teacher": False}))
    mine, control = student_state(with_teacher), student_state(without)
    assert mine.keys() == control.keys()
    for name in mine:
        assert torch.equal(mine[name], control[name]), name
    teacher_moved = with_teacher.conv2.weight[~with_teacher.conv2.weight_mask]
    assert not torch.equal(teacher_moved, without.conv2.weight[~without.conv2.weight_mask])


def test_kl_changes_the_student() -> None:
    with_kl, without = (
        student_state(trained()),
        student_state(trained(PQKConfig(**{**CONFIG.to_dict(), "teacher": False}))),
    )
    assert not torch.equal(with_kl["conv2.weight"], without["conv2.weight"])


def test_teacher_begins_phase_2_as_a_copy() -> None:
    model = trained(steps=CONFIG.phase1_steps)
    assert model.pqk.phase == 2
    assert torch.equal(model.bn1.teacher.running_mean, model.bn1.running_mean)
    assert torch.equal(model.fc.teacher.weight, model.fc.weight)
    assert model.bn1.teacher.running_mean is not model.bn1.running_mean


EARLY = PQKConfig(**{**CONFIG.to_dict(), "teacher_start": 0.4})


def test_an_early_teacher_begins_as_a_copy_and_then_moves_what_is_pruned() -> None:
    begin = EARLY.teacher_start_step
    assert EARLY.float_steps < begin < EARLY.ramp_end_step < EARLY.phase1_steps
    model = prepared(EARLY)
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        layers = model.pqk.prunable_layers()
        masks = [layer.weight_mask.clone() for layer in layers]
        before = [layer.weight.detach().clone() for layer in layers]
        assert model.pqk.teaching == (step >= begin)
        train_step(model, optimizer, step)
        pruned = any(not mask.all() for mask in masks)
        moved = any(
            bool((layer.weight.detach()[~mask] != old[~mask]).any())
            for layer, mask, old in zip(layers, masks, before, strict=True)
        )
        assert moved == (pruned and step >= begin)
        assert ("kd" in model.pqk.metrics()) == (step >= begin)
        assert model.pqk.phase == (1 if step + 1 < EARLY.phase1_steps else 2)
        if step + 1 == begin:
            assert torch.equal(model.bn1.teacher.running_mean, model.bn1.running_mean)
            assert torch.equal(model.fc.teacher.weight, model.fc.weight)
        if step >= EARLY.phase1_steps:
            assert all(torch.equal(layer.weight_mask, mask) for layer, mask in zip(layers, masks, strict=True))
    assert model.pqk.sparsity == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("teacher_weights", ["float", "quantized"])
@pytest.mark.parametrize(("config", "steps", "phase"), [(CONFIG, STEPS - 4, 2), (EARLY, EARLY.phase1_steps - 2, 1)])
def test_disjoint_routing(config: PQKConfig, steps: int, phase: int, teacher_weights: str) -> None:
    model = trained(PQKConfig(**{**config.to_dict(), "teacher_weights": teacher_weights}), steps)
    assert model.pqk.phase == phase
    x, y = batch(99)
    student = nn.functional.cross_entropy(model.run(x, Role.STUDENT), y)
    teacher = nn.functional.cross_entropy(model.run(x, Role.TEACHER), y)
    for layer, of_student, of_teacher in zip(
        model.pqk.prunable_layers(), gradients(model, student), gradients(model, teacher), strict=True
    ):
        mask = layer.weight_mask
        assert not of_student[~mask].any()
        assert of_student[mask].any()
        assert not of_teacher[mask].any()
        assert of_teacher[~mask].any()


def test_what_an_early_teacher_moved_may_come_back() -> None:
    """Masks grow by magnitude alone: a pruned weight returns only where the teacher's loss has made it large."""

    def returned(config: PQKConfig) -> int:
        model = prepared(config)
        optimizer = optimizer_of(model)
        count = 0
        for step in range(config.phase1_steps):
            before = [layer.weight_mask.clone() for layer in model.pqk.prunable_layers()]
            train_step(model, optimizer, step)
            after = [layer.weight_mask for layer in model.pqk.prunable_layers()]
            count += sum(int((new & ~old).sum()) for new, old in zip(after, before, strict=True))
        return count

    assert returned(EARLY) > returned(CONFIG)


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({}, 16),
        ({"teacher_start": 0.0}, 2),
        ({"teacher_start": 0.0, "warmup_fraction": 0.0}, 0),
        ({"teacher_start": 0.5}, 8),
        ({"teacher_start": 0.51}, 9),
        ({"teacher_start": 0.2, "float_fraction": 0.5}, 8),
        ({"phase1_fraction": 1.0}, 32),
        ({"phase1_fraction": 1.0, "teacher_start": 0.25}, 8),
    ],
)
def test_where_the_teacher_begins(change: dict[str, float], step: int) -> None:
    config = PQKConfig(**{**CONFIG.to_dict(), **change})
    assert config.teacher_start_step == step
    assert prepared(config).pqk.teaching == (step == 0)


def test_pruned_weights_are_integer_zero_in_the_graph() -> None:
    model = trained()
    nodes = {node.name: node for node in lower(model).nodes}
    for name in ("conv1", "conv2"):
        mask = model.get_submodule(name).weight_mask.numpy()
        codes = nodes[name].tensors["weight"]
        assert not codes[~mask].any()
        assert (codes[mask] != 0).mean() > 0.8


def test_training_lowers_the_loss() -> None:
    model = prepared(PQKConfig(**{**CONFIG.to_dict(), "total_steps": 150}))
    optimizer = optimizer_of(model)
    losses = [float(train_step(model, optimizer, step)) for step in range(75)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("config", [CONFIG, EARLY], ids=["published", "early"])
@pytest.mark.parametrize("stop", [1, 5, 11, 20])
def test_state_dict_resumes_bit_for_bit(stop: int, config: PQKConfig) -> None:
    whole = trained(config)
    model = prepared(config)
    optimizer = optimizer_of(model)
    torch.manual_seed(1)
    for step in range(stop):
        train_step(model, optimizer, step)
    random_state = torch.get_rng_state()
    again = prepared(config)
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    second = optimizer_of(again)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.set_rng_state(random_state)
    for step in range(stop, STEPS):
        train_step(again, second, step)
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_deepcopy_trains_on_its_own() -> None:
    model = trained(steps=8)
    clone = copy.deepcopy(model)
    before = model.conv1.weight.detach().clone()
    train_step(clone, optimizer_of(clone), 3)
    assert clone.pqk.global_step == 9
    assert model.pqk.global_step == 8
    assert torch.equal(model.conv1.weight, before)
    assert not torch.equal(clone.conv1.weight, before)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_norm": "shared"},
        {"kl_direction": "two_way"},
        {"step_size": "freeze"},
        {"ranking": "per_layer"},
        {"granularity": "filter", "sparsity": 0.5},
        {"granularity": "2:4", "sparsity": 0.5},
        {"granularity": "1x4"},
        {"kd_warmup_fraction": 0.5},
        {"teacher_start": 0.2},
        {"teacher_start": 0.0, "warmup_fraction": 0.0},
        {"teacher_start": 0.2, "step_size": "freeze", "batch_norm": "shared"},
        {"teacher_start": 0.2, "routing": "shared", "teacher_weights": "quantized"},
        {"weight_bits": 4, "act_bits": 4},
        {"prune_linear": True},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_switch_trains_and_evaluates(change: dict[str, object]) -> None:
    model = trained(PQKConfig(**{**CONFIG.to_dict(), **change}))
    x, _ = batch(7)
    logits = model.eval()(x)
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


def test_frozen_step_sizes_stay() -> None:
    config = PQKConfig(**{**CONFIG.to_dict(), "step_size": "freeze"})
    model = prepared(config)
    optimizer = optimizer_of(model)
    for step in range(config.phase1_steps):
        train_step(model, optimizer, step)
    before = model.conv1.weight_scale.detach().clone()
    for step in range(config.phase1_steps, STEPS):
        train_step(model, optimizer, step)
    assert torch.equal(model.conv1.weight_scale, before)


def test_loss_needs_training_mode() -> None:
    model = prepared().eval()
    with pytest.raises(RuntimeError, match="training mode"):
        model.pqk.loss(*batch(0))
