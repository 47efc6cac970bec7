"""Snapshots of a training run, and the teacher that goes along them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pqk_ext.teachers.route import Route, RouteTeacher, RouteTraining, equal_parts
from pqk_ext.training import TrainingInterrupted, fit
from pqk_ext.training.errors import CheckpointError
from pqk_ext.training.signals import stop_after_step
from tests.networks import SmallNet, batch

STEPS = 24
POINTS = equal_parts(STEPS, 4)


def _network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SmallNet()


def _data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return batch(1, 96), batch(2, 32)


def _constant(_: float) -> float:
    return 1.0


def _fit(model: nn.Module, directory: Path, steps: int = STEPS) -> None:
    train, val = _data()
    fit(
        model,
        train,
        val,
        None,
        directory,
        steps=steps,
        batch_size=16,
        lr=0.05,
        schedule=_constant,
        keep="last",
        checkpoint_steps=5,
        tensorboard=False,
        progress=False,
    )


def _train(directory: Path, stop: int | None = None) -> nn.Module:
    """The final network; TrainingInterrupted after ``stop`` steps."""
    trainee = RouteTraining(_network(), directory / "route", POINTS)
    token = stop_after_step.set(stop)
    try:
        _fit(trainee, directory / "run")
    finally:
        stop_after_step.reset(token)
    return trainee.student


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("route")
    _train(directory)
    return directory


def _route(directory: Path) -> Route:
    return Route(directory / "route", _network(5), POINTS, _data()[0][0][:1])


@pytest.mark.parametrize(("steps", "parts"), [(24, 4), (10, 3), (7, 7), (5, 1), (187_500, 240)])
def test_equal_parts_cover_the_run_and_differ_by_one_step_at_most(steps: int, parts: int) -> None:
    edges = equal_parts(steps, parts)
    lengths = {b - a for a, b in itertools.pairwise(edges)}
    assert (edges[0], edges[-1], len(edges)) == (0, steps, parts + 1)
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 1


@pytest.mark.parametrize("parts", [0, 6])
def test_parts_that_cannot_be(parts: int) -> None:
    with pytest.raises(ValueError, match=rf"parts: expected an integer from 1 to steps = 5, got {parts}"):
        equal_parts(5, parts)


@pytest.mark.parametrize("number", range(5))
def test_a_snapshot_is_the_network_of_a_run_that_ended_there(trained: Path, tmp_path: Path, number: int) -> None:
    """Running statistics included: with those of another step the logits would be others."""
    network = _network()
    if number:
        _fit(network, tmp_path, POINTS[number])
    x = _data()[1][0]
    logits = _route(trained).teacher(number)(x, 0).logits
    torch.testing.assert_close(logits, network.eval()(x), rtol=1e-5, atol=1e-5)
    other = _route(trained).teacher((number + 1) % 5)(x, 0).logits
    assert not torch.allclose(logits, other, atol=1e-2)


@pytest.mark.parametrize("stop", [1, 6, 13, 23])
def test_a_resumed_run_leaves_the_same_snapshots(trained: Path, tmp_path: Path, stop: int) -> None:
    with pytest.raises(TrainingInterrupted):
        _train(tmp_path, stop)
    _train(tmp_path)
    assert _files(tmp_path / "route") == _files(trained / "route")
    assert len(_files(trained / "route")) == len(POINTS)


def test_a_run_killed_between_checkpoints_writes_the_same_snapshots_again(trained: Path, tmp_path: Path) -> None:
    """As if killed at step 19: the newest checkpoint is of step 10; later snapshots are there, and a left-over."""
    with pytest.raises(TrainingInterrupted):
        _train(tmp_path, 10)
    for name in ("step-00000012.ckpt", "step-00000018.ckpt"):
        (tmp_path / "route" / name).write_bytes(b"of an earlier life")
    left_over = tmp_path / "route" / "step-00000012.ckpt.0123abcd.tmp"
    left_over.write_bytes(b"torn")
    _train(tmp_path)
    assert _files(tmp_path / "route") == _files(trained / "route")


def test_a_snapshot_that_is_missing_or_damaged_is_an_error(tmp_path: Path) -> None:
    _train(tmp_path)
    path = tmp_path / "route" / "step-00000012.ckpt"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    route = _route(tmp_path)
    route.teacher(1)
    with pytest.raises(CheckpointError, match=r"step-00000012\.ckpt: damaged"):
        route.teacher(2)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"step-00000012\.ckpt: missing"):
        _route(tmp_path)


def test_points_and_numbers_are_checked(trained: Path) -> None:
    for points in ((0,), (6, 12), (0, 12, 6)):
        with pytest.raises(ValueError, match="points: expected 0 and increasing steps"):
            Route(trained / "route", _network(), points, _data()[0][0][:1])
    for number in (-1, 5):
        with pytest.raises(IndexError, match=f"number: expected a snapshot from 0 to 4, got {number}"):
            _route(trained).teacher(number)


def test_the_teacher_changes_at_the_edges_and_nowhere_else(trained: Path) -> None:
    route, x = _route(trained), _data()[1][0]
    of_snapshot = [route.teacher(number)(x, 0).logits for number in range(5)]
    teacher = RouteTeacher(route, (1, 3, 4), equal_parts(10, 3))
    stages = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]  # edges 0, 3, 6, 10; a step after the end stays in the last stage
    for step, stage in enumerate(stages):
        assert teacher.stage(step) == stage
        assert torch.equal(teacher(x, step).logits, of_snapshot[(1, 3, 4)[stage]])


def test_the_teacher_asks_for_anchors_that_are_chosen_later(trained: Path) -> None:
    route, x = _route(trained), _data()[1][0]
    chosen = {0: 2}
    teacher = RouteTeacher(route, lambda stage: chosen[stage], (0, 5, 10))
    assert torch.equal(teacher(x, 4).logits, route.teacher(2)(x, 0).logits)
    chosen[1] = 4
    assert torch.equal(teacher(x, 5).logits, route.teacher(4)(x, 0).logits)


@pytest.mark.parametrize("anchors", [(1, 2), (1, 2, 5), (-1, 2, 3)])
def test_anchors_that_cannot_be(trained: Path, anchors: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="anchors: expected"):
        RouteTeacher(_route(trained), anchors, (0, 3, 6, 9))


def test_a_teacher_gives_no_gradients_and_the_features_asked_for(trained: Path) -> None:
    x = _data()[1][0].requires_grad_()
    route = Route(trained / "route", _network(), POINTS, x[:1].detach(), taps=("bn2",))
    output = route.teacher(2)(x, 0)
    assert not output.logits.requires_grad
    assert [tuple(feature.shape) for feature in output.features] == [(32, 8, 8, 8)]
