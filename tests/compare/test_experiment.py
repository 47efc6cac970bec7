"""Experiment files and lists of methods: what is read, what is refused and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from pqk_ext.compare import from_methods, read_experiment
from pqk_ext.compare.cells import load_recipes, make_cells
from pqk_ext.compare.experiment import expand, set_words
from pqk_ext.methods.recipe import parse_change

TEXT = """\
title: Teacher or none
about: Two arms.
seeds: 3
arms:
  pqk:   {recipe: pqk}
  plain: {recipe: pqk, set: {pqk.teacher: false, training.lr: 1e-5}, network: pqk, budget: free}
  own:   {recipe: own.yaml}
compare:
  - [pqk, plain]
  - [pqk/pqk, own]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    experiment = read_experiment(write(tmp_path, TEXT))
    assert (experiment.title, experiment.about, experiment.seeds) == ("Teacher or none", "Two arms.", 3)
    assert list(experiment.arms) == ["pqk", "plain", "own"]
    plain = experiment.arms["plain"]
    assert plain.overrides == {"pqk.teacher": False, "training.lr": 1e-5}
    assert (plain.network, plain.free) == ("pqk", True)
    assert experiment.arms["own"].recipe == str(tmp_path / "own.yaml")
    assert experiment.pairs == [("pqk", "plain"), ("pqk/pqk", "own")]


def test_settings_of_all_arms(tmp_path: Path) -> None:
    text = TEXT.replace("arms:", "set: {training.steps: 8, training.lr: 0.5}\narms:")
    experiment = read_experiment(write(tmp_path, text))
    assert experiment.arms["pqk"].overrides == {"training.steps": 8, "training.lr": 0.5}
    assert experiment.arms["plain"].overrides["training.lr"] == 1e-5


def test_what_is_written_is_read_as_the_same(tmp_path: Path) -> None:
    experiment = read_experiment(write(tmp_path, TEXT.replace("own.yaml", "/tmp/own.yaml")))
    assert read_experiment(write(tmp_path, experiment.to_yaml())) == experiment


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seeds: 3", "seeds: 0", "3:1: seeds: expected at least 1, got 0"),
        ("seeds: 3", "seeds: true", "3:1: seeds: expected a whole number, got True"),
        ("seeds: 3\n", "", "expected the key 'seeds', which is missing"),
        ("title: Teacher or none", "title: ''", "1:1: title: expected some text"),
        ("compare:", "contrast:", "8:1: unknown key 'contrast'; known keys: title, about, seeds, device,"),
        ("recipe: pqk}", "recip: pqk}", "5:11: unknown key 'recip'; did you mean 'recipe'?"),
        ("network: pqk", "network: 3", "6:70: network: expected text, got 3"),
        ("budget: free", "budget: 100", "6:84: budget: expected 'free', got 100"),
        ("set: {pqk.teacher: false, training.lr: 1e-5}", "set: 4", "6:24: set: expected a mapping of settings, got 4"),
        ("  plain:", "  ../plain:", "6:3: arm '../plain': expected a name"),
        ("  plain: {", "  plain: 4 #", "plain: expected a mapping, got 4"),
        ("- [pqk, plain]", "- [pqk, plan]", "9:5: compare: expected one of the arms pqk, plain, own, got 'plan'"),
        ("- [pqk, plain]", "- [pqk]", "9:5: compare: expected pairs [first, second] of rows, got ['pqk']"),
        ("- [pqk, plain]", "- pqk", "9:5: compare: expected pairs"),
    ],
)
def test_what_is_refused_and_where(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in TEXT
    with pytest.raises(ValueError, match=r"experiment\.yaml") as caught:
        read_experiment(write(tmp_path, TEXT.replace(before, after)))
    assert message in str(caught.value)


def test_methods_of_a_command_line() -> None:
    experiment = from_methods(["pqk", "pqk:pqk.teacher=false", "kd:training.steps=5:data=cifar10:/d"], seeds=4)
    assert list(experiment.arms) == ["pqk", "pqk-pqk.teacher-false", "kd-training.steps-5-data-cifar10-d"]
    assert experiment.arms["pqk-pqk.teacher-false"].overrides == {"pqk.teacher": False}
    last = list(experiment.arms.values())[-1]
    assert (last.recipe, last.overrides) == ("kd", {"training.steps": 5, "data": "cifar10:/d"})
    assert [pair[0] for pair in experiment.pairs] == ["pqk", "pqk"]


@pytest.mark.parametrize("methods", [["pqk", "pqk"], ["", "pqk"], ["pqk.teacher=false"], []])
def test_methods_that_are_none(methods: list[str]) -> None:
    with pytest.raises(ValueError, match="expected"):
        from_methods(methods, seeds=1)


@pytest.mark.parametrize(
    "value",
    [1, 1.5, 1e-5, 1e20, True, None, "cifar10:/a b", "true", "1e5", "", [1, 2e-7, "x"], {"a": [1.5]}, "a, b]", "'"],
)
def test_settings_pass_the_command_line_unchanged(value: Any) -> None:
    flag, word = set_words({"training.x": value})
    name, read = parse_change(word)
    assert (flag, name, read, type(read)) == ("--set", "training.x", value, type(value))
    assert yaml.safe_load(word.partition("=")[2]) == value


def test_changes_for_all_arms(tmp_path: Path) -> None:
    changed = read_experiment(write(tmp_path, TEXT)).changed(
        seeds=1, overrides={"training.lr": 0.5, "data": "x"}, budget=7
    )
    assert changed.seeds == 1
    assert changed.arms["pqk"].overrides == {"training.lr": 0.5, "data": "x", "training.steps": 7}
    assert "training.steps" not in changed.arms["plain"].overrides  # its budget is free
    assert changed.arms["plain"].overrides["training.lr"] == 0.5


def test_the_device_is_named_in_the_file_and_on_the_command_line_of_each_cell(tmp_path: Path) -> None:
    plain = read_experiment(write(tmp_path, TEXT.replace("own.yaml", "/tmp/own.yaml")))
    wanted = read_experiment(write(tmp_path, TEXT.replace("seeds: 3", "seeds: 3\ndevice: cuda:1")))
    assert (plain.device, wanted.device) == ("cpu", "cuda:1")
    assert "device" not in plain.to_yaml()
    assert read_experiment(write(tmp_path, plain.changed(device="cuda").to_yaml())).device == "cuda"
    assert not any("--device" in cell.words for cell in make_cells(plain, tmp_path))
    for cell in make_cells(wanted, tmp_path):
        assert cell.words[cell.words.index("--device") + 1] == "cuda:1"
        assert "--device cuda:1" in cell.command


def test_arms_must_cost_the_same() -> None:
    experiment = from_methods(["pqk", "pqk:training.steps=100"], seeds=1)
    with pytest.raises(ValueError, match=r"training\.steps: expected the same in all arms .* got pqk 920, pqk-.* 100"):
        load_recipes(experiment)
    experiment = from_methods(["pqk", "pqk:training.batch_size=8"], seeds=1)
    with pytest.raises(ValueError, match=r"training\.batch_size"):
        load_recipes(experiment)
    experiment = from_methods(["pqk", "pqk:training.batch=8"], seeds=1)
    with pytest.raises(ValueError, match=r"arm pqk-training\.batch-8: training: unknown key 'batch'"):
        load_recipes(experiment)


def test_a_free_arm_may_cost_more(tmp_path: Path) -> None:
    text = "title: t\nseeds: 1\narms:\n  a: {recipe: pqk}\n  b: {recipe: pqk, set: {training.steps: 9}, budget: free}\n"
    recipes = load_recipes(read_experiment(write(tmp_path, text)))
    assert recipes["b"].training.steps == 9


def test_variables_are_put_in_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PQK_TEST_FOLDER", "/data set")
    overrides = {"data": "cifar10:$PQK_TEST_FOLDER/c", "training.steps": 3}
    assert expand(overrides) == {"data": "cifar10:/data set/c", "training.steps": 3}
    with pytest.raises(ValueError, match=r"data: \$PQK_NONE is not set"):
        expand({"data": "cifar10:$PQK_NONE"})
    experiment = from_methods(["pqk"], seeds=1).changed(overrides=overrides)
    (cell,) = make_cells(experiment, tmp_path)
    assert "data=cifar10:/data set/c" in cell.words
    assert '--set "data=cifar10:$PQK_TEST_FOLDER/c"' in cell.command
    assert load_recipes(experiment)["pqk"].data == "cifar10:$PQK_TEST_FOLDER/c"
