"""Every model of the zoo: prepared, trained, compiled in one graph, exported."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pqk_ext import models
from pqk_ext.config import PQKConfig
from pqk_ext.nn import Role
from pqk_ext.preparation import PreparedModel, prepare

CONFIG = PQKConfig(sparsity=0.5, total_steps=2, warmup_fraction=0.0, mask_update_interval=1, kd_warmup_fraction=0.0)
SMALL = ("resnet8",)


def inputs_of(name: str, size: int) -> Tensor:
    return torch.randn(size, *models.input_shape(name), generator=torch.Generator().manual_seed(size))


def in_phase_2(name: str) -> PreparedModel:
    torch.manual_seed(0)
    x = inputs_of(name, 4)
    model = prepare(models.create(name, num_classes=7), CONFIG, example_inputs=x)
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=1e-3))
    for _ in range(2):
        before = model.pqk.phase
        model.pqk.loss(x, torch.arange(4)).backward()
        # Deep networks without training, whose last images are of one pixel, have gradients of any size.
        torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
        assert before == 1 or model.pqk.phase == 2
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def with_nudged_norms(model: PreparedModel, side: float) -> PreparedModel:
    """A copy in which scales and shifts of batch norms are the next float32 numbers."""
    nudged = copy.deepcopy(model)
    with torch.no_grad():
        for module in nudged.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                for parameter in (module.weight, module.bias):
                    parameter.copy_(torch.nextafter(parameter, parameter + side))
    return nudged


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALL else pytest.mark.long) for name in models.names()]
)
def test_a_model_trains_compiles_and_exports(name: str) -> None:
    model = in_phase_2(name)
    assert model.pqk.sparsity > 0.4
    x, y = inputs_of(name, 4), torch.arange(4)
    eager = copy.deepcopy(model)
    torch._dynamo.reset()
    model.compile(backend="aot_eager")
    for role in (Role.STUDENT, Role.TEACHER):
        torch.testing.assert_close(model(x, role), eager(x, role), rtol=1e-3, atol=1e-3)
    loss, expected = model.pqk.loss(x, y), eager.pqk.loss(x, y)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)
    loss.backward()
    expected.backward()
    for (path, parameter), other in zip(model.named_parameters(), eager.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), path
        if other.grad is not None and torch.isfinite(other.grad).all():
            assert torch.isfinite(parameter.grad).all(), path
    for layer, other in zip(model.pqk.layers(), eager.pqk.layers(), strict=True):
        assert layer.weight_scale.grad.any() == other.weight_scale.grad.any()
    student = torch.export.export(eager, (x,))
    state = copy.deepcopy(eager)
    # The exported graph adds in another order, and codes on the edge round apart: in deep networks at many places.
    # Those without training make any size of that, as they do of the last bits of their batch norms.
    exported, run = student.module()(x), state(x)
    moved = max((with_nudged_norms(eager, side)(x) - run).norm() for side in (1.0, -1.0))
    assert (exported - run).norm() < max((1e-3 if name in SMALL else 5e-2) * run.norm(), 4 * moved)
    eager.eval()
    program = torch.export.export(eager, (x,), dynamic_shapes=({0: torch.export.Dim("samples", min=2)},))
    other = inputs_of(name, 3)
    assert torch.equal(program.module()(other), eager(other))
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(other), eager(other))
