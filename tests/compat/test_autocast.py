"""Mixed precision: convolutions in bfloat16, step sizes and masks in float32, evaluation exact as ever."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.config import PQKConfig
from pqk_ext.nn import PQKLayer, Role
from pqk_ext.preparation import prepare

from ..networks import SmallNet, batch
from .stages import STAGES, at, gradients, optimizer_of

DTYPES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_layers_compute_in_the_small_type_and_parameters_stay_float32(stage: str, dtype: torch.dtype) -> None:
    model = at(stage)
    seen: dict[str, torch.dtype] = {}
    for name, module in model.named_modules():
        if isinstance(module, PQKLayer):
            module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.dtype}))
    with torch.autocast("cpu", dtype=dtype):
        loss = model.pqk.loss(*batch(3))
    loss.backward()
    assert set(seen.values()) == {dtype}
    assert len(seen) == 3
    assert loss.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients(model).values()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.conv1.weight_mask.dtype == torch.bool
    expected = at(stage)
    torch.testing.assert_close(loss, expected.pqk.loss(*batch(3)), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_with_a_gradient_scaler_lowers_the_loss(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = PQKConfig(sparsity=0.75, total_steps=60, mask_update_interval=4)
    model = prepare(SmallNet(), config, example_inputs=batch(0)[0])
    optimizer, scaler = optimizer_of(model), torch.amp.GradScaler("cpu", init_scale=256.0)
    losses = []
    for step in range(config.total_steps):
        with torch.autocast("cpu", dtype=dtype):
            loss = model.pqk.loss(*batch(step))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()
        model.pqk.step()
        optimizer.zero_grad()
        losses.append(model.pqk.metrics()["student_ce"])
    assert model.pqk.phase == 2
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_scaled_loss_gives_scaled_gradients_of_the_teacher_too() -> None:
    plain, scaled = at("phase 2"), at("phase 2")
    plain.pqk.loss(*batch(3)).backward()
    (64.0 * scaled.pqk.loss(*batch(3))).backward()
    expected = {name: 64.0 * gradient for name, gradient in gradients(plain).items()}
    assert any(".teacher." in name for name in expected)
    torch.testing.assert_close(gradients(scaled), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_evaluation_is_exact_under_autocast(dtype: torch.dtype) -> None:
    model = at("phase 2").eval()
    x, _ = batch(11)
    expected = model(x)
    with torch.autocast("cpu", dtype=dtype):
        logits: Tensor = model(x)
        under_export = torch.export.export(model, (x,)).module()(x)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)
    assert torch.equal(under_export, expected)


def test_compiled_training_under_autocast() -> None:
    eager, compiled = at("phase 2"), at("phase 2")
    torch._dynamo.reset()
    compiled.compile(backend="aot_eager")
    x, y = batch(3)
    for role in Role:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, actual = (F.cross_entropy(m(x, role), y) for m in (eager, compiled))
        expected.backward()
        actual.backward()
        torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(gradients(compiled), gradients(eager), rtol=0.1, atol=0.1)
