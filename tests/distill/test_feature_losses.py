"""What holds for every registered feature loss, and each loss against its formula written another way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext import distill
from pqk_ext.distill.adapters import Adapters
from pqk_ext.distill.attention import attention, attention_map
from pqk_ext.distill.crosslayer import crosslayer
from pqk_ext.distill.feature_mse import feature_mse
from pqk_ext.distill.fsp import fsp, gramian, gramian_loss

all_losses = pytest.mark.parametrize("name", sorted(distill.FEATURE_LOSSES))
OWN = ("attention", "crosslayer", "feature_mse", "fsp")
SHAPES = [(3, 4, 9, 6), (3, 5, 5, 3), (3, 8, 3, 2)]


def _features(
    seed: int, shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def test_there_are_losses() -> None:
    assert set(distill.FEATURE_LOSSES) >= set(OWN)


@all_losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scalar_of_the_features_type_above_zero(name: str, dtype: torch.dtype) -> None:
    value = distill.FEATURE_LOSSES[name](_features(1, dtype=dtype), _features(2, dtype=dtype))
    assert value.shape == ()
    assert value.dtype == dtype
    assert 0 < float(value) < float("inf")


@all_losses
def test_gradients_reach_the_student_at_every_stage_and_never_the_teacher(name: str) -> None:
    student = [feature.requires_grad_() for feature in _features(1)]
    teacher = [feature.requires_grad_() for feature in _features(2)]
    distill.FEATURE_LOSSES[name](student, teacher).backward()
    assert all(feature.grad is not None and feature.grad.abs().sum() > 0 for feature in student)
    assert all(feature.grad is None for feature in teacher)


@all_losses
def test_the_batch_size_does_not_change_the_size(name: str) -> None:
    student, teacher = _features(1), _features(2)
    repeated = [[torch.cat([feature] * 3) for feature in features] for features in (student, teacher)]
    loss = distill.FEATURE_LOSSES[name]
    torch.testing.assert_close(loss(*repeated), loss(student, teacher))


@all_losses
def test_what_cannot_be_compared_is_refused(name: str) -> None:
    loss, features = distill.FEATURE_LOSSES[name], _features(1)
    with pytest.raises(ValueError, match="teacher_features: expected as many stages"):
        loss(features, features[:2])
    with pytest.raises(ValueError, match=r"teacher_features\[1\]: expected .* got \(2, 5, 5, 3\)"):
        loss(features, [features[0], features[1][:2], features[2]])
    with pytest.raises(ValueError, match=r"student_features\[0\]"):
        loss([features[0].flatten(1), *features[1:]], features)
    with pytest.raises(ValueError, match="student_features: expected"):
        loss([], [])


@pytest.mark.parametrize("name", OWN)
def test_nothing_is_left_where_both_are_equal(name: str) -> None:
    assert float(distill.FEATURE_LOSSES[name](_features(1), _features(1))) == 0


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="'fsp' is registered already"):
        distill.feature_loss(fsp)


# --- Gramians --------------------------------------------------------------------------------------------------------


def test_gramian_is_the_mean_of_the_outer_products() -> None:
    first, second = _features(3, [(2, 4, 5, 3), (2, 6, 5, 3)])
    expected = np.zeros((2, 4, 6))
    for row in range(5):
        for column in range(3):
            a, b = first[:, :, row, column].numpy(), second[:, :, row, column].numpy()
            expected += a[:, :, None] * b[:, None, :] / 15
    np.testing.assert_allclose(gramian(first, second).numpy(), expected, rtol=1e-12, atol=1e-14)
    reference = torch.einsum("bihw,bjhw->bij", first, second) / 15
    torch.testing.assert_close(gramian(first, second), reference)
    torch.testing.assert_close(gramian(second, first), reference.transpose(1, 2))


def test_gramian_knows_nothing_of_the_order_of_the_positions() -> None:
    first, second = _features(4, [(2, 4, 6, 5), (2, 3, 6, 5)])
    order = torch.randperm(30, generator=torch.Generator().manual_seed(5))
    moved = [feature.flatten(2)[:, :, order].unflatten(2, (6, 5)) for feature in (first, second)]
    torch.testing.assert_close(gramian(*moved), gramian(first, second))
    one_moved = gramian(moved[0], second)
    assert (one_moved - gramian(first, second)).abs().max() > 0.01


def test_gramian_of_different_sizes_takes_maxima_of_the_larger_map() -> None:
    first, second = _features(6, [(2, 4, 8, 6), (2, 3, 4, 3)])
    expected = torch.einsum("bihw,bjhw->bij", F.max_pool2d(first, 2), second) / 12
    torch.testing.assert_close(gramian(first, second), expected)
    torch.testing.assert_close(gramian(second, first), expected.transpose(1, 2))
    # Each is the larger one along one side.
    first, second = _features(7, [(2, 4, 8, 3), (2, 3, 4, 6)])
    expected = torch.einsum("bihw,bjhw->bij", F.max_pool2d(first, (2, 1)), F.max_pool2d(second, (1, 2))) / 12
    torch.testing.assert_close(gramian(first, second), expected)


def test_gramian_of_sequences() -> None:
    first, second = _features(8, [(2, 4, 8), (2, 3, 4)])
    expected = torch.einsum("bin,bjn->bij", F.max_pool1d(first, 2), second) / 4
    torch.testing.assert_close(gramian(first, second), expected)


def test_gramian_gradients() -> None:
    first, second = (feature.requires_grad_() for feature in _features(9, [(2, 2, 4, 3), (2, 3, 2, 3)]))
    assert torch.autograd.gradcheck(gramian, (first, second))


def test_gramian_refuses_what_does_not_fit() -> None:
    first, second = _features(10, [(2, 4, 5, 3), (3, 4, 5, 3)])
    with pytest.raises(ValueError, match=r"batch size of first, \(2, 4, 5, 3\), got \(3, 4, 5, 3\)"):
        gramian(first, second)
    with pytest.raises(ValueError, match="expected a map"):
        gramian(first, second[:2].flatten(2))


def _mean_square(student: list[Tensor], teacher: list[Tensor], pairs: list[tuple[int, int]]) -> float:
    terms = []
    for a, b in pairs:
        difference = gramian(student[a], student[b]) - gramian(teacher[a], teacher[b])
        batch, rows, columns = difference.shape
        terms.append(float(difference.square().sum()) / (batch * rows * columns))
    return sum(terms) / len(terms)


def test_fsp_takes_neighbours_and_crosslayer_all_pairs() -> None:
    student, teacher = _features(1), _features(2)
    neighbours, far = [(0, 1), (1, 2)], [(0, 2)]
    assert float(fsp(student, teacher)) == pytest.approx(_mean_square(student, teacher, neighbours), rel=1e-12)
    everything = _mean_square(student, teacher, neighbours + far)
    assert float(crosslayer(student, teacher)) == pytest.approx(everything, rel=1e-12)
    assert float(fsp(student, teacher)) != pytest.approx(everything, rel=1e-3)
    # Of two stages there is one pair.
    assert float(fsp(student[:2], teacher[:2])) == float(crosslayer(student[:2], teacher[:2]))


def test_a_difference_between_far_stages_is_seen_by_crosslayer_alone() -> None:
    """Orthonormal channels at stage 1 hide nothing of stages 0 and 2, whose own product is a new quantity."""
    ones, zero = torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    alternate = torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2)
    student, teacher = [alternate, zero, alternate], [alternate, zero, ones]
    assert float(fsp(student, teacher)) == 0
    assert float(crosslayer(student, teacher)) == pytest.approx(1 / 3)


def test_teacher_maps_may_have_another_size() -> None:
    student = _features(1, [(3, 4, 4, 3), (3, 5, 4, 3), (3, 8, 4, 3)])
    teacher = [F.interpolate(feature, scale_factor=2.0) for feature in student]
    assert float(fsp(student, teacher)) == pytest.approx(0, abs=1e-20)
    assert float(crosslayer(student, teacher)) == pytest.approx(0, abs=1e-20)


def test_channels_of_gramians_must_agree_and_there_must_be_two_stages() -> None:
    student, narrow = _features(1), _features(1, [(3, 4, 9, 6), (3, 2, 5, 3), (3, 8, 3, 2)])
    with pytest.raises(ValueError, match=r"teacher_features\[1\]: expected the student's shape, \(3, 5, -1, -1\)"):
        gramian_loss(student, narrow, [(0, 1)])
    with pytest.raises(ValueError, match="student_features: expected 2 stages or more, got 1"):
        fsp(student[:1], student[:1])


# --- hints and attention ---------------------------------------------------------------------------------------------


def test_feature_mse_formula() -> None:
    student, teacher = _features(1), _features(2)
    expected = np.mean([np.square(s.numpy() - t.numpy()).mean() for s, t in zip(student, teacher, strict=True)])
    assert float(feature_mse(student, teacher)) == pytest.approx(float(expected), rel=1e-12)


def test_attention_formula() -> None:
    student, teacher = _features(1), _features(2)
    expected = []
    for s, t in zip(student, teacher, strict=True):
        own, wanted = (np.square(f.numpy()).sum(1).reshape(len(f), -1) for f in (s, t))
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        expected.append((2 - 2 * (own * wanted).sum(1)).mean())  # squared distance of unit vectors
    assert float(attention(student, teacher)) == pytest.approx(float(np.mean(expected)), rel=1e-12)


def test_attention_asks_where_and_not_how_much_or_in_which_channel() -> None:
    student = _features(1)
    teacher = [3 * feature.flip(1).repeat(1, 2, 1, 1) for feature in student]
    assert float(attention(student, teacher)) == pytest.approx(0, abs=1e-20)


def test_attention_of_sizes_that_differ() -> None:
    student, teacher = _features(1, [(2, 3, 4, 3)]), _features(2, [(2, 5, 8, 6)])
    energy = F.avg_pool2d(teacher[0].square().mean(1, keepdim=True), 2).flatten(1)
    expected = (F.normalize(energy) - attention_map(student[0])).square().sum(1).mean()
    torch.testing.assert_close(attention(student, teacher), expected)


def test_attention_of_silent_maps_is_finite() -> None:
    silent = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = attention([silent], _features(1, [(2, 3, 4, 4)]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.0)
    assert silent.grad is not None
    assert silent.grad.isfinite().all()


# --- adapters --------------------------------------------------------------------------------------------------------


def _convolutions(adapters: Adapters) -> list[nn.Conv2d]:
    return [module for module in adapters.modules() if isinstance(module, nn.Conv2d)]


def test_adapters_are_convolutions_to_the_teachers_widths() -> None:
    features = _features(1, dtype=torch.float32)
    adapters = Adapters([4, 5, 8], [7, 5, 2], batch_norm=False)
    for convolution, feature, out in zip(_convolutions(adapters), features, adapters(features), strict=True):
        weight = convolution.weight[:, :, 0, 0]
        torch.testing.assert_close(out, torch.einsum("oc,bchw->bohw", weight, feature))
    assert [out.shape[1] for out in adapters(features)] == [7, 5, 2]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in adapters.modules())
    assert [type(module) for module in Adapters([4], [7]).modules()][-2:] == [nn.Conv2d, nn.BatchNorm2d]
    assert _convolutions(Adapters([4], [7], bias=True))[0].bias is not None


def test_adapters_where_widths_differ_only() -> None:
    features = _features(1, dtype=torch.float32)
    adapters = Adapters([4, 5, 8], [7, 5, 8], only_different=True)
    out = adapters(features)
    assert out[1] is features[1]
    assert out[2] is features[2]
    assert out[0].shape == (3, 7, 9, 6)


def test_frozen_adapters_are_orthogonal_and_untrained() -> None:
    adapters = Adapters([4, 6], [6, 4], frozen=True)
    wide, narrow = (convolution.weight[:, :, 0, 0] for convolution in _convolutions(adapters))
    torch.testing.assert_close(wide.T @ wide, torch.eye(4))
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(4))
    assert not any(parameter.requires_grad for parameter in adapters.parameters())
    assert len(list(adapters.parameters())) == 2  # batch norm has none


def test_adapters_refuse_numbers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="a number for each of the student's 2 stages, got 1"):
        Adapters([4, 5], [4])
    with pytest.raises(ValueError, match="channels: expected 1 or more"):
        Adapters([0], [4])
    with pytest.raises(ValueError, match="features: expected 1 stages, got 2"):
        Adapters([4], [4])(_features(1)[:2])


def test_adapters_let_a_narrow_student_learn_the_gramians_of_a_wide_teacher() -> None:
    torch.manual_seed(0)
    teacher = _features(2, [(4, 6, 5, 5), (4, 8, 5, 5)], torch.float32)
    student = [nn.Parameter(feature) for feature in _features(1, [(4, 3, 5, 5), (4, 5, 5, 5)], torch.float32)]
    adapters = Adapters([3, 5], [6, 8])
    optimizer = torch.optim.Adam([*student, *adapters.parameters()], lr=0.05)
    losses = []
    for _ in range(60):
        loss = crosslayer(adapters(student), teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
