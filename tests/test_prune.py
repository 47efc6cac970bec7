"""Schedule, scores and masks, against a plain sort in Python."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pqk_ext import prune
from pqk_ext.prune import compute_masks, cubic_sparsity

NO_FLOOR = {"min_keep_per_channel": 0, "min_keep_fraction": 0.0}


def _layers(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _kept(masks: list[Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks)


def _reference(weights: list[Tensor], sparsity: float, per_channel: int, fraction: float) -> list[list[bool]]:
    """Global unstructured masks by sorting Python lists."""
    ranked = [
        (-abs(value), layer, i) for layer, w in enumerate(weights) for i, value in enumerate(w.flatten().tolist())
    ]
    ranked.sort()
    protected: set[tuple[int, int]] = set()
    for layer, weight in enumerate(weights):
        of_layer = [(i, layer) for _, owner, i in ranked if owner == layer]
        size = weight.numel() // weight.shape[0]
        chosen: set[int] = set()
        for channel in range(weight.shape[0]):
            chosen.update([i for i, _ in of_layer if i // size == channel][:per_channel])
        for i, _ in of_layer:
            if len(chosen) >= max(1, math.ceil(fraction * weight.numel())):
                break
            chosen.add(i)
        protected |= {(layer, i) for i in chosen}
    target = round((1 - sparsity) * len(ranked))
    for _, layer, i in ranked:
        if len(protected) >= target:
            break
        protected.add((layer, i))
    return [[(layer, i) in protected for i in range(w.numel())] for layer, w in enumerate(weights)]


def test_cubic_ramp() -> None:
    assert [cubic_sparsity(s, start=10, end=20, final=0.8) for s in (0, 10, 20, 1000)] == [0, 0, 0.8, 0.8]
    assert cubic_sparsity(15, start=10, end=20, final=0.8) == pytest.approx(0.8 * (1 - 0.5**3))
    values = [cubic_sparsity(step, start=3, end=40, final=0.9) for step in range(50)]
    assert values == sorted(values)


@pytest.mark.parametrize("arguments", [{"start": 5, "end": 5, "final": 0.5}, {"start": 0, "end": 5, "final": 1.5}])
def test_impossible_schedule_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        cubic_sparsity(0, **arguments)  # type: ignore[arg-type]


MASK_ARGUMENTS: dict[str, Any] = {
    "seed": st.integers(0, 1000),
    "sparsity": st.floats(0, 0.999),
    "per_channel": st.integers(0, 3),
    "fraction": st.sampled_from([0.0, 0.01, 0.3]),
}


@settings(max_examples=60, deadline=None)
@given(**MASK_ARGUMENTS, levels=st.sampled_from([0, 2]))
def test_masks_equal_a_plain_sort(seed: int, sparsity: float, per_channel: int, fraction: float, levels: int) -> None:
    weights = _layers((4, 3, 3), (2, 5), (7, 1), seed=seed)
    if levels:  # many equal scores
        weights = [(w * levels).round() for w in weights]
    masks = compute_masks(weights, sparsity, min_keep_per_channel=per_channel, min_keep_fraction=fraction)
    assert [mask.flatten().tolist() for mask in masks] == _reference(weights, sparsity, per_channel, fraction)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.9501, 0.99])
@pytest.mark.parametrize("ranking", ["global", "per_layer"])
def test_exact_count(sparsity: float, ranking: str) -> None:
    weights = _layers((16, 3, 3, 3), (32, 16, 3, 3), (10, 32))
    masks = compute_masks(weights, sparsity, ranking=ranking, **NO_FLOOR)
    if ranking == "global":
        assert _kept(masks) == round((1 - sparsity) * sum(w.numel() for w in weights))
    else:
        assert [int(m.sum()) for m in masks] == [max(1, round((1 - sparsity) * w.numel())) for w in weights]
    for weight, mask in zip(weights, masks, strict=True):
        assert mask.dtype == torch.bool
        assert mask.shape == weight.shape


def test_per_layer_ignores_the_other_layers() -> None:
    weights = _layers((8, 9), (8, 9))
    assert torch.equal(
        compute_masks(weights, 0.7, ranking="per_layer")[0],
        compute_masks([weights[0], weights[1] * 1000], 0.7, ranking="per_layer")[0],
    )


def test_floor_is_compensated_elsewhere() -> None:
    small, large = _layers((8, 10), (40, 100))
    weights = [small * 1e-6, large]
    bare = compute_masks(weights, 0.9, **NO_FLOOR)
    floored = compute_masks(weights, 0.9, min_keep_per_channel=2, min_keep_fraction=0.05)
    assert int(bare[0].sum()) == 1  # a layer never vanishes
    assert int(floored[0].sum()) == 16
    assert int(floored[0].sum(1).min()) >= 2
    assert _kept(bare) == _kept(floored) == 408


def test_floor_above_the_target_is_what_stays() -> None:
    weights = _layers((50, 4))
    masks = compute_masks(weights, 0.9, min_keep_per_channel=1, min_keep_fraction=0.0)
    assert masks[0].sum(1).tolist() == [1] * 50


def test_channels_shorter_than_the_floor_stay_whole() -> None:
    assert bool(compute_masks(_layers((6, 1, 2)), 0.9, min_keep_per_channel=5)[0].all())


@pytest.mark.parametrize("granularity", ["unstructured", "filter"])
def test_ties_go_to_the_earlier_weight(granularity: str) -> None:
    masks = compute_masks([torch.ones(4, 2), torch.ones(4, 2)], 0.5, granularity=granularity, **NO_FLOOR)
    # The second layer keeps the one weight (or filter) that a layer always keeps.
    one = 1 if granularity == "unstructured" else 2
    assert masks[0].flatten().tolist() == [True] * (8 - one) + [False] * one
    assert masks[1].flatten().tolist() == [True] * one + [False] * (8 - one)


@pytest.mark.parametrize("ranking", ["global", "per_layer"])
def test_filters_stay_or_go_whole(ranking: str) -> None:
    weights = _layers((16, 3, 3, 3), (32, 16, 3, 3), (10, 32))
    masks = compute_masks(weights, 0.6, ranking=ranking, granularity="filter")
    for weight, mask in zip(weights, masks, strict=True):
        filters = mask.flatten(1)
        assert torch.equal(filters.all(1), filters.any(1))
        assert bool(filters.any())
        scores = weight.abs().flatten(1).mean(1)
        kept = filters.any(1)
        assert scores[kept].min() > scores[~kept].max()
    total = sum(w.numel() for w in weights)
    assert 0.4 * total <= _kept(masks) < 0.4 * total + (144 if ranking == "global" else 27 + 144 + 32)


def test_filter_floor() -> None:
    small, large = _layers((8, 10), (40, 100))
    masks = compute_masks([small * 1e-6, large], 0.9, granularity="filter", min_keep_per_channel=3)
    assert int(masks[0].any(1).sum()) == 3


def test_magnitude_scores_are_averaged_over_filters() -> None:
    weights = _layers((16, 3, 3, 3), (32, 16, 3, 3))
    for a, b in zip(
        compute_masks(weights, 0.5, granularity="filter", criterion="magnitude"),
        compute_masks(weights, 0.5, granularity="filter", criterion="filter_mean_magnitude"),
        strict=True,
    ):
        assert torch.equal(a, b)


def _block_reference(weights: list[Tensor], sparsity: float, per_channel: int, fraction: float) -> list[Tensor]:
    """Global 1x4 masks: every block as a list of its places, ranked by a plain sort of exact means."""
    blocks: list[tuple[Fraction, int, int, list[tuple[int, ...]]]] = []  # score, layer, channel, members
    for layer, weight in enumerate(weights):
        shape = weight.shape if weight.dim() > 1 else (*weight.shape, 1)
        values = weight.reshape(shape)
        for channel in range(shape[0]):
            for first in range(0, shape[1], 4):
                for tap in itertools.product(*map(range, shape[2:])):
                    members = [(channel, i, *tap) for i in range(first, min(first + 4, shape[1]))]
                    mean = sum((Fraction(abs(float(values[m]))) for m in members), Fraction(0)) / len(members)
                    blocks.append((mean, layer, channel, members))
    # A stable sort: of equal blocks the earlier one comes first.
    ranked = sorted(range(len(blocks)), key=lambda index: -blocks[index][0])
    kept: set[int] = set()
    for layer, weight in enumerate(weights):
        of_layer = [index for index in ranked if blocks[index][1] == layer]
        for channel in range(len(weight)):
            kept.update([index for index in of_layer if blocks[index][2] == channel][:per_channel])
        goal = max(1, math.ceil(fraction * len(of_layer)))
        for index in of_layer:
            if sum(other in kept for other in of_layer) >= goal:
                break
            kept.add(index)
    target = round((1 - sparsity) * sum(w.numel() for w in weights))
    for index in ranked:
        if sum(len(blocks[other][3]) for other in kept) >= target:
            break
        kept.add(index)
    masks = [torch.zeros(w.shape if w.dim() > 1 else (*w.shape, 1), dtype=torch.bool) for w in weights]
    for index in kept:
        for member in blocks[index][3]:
            masks[blocks[index][1]][member] = True
    return [mask.view(w.shape) for mask, w in zip(masks, weights, strict=True)]


@settings(max_examples=60, deadline=None)
@given(**MASK_ARGUMENTS, levels=st.sampled_from([8, 1]))
def test_block_masks_equal_a_plain_sort(
    seed: int, sparsity: float, per_channel: int, fraction: float, levels: int
) -> None:
    # Full blocks, a short last one, fewer channels than a block (depthwise too), linear, one weight a channel.
    # Multiples of 12 have exact means over 1 to 4 of them, in floats too.
    weights = _layers((3, 8, 2, 1), (2, 6, 1, 2), (4, 1, 3, 3), (3, 13), (5,), seed=seed)
    weights = [(w * levels).round() * 12 for w in weights]
    masks = compute_masks(
        weights, sparsity, granularity="1x4", min_keep_per_channel=per_channel, min_keep_fraction=fraction
    )
    expected = _block_reference(weights, sparsity, per_channel, fraction)
    assert [mask.tolist() for mask in masks] == [mask.tolist() for mask in expected]


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.9501, 0.99])
@pytest.mark.parametrize("ranking", ["global", "per_layer"])
def test_whole_blocks_stay_and_their_count_is_exact(sparsity: float, ranking: str) -> None:
    weights = _layers((16, 4, 3, 3), (32, 16, 3, 3), (10, 32))
    masks = compute_masks(weights, sparsity, ranking=ranking, granularity="1x4", **NO_FLOOR)
    for mask in masks:
        blocks = mask.flatten(2).transpose(1, 2).reshape(-1, 4) if mask.dim() > 2 else mask.view(-1, 4)
        assert torch.equal(blocks.all(1), blocks.any(1))

    def goal(count: int) -> int:
        return max(4, -(-round((1 - sparsity) * count) // 4) * 4)

    if ranking == "global":
        assert _kept(masks) == goal(sum(w.numel() for w in weights))
    else:
        assert [int(m.sum()) for m in masks] == [goal(w.numel()) for w in weights]


def test_blocks_run_along_input_channels_and_short_ones_are_judged_by_their_mean() -> None:
    weight = torch.ones(1, 6, 1, 2)
    weight[0, :4, 0, 1] = 3.0
    weight[0, 4:, 0, 0] = 2.0  # two weights: less in sum than the block of ones, more on average
    mask = compute_masks([weight], 0.5, granularity="1x4", **NO_FLOOR)[0]
    assert mask[0, :, 0, 1].tolist() == [True] * 4 + [False] * 2
    assert mask[0, :, 0, 0].tolist() == [False] * 4 + [True] * 2


def _two_of_four(weight: Tensor) -> list[bool]:
    """The 2:4 mask of a layer by sorting Python lists."""
    taps = weight.flatten(2) if weight.dim() > 2 else weight[:, :, None]
    filters, channels, count = taps.shape
    kept = torch.zeros(filters, channels, count, dtype=torch.bool)
    for f, start, tap in itertools.product(range(filters), range(0, channels, 4), range(count)):
        block = [(-abs(float(taps[f, c, tap])), c) for c in range(start, min(start + 4, channels))]
        for _, c in sorted(block)[:2]:
            kept[f, c, tap] = True
    return kept.view(weight.shape).flatten().tolist()


@pytest.mark.parametrize("ranking", ["global", "per_layer"])
def test_two_of_four_stay(ranking: str) -> None:
    weights = _layers((6, 8, 3, 3), (5, 6, 1, 1), (7, 1, 3, 3), (4, 3, 2, 2), (9, 20))
    weights[0][2, :4, 1, 1] = 0.5  # equal ones: the earlier stay
    masks = compute_masks(weights, 0.5, ranking=ranking, granularity="2:4")
    assert [mask.flatten().tolist() for mask in masks] == [_two_of_four(weight) for weight in weights]
    assert int(masks[2].sum()) == masks[2].numel()  # one input channel
    for sparsity in (0.6, 0.9):
        more = compute_masks(weights, sparsity, ranking=ranking, granularity="2:4")
        assert all(torch.equal(a, b) for a, b in zip(masks, more, strict=True))


def test_on_the_way_to_two_of_four_the_least_of_the_others_go() -> None:
    weights = _layers((8, 16, 3, 3), (12, 32))
    final = compute_masks(weights, 0.5, granularity="2:4")
    count = sum(weight.numel() for weight in weights)
    for sparsity in (0.0, 0.1, 0.3, 0.45):
        masks = compute_masks(weights, sparsity, granularity="2:4")
        assert _kept(masks) == round((1 - sparsity) * count)
        assert all(bool(mask[last].all()) for mask, last in zip(masks, final, strict=True))
        pruned = [w[~mask].abs() for w, mask in zip(weights, masks, strict=True)]
        left = [w[mask & ~last].abs() for w, mask, last in zip(weights, masks, final, strict=True)]
        assert sparsity == 0 or max(p.max() for p in pruned) <= min(r.min() for r in left)


def test_blocks_of_one_channel_are_single_weights() -> None:
    weights = _layers((64, 1, 3, 3), (32, 1, 5, 5))
    for a, b in zip(compute_masks(weights, 0.7, granularity="1x4"), compute_masks(weights, 0.7), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("granularity", ["unstructured", "1x4", "2:4"])
def test_layout_and_thread_count_do_not_matter(granularity: str) -> None:
    weights = _layers((64, 32, 3, 3), (128, 63, 3, 3))
    expected = compute_masks(weights, 0.9, granularity=granularity)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        moved = [w.to(memory_format=torch.channels_last) for w in weights]
        other = compute_masks(moved, 0.9, granularity=granularity)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))


def test_weights_are_not_changed_and_carry_no_gradient() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 5))
    before = weight.detach().clone()
    assert not compute_masks([weight], 0.5)[0].requires_grad
    assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 16).to(dtype)
    assert int(compute_masks([weight], 0.75)[0].sum()) == 32


def test_empty_inputs() -> None:
    assert compute_masks([], 0.5) == []
    for granularity in ("unstructured", "1x4", "2:4", "filter"):
        masks = compute_masks([torch.empty(0, 3), torch.ones(2, 2)], 0.5, granularity=granularity, **NO_FLOOR)
        assert masks[0].shape == (0, 3)
        assert int(masks[1].sum()) == (4 if granularity == "2:4" else 2)  # two of two stay


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity: expected a number in \[0, 1\), got 1.0"),
        ({"sparsity": math.nan}, "sparsity"),
        ({"sparsity": 0.5, "ranking": "all"}, "ranking: expected 'global' or 'per_layer', got 'all'"),
        ({"sparsity": 0.5, "granularity": "1x8"}, "granularity: expected 'unstructured', '1x4', '2:4' or"),
        ({"sparsity": 0.5, "criterion": "luck"}, "criterion: expected one of magnitude, filter_mean_magnitude"),
        ({"sparsity": 0.5, "criterion": "filter_mean_magnitude"}, r"got scores of \(2,\)"),
        ({"sparsity": 0.5, "min_keep_per_channel": -1}, "min_keep_per_channel"),
        ({"sparsity": 0.5, "min_keep_fraction": 1.1}, "min_keep_fraction"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_masks([torch.ones(2, 3)], **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"weights\[1\]: its magnitude scores are not finite"):
        compute_masks([torch.ones(2, 2), torch.tensor([[1.0, value]])], 0.5)


def test_integer_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights\[0\]: expected a floating-point tensor"):
        compute_masks([torch.ones(2, 2, dtype=torch.int32)], 0.5)


def test_a_new_criterion_is_one_function() -> None:
    @prune.criterion
    def smallest(weight: Tensor) -> Tensor:
        return -weight.abs()

    try:
        mask = compute_masks([torch.tensor([[1.0, 2.0, 3.0, 4.0]])], 0.5, criterion="smallest")[0]
        assert mask.tolist() == [[True, True, False, False]]
        with pytest.raises(ValueError, match="'smallest' is registered already"):
            prune.criterion(smallest)
    finally:
        del prune.CRITERIA["smallest"]
