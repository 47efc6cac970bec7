"""The loss of activation boundaries against its two-sided formula, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pqk_ext.distill.activation_boundary import activation_boundary, activation_similarity

SHAPES = [(3, 4, 6, 5), (3, 6, 3, 2), (3, 8, 2, 1)]


def features(seed: int, zeros: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [1.5 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [feature * (feature > -0.5) if zeros else feature for feature in drawn]


def published(student: list[Tensor], teacher: list[Tensor], margin: float) -> list[float]:
    """Sums over the elements of each stage, by the indicator functions of the paper, an element at a time."""
    sums = []
    for own, other in zip(student, teacher, strict=True):
        total = 0.0
        for s, t in zip(own.flatten().tolist(), other.flatten().tolist(), strict=True):
            if t <= 0 and s > -margin:
                total += (s + margin) ** 2
            if t > 0 and s <= margin:
                total += (s - margin) ** 2
        sums.append(total)
    return sums


@pytest.mark.parametrize("margin", [1.0, 0.25])
def test_the_formula_of_the_paper(margin: float) -> None:
    student, teacher = features(1), features(2, zeros=True)
    assert any(bool((feature == 0).any()) for feature in teacher)
    first, second, third = published(student, teacher, margin)
    expected = (third + second / 2 + first / 4) / 3
    found = activation_boundary(student, teacher, margin=margin, per_element=False)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    counts = [math.prod(shape) for shape in SHAPES]
    expected = third / counts[2] + second / counts[1] / 2 + first / counts[0] / 4
    assert float(activation_boundary(student, teacher, margin=margin)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("per_element", [True, False])
def test_gradient(per_element: bool) -> None:
    student, teacher = [feature.requires_grad_() for feature in features(1)], features(2)

    def loss(*own: Tensor) -> Tensor:
        return activation_boundary(own, teacher, per_element=per_element)

    assert torch.autograd.gradcheck(loss, tuple(student))


def test_nothing_is_left_where_every_neuron_is_beyond_the_margin_on_the_teachers_side() -> None:
    teacher = features(2, zeros=True)
    right = [torch.where(feature > 0, 1.0, -1.0).double() for feature in teacher]
    assert float(activation_boundary(right, teacher)) == 0
    assert float(activation_boundary([3 * feature for feature in right], teacher)) == 0
    assert activation_similarity(right, teacher) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("stage", range(3))
@pytest.mark.parametrize("teacher_is_on", [True, False])
def test_one_neuron_short_of_the_margin_is_seen(stage: int, teacher_is_on: bool) -> None:
    teacher = features(2, zeros=True)
    student = [torch.where(feature > 0, 1.0, -1.0).double() for feature in teacher]
    at = tuple(((teacher[stage] > 0) == teacher_is_on).nonzero()[0].tolist())
    student[stage][at] *= 0.9
    assert float(activation_boundary(student, teacher)) > 0
    student[stage][at] *= -1
    assert activation_similarity(student, teacher)[stage] == pytest.approx(1 - 1 / student[stage].numel())


def test_the_size_of_the_teachers_values_does_not_matter() -> None:
    student, teacher = features(1), features(2)
    louder = [100 * feature for feature in teacher]
    assert float(activation_boundary(student, louder)) == float(activation_boundary(student, teacher))


def test_zero_is_off() -> None:
    zero, on, off = (torch.full((1, 1, 1, 1), value) for value in (0.0, 2.0, -2.0))
    assert float(activation_boundary([on], [zero])) == 9
    assert float(activation_boundary([off], [zero])) == 0
    assert activation_similarity([zero], [off]) == [1.0]
    assert activation_similarity([zero], [on]) == [0.0]


def test_similarity_is_one_less_the_share_of_different_signs() -> None:
    student, teacher = features(1), features(2, zeros=True)
    for found, own, other in zip(activation_similarity(student, teacher), student, teacher, strict=True):
        assert found == pytest.approx(1 - np.logical_xor(own.numpy() > 0, other.numpy() > 0).mean(), abs=1e-12)


def test_training_on_it_makes_the_activations_alike() -> None:
    torch.manual_seed(3)
    x = torch.randn(64, 5, 4, 4)
    body = lambda: nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.BatchNorm2d(8))  # noqa: E731
    teacher, student = body().eval(), body()
    target = [teacher(x).detach()]
    before = activation_similarity([student(x)], target)[0]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for _ in range(60):
        loss = activation_boundary([student(x)], target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert activation_similarity([student(x)], target)[0] > max(0.9, before + 0.2)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.inf, math.nan])
def test_a_wrong_margin_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="margin: expected a number above 0"):
        activation_boundary(features(1), features(2), margin=margin)
