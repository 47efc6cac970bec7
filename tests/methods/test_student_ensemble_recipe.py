"""Recipes of the student ensemble: a file of each student, the control, rows of comparisons, what is refused."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from pqk_ext import runtime
from pqk_ext.compare.cells import load_recipes, make_cells
from pqk_ext.compare.experiment import Arm, Experiment
from pqk_ext.compare.summary import summarize
from pqk_ext.compare.tables import to_markdown
from pqk_ext.deploy import export
from pqk_ext.methods import load_recipe, run
from pqk_ext.methods.data import Data, load_data
from pqk_ext.methods.run import Run
from pqk_ext.methods.student_ensemble import student_ensemble

SHORT = {"training.steps": 6, "training.batch_size": 8, "pqk.sparsity": 0.5, "pqk.phase1_fraction": 1.0}


@pytest.fixture
def few_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clips in the package, 64 of each split."""
    splits = [getattr(load_data("keyword_spotting", "cifar"), s) for s in ("train", "validation", "test")]
    data = Data(*((x[::11][:64], y[::11][:64]) for x, y in splits), classes=12)
    monkeypatch.setattr(importlib.import_module("pqk_ext.methods.run"), "load_data", lambda name, pixels: data)


@pytest.mark.usefixtures("few_clips")
def test_recipe_makes_a_file_of_each_student(tmp_path: Path) -> None:
    result = run(load_recipe("student_ensemble", SHORT), tmp_path / "run", seed=1, progress=False)
    assert list(result["networks"]) == ["student1", "student2", "student3"]
    for name, network in result["networks"].items():
        assert network["parity"] == {"samples": 64, "different": 0}
        assert (tmp_path / "run" / f"{name}.pqk").stat().st_size == network["bytes"]
    sizes = [network["bytes"] for network in result["networks"].values()]
    assert sizes[0] > sizes[1] > sizes[2]
    facts = result["facts"]
    assert [s["stage_channels"][0] for s in facts["students"].values()] == [64, 42, 21]
    widest = {"stage_channels": [64, 64, 64, 64], "parameters": 23_756, "relative_size": 1.0}
    assert facts["students"]["student1"] == widest
    for split in ("validation_accuracy", "test_accuracy"):
        own = [network[split] for network in result["networks"].values()]
        assert facts["accuracies"]["mean"][split] == pytest.approx(sum(own) / 3)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result


@pytest.mark.usefixtures("few_clips")
def test_comparisons_have_rows_for_average_and_mean(tmp_path: Path) -> None:
    changes = {**SHORT, "training.steps": 2, "settings.students": 2}
    arm = Arm(name="joint", recipe="student_ensemble", overrides=changes)
    pairs = [("joint/average", "joint/student1")]
    experiment = Experiment(title="Students", seeds=1, arms={"joint": arm}, pairs=pairs)
    (cell,) = make_cells(experiment, tmp_path)
    result = run(load_recipe("student_ensemble", changes), cell.directory, progress=False)
    summary = summarize(experiment, load_recipes(experiment), [cell], {}, None)
    rows = {row["row"]: row for row in summary["rows"]}
    assert list(rows) == ["joint/student1", "joint/student2", "joint/average", "joint/mean"]
    for name in ("average", "mean"):
        measured = rows[f"joint/{name}"]
        assert measured["test_accuracy"]["values"] == [result["facts"]["accuracies"][name]["test_accuracy"]]
        assert "bytes" not in measured
        assert "macs" not in measured
    assert rows["joint/student2"]["bytes"]["values"] == [result["networks"]["student2"]["bytes"]]
    difference = summary["pairs"][0]["test_accuracy"]["mean"]
    assert (
        difference == rows["joint/average"]["test_accuracy"]["mean"] - rows["joint/student1"]["test_accuracy"]["mean"]
    )
    assert "joint/average" in to_markdown(summary)


@pytest.mark.usefixtures("few_clips")
def test_accuracy_of_the_ensemble_is_that_of_the_files(tmp_path: Path) -> None:
    changes = {**SHORT, "settings.students": 2, "settings.base_stages": 2}
    work = Run(load_recipe("student_ensemble", changes), tmp_path, 0, progress=False)
    students = student_ensemble(work)
    x, y = work.data.test
    logits = []
    for name, student in students.items():
        export(student, tmp_path / f"{name}.pqk")
        logits.append(runtime.load(tmp_path / f"{name}.pqk", tune=False)(x.numpy()))
    right = ((logits[0] + logits[1]).argmax(1) == y.numpy()).mean()
    assert work.facts["accuracies"]["average"]["test_accuracy"] == pytest.approx(right)
    # Two stages belong to the base: the students have them in common, at full width.
    first, second = students.values()
    assert first.layers[1] is not second.layers[1]
    assert first.layers[1].pointwise is second.layers[1].pointwise
    assert first.layers[2].pointwise is not second.layers[2].pointwise
    assert work.facts["students"]["student2"]["stage_channels"] == [64, 64, 32, 32]


@pytest.mark.usefixtures("few_clips")
def test_control_trains_each_student_by_itself(tmp_path: Path) -> None:
    changes = {**SHORT, "settings.alone": True, "settings.students": 2}
    result = run(load_recipe("student_ensemble", changes), tmp_path / "run", progress=False)
    assert list(result["networks"]) == ["student1", "student2"]
    assert (tmp_path / "run" / "student1").is_dir()
    assert (tmp_path / "run" / "student2").is_dir()
    assert not (tmp_path / "run" / "ensemble").exists()
    first, second = (runtime.load(tmp_path / "run" / f"student{i}.pqk", tune=False).graph for i in (1, 2))
    assert (first.nodes[1].tensors["weight"] != second.nodes[1].tensors["weight"]).any()


@pytest.mark.usefixtures("few_clips")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pretrained": True}, "pretrained: expected false"),
        ({"model": "res8_narrow"}, "model: expected one with the option stage_channels, got 'res8_narrow'"),
        ({"settings.students": 65}, "students: expected at most 64"),
        ({"settings.base_stages": 4}, "base_stages: expected fewer than the 4 stages"),
    ],
)
def test_recipes_that_cannot_be(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        run(load_recipe("student_ensemble", {**SHORT, **changes}), tmp_path / "run", progress=False)


def test_published_recipe() -> None:
    recipe = load_recipe("student_ensemble-published")
    settings = dataclasses.asdict(recipe.settings)
    assert settings["students"] == 5
    assert (settings["alpha"], settings["beta"], settings["gamma"], settings["temperature"]) == (0.7, 0.15, 0.15, 2.0)
    assert recipe.training.optimizer == "sgd"
    assert [recipe.training.lr_factor(p) for p in (0.0, 0.5, 0.75)] == pytest.approx([1, 0.1, 0.01])
