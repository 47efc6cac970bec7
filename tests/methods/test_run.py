"""A recipe from nothing to a measured file; stopped, resumed, and met by another recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pqk_ext import runtime
from pqk_ext.data import keyword_spotting
from pqk_ext.methods import load_recipe, run
from pqk_ext.methods.data import load_data
from pqk_ext.methods.distillation import Distillation
from pqk_ext.methods.kd import kd
from pqk_ext.methods.run import Run
from pqk_ext.nn import NetworkOutput
from pqk_ext.teachers import FloatTeacher
from pqk_ext.training import ResumeMismatchError, TrainingInterrupted
from pqk_ext.training.signals import stop_after_step

SHORT = {"training.steps": 12, "training.batch_size": 16}


@pytest.mark.parametrize("name", ["pqk", "kd"])
def test_it_ends_in_a_measured_file_and_does_nothing_twice(tmp_path: Path, name: str) -> None:
    changes = SHORT | ({"settings.teacher_steps": 4} if name == "kd" else {})
    recipe = load_recipe(name, changes)
    result = run(recipe, tmp_path, seed=1, progress=False)
    network = result["networks"][name]
    assert network["parity"] == {"samples": 980, "different": 0}
    assert network["bytes"] == (tmp_path / network["file"]).stat().st_size
    x, y = keyword_spotting("test").tensors
    own = runtime.load(tmp_path / network["file"])(x.numpy()).argmax(1)
    assert network["test_accuracy"] == float((own == y.numpy()).mean())
    assert result["steps"] == 12
    assert result["extra_steps"] == (4 if name == "kd" else 0)
    assert result["seconds"] > 0
    before = (tmp_path / "result.json").stat().st_mtime_ns
    assert run(recipe, tmp_path, seed=1, progress=False) == result
    assert (tmp_path / "result.json").stat().st_mtime_ns == before


def test_a_stopped_run_ends_with_the_same_file(tmp_path: Path) -> None:
    recipe = load_recipe("kd", SHORT | {"settings.teacher_steps": 8})
    run(recipe, tmp_path / "whole", progress=False)
    token = stop_after_step.set(5)  # once in the teacher's training, and once in the student's
    try:
        for _ in range(2):
            with pytest.raises(TrainingInterrupted):
                run(recipe, tmp_path / "stopped", progress=False)
    finally:
        stop_after_step.reset(token)
    run(recipe, tmp_path / "stopped", progress=False)
    assert (tmp_path / "whole/kd.pqk").read_bytes() == (tmp_path / "stopped/kd.pqk").read_bytes()
    whole, stopped = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "stopped"))
    for result in (whole, stopped):
        del result["seconds"]
    assert whole == stopped


def test_another_recipe_or_seed_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe("pqk", SHORT)
    run(recipe, tmp_path, progress=False)
    with pytest.raises(ResumeMismatchError, match=r"recipe\.pqk\.sparsity was 0\.8, is 0\.7"):
        run(load_recipe("pqk", SHORT | {"pqk.sparsity": 0.7}), tmp_path, progress=False)
    with pytest.raises(ResumeMismatchError, match="seed was 0, is 3"):
        run(recipe, tmp_path, seed=3, progress=False)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="holds no run"):
        run(recipe, other, progress=False)


@pytest.mark.parametrize(("setting", "dtype"), [("none", None), ("bf16", torch.bfloat16)])
def test_a_teacher_answers_in_the_precision_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, dtype: torch.dtype | None
) -> None:
    asked: list[torch.dtype | None] = []

    class Recorded(FloatTeacher):
        def __call__(self, x: torch.Tensor, step: int = 0) -> NetworkOutput:
            asked.append(self._autocast)
            return super().__call__(x, step)

    monkeypatch.setattr("pqk_ext.methods.kd.FloatTeacher", Recorded)
    changes = {"training.steps": 3, "training.batch_size": 4, "settings.teacher_steps": 0}
    recipe = load_recipe("kd", changes | {"settings.teacher_autocast": setting})
    kd(Run(recipe, tmp_path, 0, progress=False))
    assert asked == [dtype] * 3
    assert ("teacher_autocast" in recipe.to_dict()["settings"]) == (setting != "none")


def test_seeds_make_the_difference(tmp_path: Path) -> None:
    recipe = load_recipe("pqk", {"training.steps": 3, "training.batch_size": 4})
    files: list[Any] = []
    for index, seed in enumerate((0, 0, 1)):
        run(recipe, tmp_path / str(index), seed=seed, progress=False)
        files.append((tmp_path / str(index) / "pqk.pqk").read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_teacher_from_outside_takes_the_place_of_the_labels(tmp_path: Path) -> None:
    """With no weight on the labels a student follows its teacher alone."""
    work = Run(load_recipe("kd", SHORT), tmp_path, 0, progress=False)
    trainee = Distillation(
        work.prepare(work.network()), FloatTeacher(work.network(), work.example_inputs), ce_weight=0.0, kd_weight=1.0
    ).train()
    x, y = work.data.train[0][:16], work.data.train[1][:16]
    gradients = []
    for labels in (y, (y + 1) % 12):
        torch.manual_seed(0)
        trainee.zero_grad()
        trainee.loss(x, labels).backward()
        gradients.append([p.grad.clone() for p in trainee.parameters() if p.grad is not None])
    largest = max(float(gradient.abs().max()) for gradient in gradients[0])
    for first, second in zip(*gradients, strict=True):  # a bias before batch norm has no gradient but for rounding
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5 * largest)


def test_a_last_run_learns_from_the_validation_split_too(tmp_path: Path) -> None:
    held_out = run(load_recipe("pqk", SHORT), tmp_path / "apart", progress=False)
    whole = load_recipe("pqk", SHORT | {"training.learn_from": "train+validation"})
    result = run(whole, tmp_path / "all", progress=False)
    assert "learn_from" not in held_out["recipe"]["training"]
    assert result["recipe"]["training"]["learn_from"] == "train+validation"
    assert (tmp_path / "apart/pqk.pqk").read_bytes() != (tmp_path / "all/pqk.pqk").read_bytes()


def test_all_that_may_be_learned_from_is_once_in_it() -> None:
    data = load_data("keyword_spotting", "cifar")
    whole = data.learning_all()
    for kept, before, part in zip(whole.train, data.train, data.validation, strict=True):
        assert torch.equal(kept[: len(before)], before)
        assert torch.equal(kept[len(before) :], part)
    assert whole.validation is data.validation
    assert whole.test is data.test
