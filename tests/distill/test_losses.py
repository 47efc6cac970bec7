"""What holds for every registered distillation loss, and each loss against its formula in float64."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from pqk_ext import distill
from pqk_ext.distill.kl import kl
from pqk_ext.distill.mse import mse

pytestmark = pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 20.0])
all_losses = pytest.mark.parametrize("name", sorted(distill.LOSSES))

EXTREMES = [0.0, 1e4, -1e4, 88.8, -104.0, 1e15, -1e15]


def _logits(rows: int = 16, classes: int = 10, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * classes)
    student, teacher = (torch.randn(rows, classes, generator=generator) * 4 for _ in range(2))
    return student.to(dtype), teacher.to(dtype)


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def test_there_are_losses(temperature: float) -> None:
    assert set(distill.LOSSES) >= {"kl", "mse"}


def test_kl_formula(temperature: float) -> None:
    student, teacher = _logits(dtype=torch.float64)
    p, q = _softmax(teacher.numpy() / temperature), _softmax(student.numpy() / temperature)
    expected = temperature**2 * float((p * (np.log(p) - np.log(q))).sum(axis=1).mean())
    assert float(kl(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(kl(student.float(), teacher.float(), temperature)) == pytest.approx(expected, rel=1e-5)


def test_kl_gradient_is_the_difference_of_the_softened_probabilities(temperature: float) -> None:
    student, teacher = _logits(dtype=torch.float64)
    student.requires_grad_()
    kl(student, teacher, temperature).backward()
    p, q = _softmax(teacher.numpy() / temperature), _softmax(student.detach().numpy() / temperature)
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), temperature * (q - p) / len(p), rtol=1e-9, atol=1e-15)


def test_mse_is_the_limit_of_kl_at_high_temperature(temperature: float) -> None:
    student, teacher = _logits(dtype=torch.float64)
    assert float(mse(student, teacher, temperature)) == pytest.approx(float(kl(student, teacher, 1e5)), rel=1e-3)


@all_losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_non_negative_and_zero_only_at_equality(name: str, temperature: float, dtype: torch.dtype) -> None:
    loss = distill.LOSSES[name]
    student, teacher = _logits(dtype=dtype)
    value = loss(student, teacher, temperature)
    assert value.shape == ()
    assert value.dtype == dtype
    assert float(value) > 0
    assert float(loss(teacher, teacher, temperature)) == 0


@all_losses
def test_adding_a_constant_to_the_logits_changes_nothing(name: str, temperature: float) -> None:
    student, teacher = _logits(dtype=torch.float64)
    loss = distill.LOSSES[name]
    torch.testing.assert_close(loss(student + 3, teacher - 5, temperature), loss(student, teacher, temperature))


@all_losses
def test_teacher_gets_no_gradient(name: str, temperature: float) -> None:
    student, teacher = _logits()
    student.requires_grad_()
    teacher.requires_grad_()
    distill.LOSSES[name](student, teacher, temperature).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert float(student.grad.abs().sum()) > 0


@all_losses
def test_gradient_by_finite_differences(name: str, temperature: float) -> None:
    student, teacher = _logits(3, 4, torch.float64)
    assert torch.autograd.gradcheck(lambda s: distill.LOSSES[name](s, teacher, temperature), student.requires_grad_())


@all_losses
def test_finite_at_extreme_logits(name: str, temperature: float) -> None:
    pairs = [(a, b) for a in EXTREMES for b in EXTREMES]
    student = torch.tensor([[a, b, 0.0] for a, b in pairs], requires_grad=True)
    teacher = torch.tensor([[b, 0.0, a] for a, b in pairs])
    loss = distill.LOSSES[name](student, teacher, temperature)
    loss.backward()
    assert math.isfinite(loss.item())
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    assert loss.item() >= 0


@all_losses
def test_positions_count_as_samples(name: str, temperature: float) -> None:
    student, teacher = (torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(i)) for i in range(2))
    rows = (logits.permute(0, 2, 3, 1).reshape(-1, 5) for logits in (student, teacher))
    got = distill.LOSSES[name](student, teacher, temperature)
    torch.testing.assert_close(got, distill.LOSSES[name](*rows, temperature))


@all_losses
@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 3), (2, 4), r"teacher_logits: expected the student's shape \(2, 3\), got \(2, 4\)"),
        ((2, 3), (1, 3), "teacher_logits"),
        ((3,), (3,), r"student_logits: expected a non-empty tensor of shape \(batch, classes, ...\)"),
        ((0, 3), (0, 3), "student_logits"),
    ],
)
def test_bad_shapes_are_refused(
    name: str, temperature: float, student: tuple[int, ...], teacher: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        distill.LOSSES[name](torch.zeros(student), torch.zeros(teacher), temperature)


@all_losses
def test_bad_temperature_is_refused(name: str, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature: expected a positive number"):
        distill.LOSSES[name](*_logits(), -temperature)


def test_a_new_loss_is_one_function(temperature: float) -> None:
    @distill.distillation_loss
    def nothing(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        return student_logits.sum() * 0

    try:
        assert distill.LOSSES["nothing"] is nothing
        with pytest.raises(ValueError, match="'nothing' is registered already"):
            distill.distillation_loss(nothing)
    finally:
        del distill.LOSSES["nothing"]
