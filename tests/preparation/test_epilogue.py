"""What follows a layer gives the same fused and link by link, moves running statistics, and honours hooks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pqk_ext.nn import ActivationQuantizer, PQKBatchNorm1d, PQKBatchNorm2d, Role
from pqk_ext.nn.epilogue import epilogue


def quantizer() -> ActivationQuantizer:
    made = ActivationQuantizer(bits=8, nonnegative=True)
    made.scale.data.fill_(0.02)
    return made


def one_by_one(x: Tensor, residual: Tensor | None, norm: Any, fake: Any, role: Role) -> Tensor:
    value = norm(x, role)
    return fake(torch.relu(value if residual is None else value + residual))


SETTINGS: list[dict[str, Any]] = [{}, {"momentum": None}, {"affine": False, "eps": 0.01}, {"momentum": 1.0}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("role", [Role.STUDENT, Role.TEACHER])
def test_equals_the_modules_one_by_one(settings: dict[str, Any], role: Role) -> None:
    torch.manual_seed(0)
    fused, plain = (PQKBatchNorm2d(nn.BatchNorm2d(6, **settings), separate=True) for _ in range(2))
    ours, theirs = quantizer(), quantizer()
    for training in (True, True, False):  # evaluated between training steps, as frozen batch norms are
        fused.train(training)
        plain.train(training)
        x = torch.randn(4, 6, 5, 7) * 3 + 1
        residual = torch.rand(4, 6, 5, 7)
        a, b = (x.clone().requires_grad_() for _ in range(2))
        found, expected = (
            epilogue(a, residual, fused, "relu", ours, role),
            one_by_one(b, residual, plain, theirs, role),
        )
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
        for (name, value), other in zip(fused.state_dict().items(), plain.state_dict().values(), strict=True):
            torch.testing.assert_close(value, other, msg=name)
        for p, q in zip(fused.parameters(), plain.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(ours.scale.grad, theirs.scale.grad, rtol=1e-4, atol=1e-4)


def test_batch_norm_1d() -> None:
    fused = PQKBatchNorm1d(nn.BatchNorm1d(6), separate=False)
    plain = copy.deepcopy(fused)
    x = torch.randn(9, 6)
    torch.testing.assert_close(epilogue(x, None, fused, None, None, Role.STUDENT), plain(x))
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())


@pytest.mark.parametrize("where", ["norm", "teacher", "quantizer"])
def test_hooks_are_called(where: str) -> None:
    norm, fake = PQKBatchNorm2d(nn.BatchNorm2d(3), separate=True), quantizer()
    seen = []
    module = {"norm": norm, "teacher": norm.teacher, "quantizer": fake}[where]
    module.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(2, 3, 4, 4)
    role = Role.TEACHER if where == "teacher" else Role.STUDENT
    output = epilogue(x, None, norm, "relu", fake, role)
    assert len(seen) == 1
    plain = epilogue(x, None, PQKBatchNorm2d(nn.BatchNorm2d(3), separate=True), "relu", quantizer(), role)
    torch.testing.assert_close(output, plain)


def test_derived_batch_norms_are_called() -> None:
    class Doubled(PQKBatchNorm2d):
        def forward(self, input: Tensor, role: Role = Role.STUDENT) -> Tensor:
            return 2 * super().forward(input, role)

    x = torch.randn(2, 3, 4, 4)
    output = epilogue(x, None, Doubled(nn.BatchNorm2d(3), separate=False), None, None, Role.STUDENT)
    torch.testing.assert_close(output, 2 * nn.BatchNorm2d(3)(x))


def test_one_value_per_channel() -> None:
    norm = PQKBatchNorm2d(nn.BatchNorm2d(3), separate=False)
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        epilogue(torch.ones(1, 3, 1, 1), None, norm, "relu", None, Role.STUDENT)
    assert norm.num_batches_tracked == 0
