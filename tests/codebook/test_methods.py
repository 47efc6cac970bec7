"""The methods that fit codebooks, against references written another way."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from pqk_ext import codebook
from pqk_ext.codebook import Codebook
from pqk_ext.codebook.entropy import entropy
from pqk_ext.codebook.kmeans import kmeans
from pqk_ext.codebook.probabilistic import probabilistic
from pqk_ext.codebook.uniform import uniform

all_methods = pytest.mark.parametrize("name", sorted(codebook.METHODS))


def gaussian(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 0.1


def squared_error(values: Tensor, found: Codebook) -> float:
    return float((found.centroids[found.codes].double() - values.double()).square().sum())


def code_entropy(found: Codebook) -> float:
    shares = np.bincount(found.codes.numpy()) / len(found.codes)
    return -sum(share * math.log2(share) for share in shares if share)


# --- all methods -------------------------------------------------------------------------------------------------


def test_there_are_methods() -> None:
    assert set(codebook.METHODS) >= {"kmeans", "probabilistic", "uniform", "entropy"}


@all_methods
@pytest.mark.parametrize("k", [2, 3, 16, 255, 256])
@pytest.mark.parametrize("count", [1, 2, 7, 300, 5000])
def test_shape_order_and_use(name: str, k: int, count: int) -> None:
    values = gaussian(count)
    found = codebook.METHODS[name](values, k, torch.Generator().manual_seed(1))
    assert found.centroids.dtype == torch.float32
    assert found.codes.dtype == torch.int64
    assert found.codes.shape == values.shape
    assert 1 <= len(found.centroids) <= min(k, count)
    assert bool((found.centroids.diff() > 0).all())
    assert sorted(set(found.codes.tolist())) == list(range(len(found.centroids)))
    # Nothing moves further than from one end to the other.
    assert float((found.centroids[found.codes] - values).abs().max()) <= float(values.max() - values.min()) + 1e-6


@all_methods
def test_few_different_values_stay_as_they_are(name: str) -> None:
    values = torch.tensor([0.25, -1.5, 0.25, 3.0, -1.5, -0.0])
    found = codebook.METHODS[name](values, 16, torch.Generator().manual_seed(0))
    assert torch.equal(found.centroids[found.codes], values)
    assert found.centroids.signbit().tolist() == [True, False, False, False]  # 0 has no sign


@all_methods
def test_nothing_to_share(name: str) -> None:
    found = codebook.METHODS[name](torch.empty(0), 4, None)
    assert found.centroids.shape == found.codes.shape == (0,)


@all_methods
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    values = gaussian(500, dtype=torch.float64).to(dtype)
    found = codebook.METHODS[name](values, 8, torch.Generator().manual_seed(0))
    same = codebook.METHODS[name](values.double(), 8, torch.Generator().manual_seed(0))
    assert torch.equal(found.centroids, same.centroids)
    assert torch.equal(found.codes, same.codes)


@all_methods
def test_far_apart_and_huge_values(name: str) -> None:
    near = torch.linspace(0, 1e-9, 400)
    values = torch.cat([near, near + 1.0, torch.tensor([3e38, -3e38])])
    found = codebook.METHODS[name](values, 8, torch.Generator().manual_seed(0))
    assert bool(found.centroids.isfinite().all())
    assert 1 <= len(found.centroids) <= 8


@pytest.mark.parametrize("name", sorted(set(codebook.METHODS) - {"probabilistic"}))
def test_deterministic_whatever_the_order(name: str) -> None:
    values = gaussian(4000)
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(3))
    found, shuffled = (codebook.METHODS[name](v, 17, None) for v in (values, values[order]))
    assert torch.equal(found.centroids, shuffled.centroids)
    assert torch.equal(found.codes[order], shuffled.codes)


@all_methods
@pytest.mark.parametrize("k", [0, 1, 257, -3, 2.0, True])
def test_wrong_k(name: str, k: int) -> None:
    with pytest.raises(ValueError, match=r"k: expected an integer in 2\.\.256, got"):
        codebook.METHODS[name](gaussian(5), k, None)


@all_methods
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(2, 2), r"one dimension, got torch.float32 \(2, 2\)"),
        (torch.zeros(3, dtype=torch.int64), "floating-point tensor"),
        (torch.tensor([1.0, float("nan")]), "got nan at index 1"),
        (torch.tensor([float("-inf"), 0.0]), "got -inf at index 0"),
    ],
)
def test_wrong_values(name: str, values: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codebook.METHODS[name](values, 4, None)


def test_names_are_taken_once() -> None:
    def kmeans(values: Tensor, k: int, generator: torch.Generator | None) -> Codebook:
        raise AssertionError

    with pytest.raises(ValueError, match="'kmeans' is registered already"):
        codebook.codebook_method(kmeans)


# --- kmeans ------------------------------------------------------------------------------------------------------


def least_error(values: Tensor, k: int) -> float:
    """By trying every way to cut the sorted values into k runs."""
    ordered = np.sort(values.double().numpy())
    best = math.inf
    for cuts in itertools.combinations(range(1, len(ordered)), k - 1):
        runs = np.split(ordered, cuts)
        best = min(best, sum(((run - run.mean()) ** 2).sum() for run in runs))
    return best


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("k", [2, 3, 4])
def test_kmeans_is_the_optimum(seed: int, k: int) -> None:
    values = gaussian(13, seed)
    if seed % 3 == 0:
        values = (values * 40).round() / 40  # with repetitions
    if seed % 3 == 1:
        values = values.exp() ** 9  # skewed
    assert squared_error(values, kmeans(values, k)) == pytest.approx(least_error(values, k), rel=1e-5, abs=1e-9)


def optimum_by_quadratic_programming(values: np.ndarray, k: int) -> float:
    """Dynamic programming over every start of the last run: slow and plain."""
    first, second = (np.concatenate([[0.0], np.cumsum(values**power)]) for power in (1, 2))
    count = len(values)
    best = np.full(count + 1, np.inf)
    best[0] = 0
    for _ in range(k):
        now = np.full(count + 1, np.inf)
        for end in range(1, count + 1):
            starts = np.arange(end)
            cost = second[end] - second[:end] - (first[end] - first[:end]) ** 2 / (end - starts)
            now[end] = (best[:end] + cost).min()
        best = now
    return float(best[count])


@pytest.mark.parametrize(("count", "k"), [(257, 2), (300, 31), (400, 200)])
def test_kmeans_is_the_optimum_of_more_values(count: int, k: int) -> None:
    values = gaussian(count, 5)
    ordered = np.sort(values.double().numpy())
    assert squared_error(values, kmeans(values, k)) == pytest.approx(
        optimum_by_quadratic_programming(ordered, k), rel=1e-4
    )


def test_kmeans_of_many_values_is_near_the_optimum_and_stable() -> None:
    values = gaussian(50_000)
    found = kmeans(values, 16)
    # Each value is at its nearest centroid, and each centroid is the mean of its values.
    distances = (values[:, None].double() - found.centroids.double()).abs()
    nearest = distances.gather(1, distances.argmin(1, keepdim=True))
    assert torch.allclose(distances.gather(1, found.codes[:, None]), nearest, atol=1e-8)
    means = torch.stack([values[found.codes == i].double().mean() for i in range(16)])
    assert torch.allclose(found.centroids.double(), means, rtol=1e-6)
    # The best 16-level quantizer of a Gaussian has this error (Max, 1960).
    assert squared_error(values, found) / 50_000 == pytest.approx(0.009497 * 0.01, rel=0.02)


# --- probabilistic -----------------------------------------------------------------------------------------------


def test_probabilistic_is_unbiased_and_rounds_to_neighbours() -> None:
    values = gaussian(40)
    edges = np.quantile(values.double().numpy(), np.arange(5) / 4)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([(f := probabilistic(values, 5, generator)).centroids[f.codes] for _ in range(4000)]).double()
    seen = sorted(set(draws.flatten().tolist()))
    assert np.allclose(seen, edges, rtol=1e-6)
    low = edges[np.clip(np.searchsorted(edges, values.double().numpy(), side="right") - 1, 0, 3)]
    high = edges[np.clip(np.searchsorted(edges, values.double().numpy(), side="left"), 0, 4)]
    assert bool((draws >= torch.from_numpy(low) - 1e-7).all())
    assert bool((draws <= torch.from_numpy(high) + 1e-7).all())
    # Standard deviation of a mean of 4000 draws is at most (high - low) / 2 / sqrt(4000); 5 of them.
    deviation = (draws.mean(0) - values.double()).abs()
    assert bool((deviation <= torch.from_numpy(high - low) * 2.5 / 4000**0.5 + 1e-7).all())


def test_probabilistic_follows_the_generator() -> None:
    values = gaussian(500)
    first, again, other = (probabilistic(values, 8, torch.Generator().manual_seed(seed)).codes for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(0)
    assert torch.equal(probabilistic(values, 8).codes, first)


# --- uniform -----------------------------------------------------------------------------------------------------


def grid_step(found: Codebook) -> float:
    """The smallest distance of two centroids: the step, where some two are neighbours."""
    return float(found.centroids.double().diff().min())


@pytest.mark.parametrize("k", [2, 3, 16, 64])
@pytest.mark.parametrize("seed", range(4))
def test_uniform_is_a_grid_and_no_finer_one_fits(k: int, seed: int) -> None:
    values = gaussian(2000, seed)
    if seed == 1:
        values = values[values.abs() > 0.1]  # pruned
    if seed == 2:
        values = values + 5
    found = uniform(values, k)
    step = grid_step(found)
    length = float(found.centroids[-1].double() - found.centroids[0].double())
    step = length / round(length / step)  # without the rounding of the centroids to float32
    position = found.centroids.double() / step
    shift = 0.0 if float((position - position.round()).abs().max()) < 0.1 else 0.5
    assert torch.allclose(position + shift, (position + shift).round(), atol=1e-3)
    assert float((found.centroids[found.codes] - values).abs().max()) <= step / 2 * 1.001
    if seed == 2:
        return  # so far from 0, a change of 0.2 % moves the grid by a whole step
    # Any step more than 0.2 % smaller, down to half: too many different values. The other grid is allowed to fit.
    for factor in np.arange(0.5, 0.997, 0.0007):
        indices = torch.floor(values.double() / (step * factor) + 0.5 - shift)
        assert len(indices.unique()) > k


def test_uniform_uses_no_value_up_for_the_gap_of_pruned_weights() -> None:
    values = gaussian(5000)
    survivors = values[values.abs() > 0.15]
    step = float(survivors.max() - survivors.min()) / 15  # what a grid over the whole range would have
    assert grid_step(uniform(survivors, 16)) < 0.7 * step


# --- entropy -----------------------------------------------------------------------------------------------------


def objective(values: Tensor, found: Codebook, rate_weight: float) -> float:
    return squared_error(values, found) / len(values) + rate_weight * code_entropy(found)


@pytest.mark.parametrize("rate_weight", [1e-6, 1e-5, 1e-4, 1e-3, 1.0])
def test_entropy_ends_where_no_value_wants_to_move(rate_weight: float) -> None:
    values = gaussian(3000)
    found = entropy(values, 256, rate_weight=rate_weight)
    shares = torch.bincount(found.codes).double() / len(values)
    cost = (values[:, None].double() - found.centroids.double()).square() - rate_weight * shares.log2()
    own = cost.gather(1, found.codes[:, None])[:, 0]
    # The iteration ends when the objective stands still, not each value: little is left to gain.
    gain = float((own - cost.min(1).values).mean())
    assert 0 <= gain <= 1e-3 * objective(values, found, rate_weight) + 1e-9
    means = torch.stack([values[found.codes == i].double().mean() for i in range(len(shares))])
    assert torch.allclose(found.centroids.double(), means, rtol=1e-5, atol=1e-8)


def test_entropy_objective_never_rises() -> None:
    from pqk_ext.codebook.entropy import _Problem

    ordered = np.sort(gaussian(3000).double().numpy())
    problem = _Problem(ordered, 96)
    for rate_weight in (0.0, 1e-6, 1e-4, 1e-2):
        cuts, costs = problem.starts[0], []
        for _ in range(30):
            codes = torch.from_numpy(np.repeat(np.arange(len(cuts) - 1), np.diff(cuts)))
            found = Codebook(torch.from_numpy(problem.means(cuts)), codes)
            costs.append(objective(torch.from_numpy(ordered), found, rate_weight))
            assert problem.objective(cuts, rate_weight) == pytest.approx(costs[-1], rel=1e-9)
            cuts = problem.improved(cuts, rate_weight)
        assert all(after <= before + 1e-15 for before, after in itertools.pairwise(costs))


def test_entropy_trades_error_for_bits() -> None:
    values = gaussian(20_000)

    def excess(found: Codebook) -> float:
        """Bits above the rate-distortion function of a Gaussian."""
        return code_entropy(found) - 0.5 * math.log2(0.01 / (squared_error(values, found) / len(values)))

    for k in (16, 64, 256):
        found = entropy(values, k)
        assert 0.8 * k <= len(found.centroids) <= k
        # An entropy-coded scalar quantizer (Gish and Pierce, 1968): log2(2 pi e / 12) / 2 at high rates, less at low.
        assert excess(found) == pytest.approx(0.2546, abs=0.06)
        assert excess(found) < excess(kmeans(values, k)) - 0.03
    rates = [code_entropy(entropy(values, 256, rate_weight=weight)) for weight in (2e-6, 1e-5, 1e-4, 1e-3)]
    assert rates == sorted(rates, reverse=True)


def test_entropy_refuses() -> None:
    with pytest.raises(ValueError, match="rate_weight: expected a number of at least 0, got -1"):
        entropy(gaussian(10), 4, rate_weight=-1.0)
    with pytest.raises(ValueError, match=r"at most k = 4 centroids, got 0\.0, which leaves 12"):
        partial(entropy, rate_weight=0.0)(gaussian(1000), 4)
