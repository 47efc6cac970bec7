"""torch.compile: one graph for each role, the numbers of eager mode, nothing compiled again from step to step."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from pqk_ext.nn import Role
from pqk_ext.preparation import PreparedModel

from ..networks import batch
from .stages import CONFIG, STAGES, assert_same_state, at, gradients, optimizer_of, train


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def losses_and_gradients(model: PreparedModel, role: Role) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x, y = batch(5)
    loss = F.cross_entropy(model(x, role), y)
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("batch_norm", ["of the batch", "running"])
@pytest.mark.parametrize("role", Role)
def test_every_role_is_one_graph_with_the_numbers_of_eager_mode(role: Role, batch_norm: str) -> None:
    eager = at("phase 2").train(batch_norm == "of the batch")
    compiled = copy.deepcopy(eager)
    compiled.compile(backend="aot_eager")
    expected, expected_gradients = losses_and_gradients(eager, role)
    actual, actual_gradients = losses_and_gradients(compiled, role)
    torch.testing.assert_close(actual, expected)
    assert actual_gradients.keys() == expected_gradients.keys()
    torch.testing.assert_close(actual_gradients, expected_gradients)
    assert_same_state(compiled, eager)
    for name, layer in (("conv1", compiled.conv1), ("conv2", compiled.conv2)):
        if role is Role.STUDENT:
            assert not actual_gradients[f"{name}.weight"][~layer.weight_mask].any()
            assert actual_gradients[f"{name}.weight_scale"].any()
        if role is Role.PRUNED:
            assert not actual_gradients[f"{name}.weight"][~layer.weight_mask].any()
        if role is Role.TEACHER:
            assert not actual_gradients[f"{name}.weight"][layer.weight_mask].any()
            assert actual_gradients[f"{name}.weight"].any()


def test_all_of_training_compiled_in_place_compiles_each_role_once() -> None:
    eager = at("warm-up")
    compiled = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compiled.compile(backend=counter)
    optimizers = optimizer_of(eager), optimizer_of(compiled)
    for step in range(STAGES["warm-up"], CONFIG.total_steps):
        expected, actual = (train(m, o, step) for m, o in zip((eager, compiled), optimizers, strict=True))
        # The two round apart, and steps carry on what a code that moved by one has changed.
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-4)
    assert compiled.pqk.phase == 2
    assert compiled.pqk.sparsity == pytest.approx(0.75, abs=0.01)
    assert counter.frame_count == len({Role.FLOAT, Role.STUDENT, Role.TEACHER})


@pytest.mark.parametrize("stage", STAGES)
def test_a_compiled_loss_is_one_graph_from_step_to_step(stage: str) -> None:
    model = at(stage)
    optimizer, first = optimizer_of(model), STAGES[stage]
    counter = CompileCounterWithBackend("aot_eager")
    loss_of = torch.compile(model.pqk.loss, fullgraph=True, backend=counter)
    steps = 3 if stage == "warm-up" else 2
    for step in range(first, first + steps):
        x, y = batch(step)
        eager = copy.deepcopy(model)
        expected = eager.pqk.loss(x, y)
        expected.backward()
        loss = loss_of(x, y)
        loss.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
        # Only eager mode changes to channels_last, which rounds apart; step sizes have sums of cancelling terms.
        torch.testing.assert_close(gradients(model), gradients(eager), rtol=1e-3, atol=1e-4)
        assert_same_state(model, eager)
        torch.testing.assert_close(model.pqk.metrics(), eager.pqk.metrics(), rtol=1e-4, atol=1e-4)
        optimizer.step()
        model.pqk.step()
        model.pqk.update_masks()  # in place
        optimizer.zero_grad()
    observes = stage == "warm-up"  # the last step of the warm-up looks at the ranges
    assert counter.frame_count == (2 if observes else 1)


def test_a_compiled_model_compiles_again_for_phases_and_not_for_steps_masks_or_sizes() -> None:
    model = at("warm-up")
    optimizer = optimizer_of(model)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for step in range(STAGES["warm-up"], CONFIG.total_steps):
        x, y = batch(step)
        F.cross_entropy(compiled(x), y).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
    assert model.pqk.phase == 2
    assert counter.frame_count == 2  # float and student
    compiled(batch(0, 12)[0])
    after_a_smaller_batch = counter.frame_count
    for size in (11, 9, 5):
        compiled(batch(0, size)[0])
    assert counter.frame_count == after_a_smaller_batch == 3


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_evaluation_is_exact_and_up_to_date(backend: str) -> None:
    model = at("phase 2").eval()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    x, _ = batch(8)
    before = model(x)
    assert torch.equal(compiled(x), before)
    with torch.no_grad():
        model.conv1.weight.mul_(1.25)
    assert not torch.equal(model(x), before)
    assert torch.equal(compiled(x), model(x))
    model.train()
    train(model, optimizer_of(model), 3)
    assert torch.equal(compiled.eval()(x), model(x))
    assert counter.frame_count == 1
    with pytest.raises(ValueError, match="input must not contain NaN"):
        compiled(torch.full_like(x, torch.nan))


def test_inductor_trains_both_phases() -> None:
    eager = at("phase 1")
    compiled = copy.deepcopy(eager)
    compiled.compile()
    optimizers = optimizer_of(eager), optimizer_of(compiled)
    for step in range(4):
        expected, actual = (train(m, o, step) for m, o in zip((eager, compiled), optimizers, strict=True))
        # The two round apart, and steps carry on what a code that moved by one has changed.
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-4)
    assert compiled.pqk.phase == 2
    x, _ = batch(8)
    assert torch.equal(compiled.eval()(x), copy.deepcopy(compiled)(x))


def test_dropout_of_student_and_teacher_is_that_of_eager_mode() -> None:
    eager = at("phase 2")
    eager.dropout.p = 0.5
    compiled = copy.deepcopy(eager)
    compiled.compile(backend="aot_eager")
    torch.manual_seed(7)
    expected = eager.pqk.loss(*batch(3))
    after = torch.get_rng_state()
    torch.manual_seed(7)
    torch.testing.assert_close(compiled.pqk.loss(*batch(3)), expected)
    assert torch.equal(torch.get_rng_state(), after)


def test_functions_of_torch_func_compile() -> None:
    model = at("phase 2")
    x, y = batch(3)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = torch.func.functional_call(model.eval(), parameters, (x, Role.STUDENT))
        return F.cross_entropy(logits, y)

    expected = torch.func.grad(loss)(parameters)
    actual = torch.compile(torch.func.grad(loss), backend="aot_eager")(parameters)
    torch.testing.assert_close(actual, expected)
