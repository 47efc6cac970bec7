"""The teacher's backward pass before the student's forward: the same gradients, and no graph kept."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from pqk_ext import phases
from pqk_ext.config import PQKConfig
from pqk_ext.early_gradient import can_take_early
from pqk_ext.preparation import PreparedModel, prepare

from .networks import SmallNet, batch

CONFIG = PQKConfig(sparsity=0.75, total_steps=8, mask_update_interval=2, phase1_fraction=0.5)


def in_phase_2(config: PQKConfig = CONFIG) -> PreparedModel:
    torch.manual_seed(0)
    model = prepare(SmallNet(), config, example_inputs=batch(0)[0])
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.05))
    for step in range(5):
        model.pqk.loss(*batch(step)).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
    assert model.pqk.phase == 2
    return model


def gradients(model: PreparedModel, factor: float = 1.0) -> dict[str, Tensor]:
    torch.manual_seed(7)
    (factor * model.pqk.loss(*batch(9))).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def graph_nodes(loss: Tensor) -> list[str]:
    names, seen, waiting = [], set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names.append(node.name())
        waiting += [parent for parent, _ in node.next_functions]
    return names


@pytest.mark.parametrize("routing", ["disjoint", "shared"])
@pytest.mark.parametrize("teacher_weights", ["float", "quantized"])
def test_gradients_and_random_state_are_those_of_one_graph(
    routing: str, teacher_weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PQKConfig(**{**CONFIG.to_dict(), "routing": routing, "teacher_weights": teacher_weights})
    model = in_phase_2(config)
    early = gradients(model)
    after_early = torch.get_rng_state()
    model.zero_grad()
    monkeypatch.setattr(phases, "can_take_early", lambda loss: False)
    joint = gradients(model)
    assert torch.equal(after_early, torch.get_rng_state())
    assert early.keys() == joint.keys()
    assert any(".teacher." in name for name in early)
    for name in early:
        if routing == "disjoint":
            assert torch.equal(early[name], joint[name]), name
        else:  # the two networks' gradients are then added in another order
            torch.testing.assert_close(early[name], joint[name])


def test_the_teachers_gradients_follow_the_factor_of_the_loss() -> None:
    whole, quarter = gradients(in_phase_2()), gradients(in_phase_2(), 0.25)
    for name in whole:
        assert torch.equal(whole[name] * 0.25, quarter[name]), name


def test_backward_twice_adds_twice() -> None:
    model = in_phase_2()
    loss = model.pqk.loss(*batch(9))
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    loss.backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.equal(p.grad, 2 * once[name]), name


def test_only_the_students_graph_is_kept() -> None:
    def convolutions(config: PQKConfig) -> int:
        return sum("Conv" in name for name in graph_nodes(in_phase_2(config).pqk.loss(*batch(9))))

    assert convolutions(CONFIG) == 2
    assert convolutions(dataclasses.replace(CONFIG, kl_direction="two_way")) == 4


def test_float16_autocast_takes_one_graph() -> None:
    """Its gradients may vanish before a scaled loss reaches them."""
    loss = torch.zeros((), requires_grad=True)
    for dtype, early in ((torch.float16, False), (torch.bfloat16, True)):
        with torch.autocast("cpu", dtype=dtype):
            assert can_take_early(loss) is early


def test_bfloat16_autocast_trains() -> None:
    model = in_phase_2()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.pqk.loss(*batch(9))
    assert any("_Early" in name for name in graph_nodes(loss))
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_without_gradients_it_is_just_the_loss() -> None:
    model = in_phase_2()
    with torch.no_grad():
        torch.manual_seed(3)
        value = model.pqk.loss(*batch(9))
    torch.manual_seed(3)
    assert not value.requires_grad
    assert torch.equal(value, model.pqk.loss(*batch(9)).detach())
