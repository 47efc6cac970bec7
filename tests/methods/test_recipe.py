"""Recipes: files in, checked objects out, and what is wrong named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pqk_ext.methods import METHODS, Recipe, Training, load_recipe, parse_change, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_is_read_and_comes_back_from_its_values(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.method in METHODS
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_every_method_has_a_small_recipe_and_tells_its_paper() -> None:
    for name, method in METHODS.items():
        assert name in recipe_names(), f"no recipe {name}.yaml"
        assert load_recipe(name).data == "keyword_spotting"
        assert method.train.__doc__


def test_changes_reach_every_part() -> None:
    recipe = load_recipe("kd", {"training.steps": 7, "pqk.sparsity": 0.5, "settings.kd_weight": 2, "model": "ds_cnn_s"})
    assert (recipe.training.steps, recipe.config().total_steps) == (7, 7)
    assert recipe.config().sparsity == 0.5
    assert recipe.settings.kd_weight == 2
    assert recipe.model == "ds_cnn_s"
    assert recipe.config(3, teacher=True).total_steps == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.stepz": 1}, r"training: unknown key 'stepz'; did you mean 'steps'\?"),
        ({"training.steps": 0}, r"training\.steps: expected an integer of at least 1, got 0"),
        ({"training.optimizer": "lion"}, r"training\.optimizer: expected one of adamw, sgd, got 'lion'"),
        ({"pqk.sparsity": 1.5}, r"pqk\.sparsity: expected a number in \[0, 1\), got 1.5"),
        ({"pqk.total_steps": 5}, r"pqk: expected no total_steps, which training\.steps gives"),
        ({"settings.anchors": 5}, r"settings: unknown key 'anchors'"),
        ({"method": "magic"}, r"method: expected one of .*, got 'magic'"),
        ({"nothing.steps": 1}, r"nothing\.steps: expected training\.NAME"),
        ({"modell": "x"}, r"unknown key 'modell'; did you mean 'model'\?"),
        ({"settings.kd_weight": -1}, r"settings\.kd_weight: expected a number in \[0, inf\), got -1"),
    ],
)
def test_a_wrong_change_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("kd", changes)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: pqk\ntraining: {steps: 5, steps: 6}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml:2:\d+: .*twice"):
        load_recipe(path)
    path.write_text("model: ds_cnn\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: method: expected one of"):
        load_recipe(path)
    with pytest.raises(ValueError, match=r"recipe: no recipe 'pqkk' .*; did you mean 'pqk'"):
        load_recipe("pqkk")


def test_values_on_a_command_line_are_yaml() -> None:
    assert parse_change("training.lr=1e-3") == ("training.lr", 1e-3)
    assert parse_change("pqk.teacher=false") == ("pqk.teacher", False)
    assert parse_change("training.milestones=[0.5, 0.75]") == ("training.milestones", [0.5, 0.75])
    assert parse_change("data=cifar10:/a=b") == ("data", "cifar10:/a=b")
    for text in ("training.steps", "=5", "a=[1"):
        with pytest.raises(ValueError, match="set: "):
            parse_change(text)


def test_schedules() -> None:
    cosine = Training(steps=100, warmup=0.1)
    assert cosine.lr_factor(0.0) == pytest.approx(0.1)
    assert cosine.lr_factor(0.5) == pytest.approx(0.5)
    steps = Training(steps=100, warmup=0, schedule="steps", milestones=(0.5, 0.75), gamma=0.1)
    assert [steps.lr_factor(p) for p in (0.0, 0.49, 0.5, 0.75)] == pytest.approx([1, 1, 0.1, 0.01])
    assert Training(warmup=0, schedule="constant").lr_factor(0.9) == 1
