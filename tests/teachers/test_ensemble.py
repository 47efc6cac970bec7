"""Who is drawn, what is averaged, and that a draw depends on seed and step alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from pqk_ext.nn import NetworkOutput
from pqk_ext.teachers import FloatTeacher
from pqk_ext.teachers.ensemble import AVERAGES, EnsembleTeacher


class Fixed:
    """Says the same each time, and counts how often it was asked."""

    def __init__(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        self.logits = torch.randn(5, 4, generator=generator, dtype=torch.float64) * 3
        self.features = (torch.full((5, 2, 3, 3), float(number)),)
        self.calls = 0

    def __call__(self, x: Tensor, step: int) -> NetworkOutput:
        self.calls += 1
        return NetworkOutput(self.logits, self.features)


X = torch.zeros(5, 1)


@pytest.mark.parametrize("average", AVERAGES)
def test_draws_depend_on_seed_and_step_alone(average: str) -> None:
    def ensemble(seed: int) -> EnsembleTeacher:
        return EnsembleTeacher([Fixed(i) for i in range(3)], seed=seed, average=average)  # type: ignore[arg-type]

    forwards, backwards = ensemble(3), ensemble(3)
    draws = [forwards.draw(step) for step in range(50)]
    assert [backwards.draw(step) for step in reversed(range(50))] == draws[::-1]
    assert [ensemble(4).draw(step) for step in range(50)] != draws
    assert [ensemble(2**63 - 1).draw(step).weights for step in range(2)]
    for draw in draws:
        assert sum(draw.weights) == pytest.approx(1)
        assert draw.weights[draw.features_from] > 0


def test_subsets_are_uniform_and_never_empty() -> None:
    ensemble = EnsembleTeacher([Fixed(i) for i in range(3)], seed=1)
    draws = [ensemble.draw(step) for step in range(2100)]
    subsets = Counter(tuple(weight > 0 for weight in draw.weights) for draw in draws)
    assert len(subsets) == 7
    # 300 expected, standard deviation 16.
    assert all(220 < count < 380 for count in subsets.values())
    for draw in draws:
        drawn = [weight for weight in draw.weights if weight > 0]
        assert drawn == pytest.approx([1 / len(drawn)] * len(drawn))
    sources = Counter(draw.features_from for draw in draws)
    assert all(600 < sources[member] < 800 for member in range(3))


def test_the_mean_is_always_the_same_and_weights_are_any() -> None:
    members = [Fixed(i) for i in range(3)]
    mean = EnsembleTeacher(members, seed=1, average="mean")
    assert {mean.draw(step).weights for step in range(20)} == {(1 / 3, 1 / 3, 1 / 3)}
    weights = EnsembleTeacher(members, seed=1, average="weights")
    firsts = torch.tensor([weights.draw(step).weights[0] for step in range(2000)])
    # Uniform on the simplex: a marginal has mean 1/3 and standard deviation sqrt(1/18).
    assert float(firsts.mean()) == pytest.approx(1 / 3, abs=0.02)
    assert float(firsts.std()) == pytest.approx((1 / 18) ** 0.5, abs=0.02)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_probabilities_are_averaged(average: str, temperature: float) -> None:
    members = [Fixed(i) for i in range(3)]
    ensemble = EnsembleTeacher(members, seed=7, average=average, temperature=temperature)  # type: ignore[arg-type]
    for step in range(10):
        weights = ensemble.draw(step).weights
        expected = sum(w * (m.logits / temperature).softmax(1) for w, m in zip(weights, members, strict=True))
        told = ensemble(X, step).logits
        torch.testing.assert_close((told / temperature).softmax(1), expected)
        assert told.dtype == torch.float64


def test_extreme_logits_stay_finite() -> None:
    members = [Fixed(i) for i in range(2)]
    members[0].logits = torch.full((5, 4), -1e4).index_fill_(1, torch.tensor([0]), 1e4)
    members[1].logits = members[0].logits.roll(1, 1)
    told = EnsembleTeacher(members, seed=0, average="mean")(X, 0).logits
    assert told.isfinite().all()
    torch.testing.assert_close(told.softmax(1)[0], torch.tensor([0.5, 0.5, 0.0, 0.0]))


def test_who_was_not_drawn_computes_nothing() -> None:
    members = [Fixed(i) for i in range(3)]
    ensemble = EnsembleTeacher(members, seed=5)
    for step in range(30):
        before = [member.calls for member in members]
        ensemble(X, step)
        asked = [member.calls - calls for member, calls in zip(members, before, strict=True)]
        assert asked == [int(weight > 0) for weight in ensemble.draw(step).weights]


def test_features_come_from_one_member() -> None:
    members = [Fixed(i) for i in range(3)]
    drawn, first = (EnsembleTeacher(members, seed=5, features=word) for word in ("drawn", "first"))  # type: ignore[arg-type]
    for step in range(30):
        assert drawn(X, step).features is members[drawn.draw(step).features_from].features
        assert first(X, step).features is members[0].features
        # Also where member 0 has no weight, which is the case at some of these steps.
        assert first.draw(step).weights == drawn.draw(step).weights
    assert any(first.draw(step).weights[0] == 0 for step in range(30))


def test_an_ensemble_of_one_is_that_teacher() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(8, 1, 6, 6)
    teacher = FloatTeacher(network, x, taps=["0"])
    alone = teacher(x, 0)
    told = EnsembleTeacher([teacher], seed=0)(x, 3)
    torch.testing.assert_close(told.logits.softmax(1), alone.logits.softmax(1))
    assert not told.logits.requires_grad
    assert len(told.features) == 1
    assert torch.equal(told.features[0], alone.features[0])


def test_bad_arguments() -> None:
    one = [Fixed(0)]
    for words, message in [
        ({"members": []}, "members: expected 1 to 62 teachers, got 0"),
        ({"average": "median"}, "average: expected one of subset, weights, mean, got 'median'"),
        ({"features": "all"}, "features: expected drawn or first, got 'all'"),
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
    ]:
        arguments = {"members": one, "seed": 0} | words
        with pytest.raises(ValueError, match=message):
            EnsembleTeacher(**arguments)  # type: ignore[arg-type]
