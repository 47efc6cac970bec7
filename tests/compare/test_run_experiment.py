"""Cells in processes, with a stand-in for ``pqk train`` that takes the same words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import pqk_ext
from pqk_ext.compare import Experiment, from_methods, run_experiment
from pqk_ext.compare.cells import Cell, load_recipes
from pqk_ext.compare.picture import pareto_front
from pqk_ext.compare.processes import Ended
from pqk_ext.runtime import format
from pqk_ext.training.errors import ResumeMismatchError, RunLockedError
from tests.runtime.graphs import ds_cnn

# Accuracy is 0.8 + seed / 100, 0.05 more with a teacher. What a test wants of a cell it says by files.
CELL = """
import json, os, pathlib, shutil, signal, sys, time
words = sys.argv[1:]
value = lambda flag: words[words.index(flag) + 1]
directory, seed = pathlib.Path(value("--run-dir")), int(value("--seed"))
folder = directory.parents[2]
directory.mkdir(parents=True, exist_ok=True)
with (folder / "started.txt").open("a") as file:
    file.write(f"{directory.parent.name} {seed} {os.environ['OMP_NUM_THREADS']}\\n")
if (folder / "wait").exists():
    signal.signal(signal.SIGTERM, lambda *_: ((folder / "stopped").write_text(str(seed)), sys.exit(143)))
    (folder / f"waits{seed}").touch()
    time.sleep(60)
if (folder / f"fail{seed}").exists() and "pqk.teacher=false" in words:
    print("a line\\npqk: error: loss is NaN\\nanother")
    sys.exit(1)
shutil.copy(folder / "net.pqk", directory / "pqk.pqk")
right = 0.8 + seed / 100 + 0.05 * ("pqk.teacher=false" not in words) + 0.01 * (seed == 1)
network = {"file": "pqk.pqk", "test_accuracy": right, "validation_accuracy": right - 0.1, "bytes": 1000 + seed}
names = ["big", "small"] if (folder / "two").exists() else ["pqk"]
recipe = json.loads((folder / "recipes.json").read_text())[directory.parent.name]
result = {"networks": {name: network for name in names}, "recipe": recipe}
result |= {"steps": 920, "extra_steps": 0, "seconds": 1.5}
(directory / "result.json").write_text(json.dumps(result))
"""
PROGRAM = (sys.executable, "-S", "-c", CELL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory of an experiment, with a network for the cells to copy."""
    format.write(ds_cnn(), tmp_path / "net.pqk")
    return tmp_path


def experiment(seeds: int = 2) -> Experiment:
    return from_methods(["pqk", "pqk:pqk.teacher=false"], seeds=seeds)


def run(folder: Path, wanted: Experiment, **options: Any) -> dict[str, Any]:
    recipes = {name: recipe.to_dict() for name, recipe in load_recipes(wanted).items()}
    (folder / "recipes.json").write_text(json.dumps(recipes))
    return run_experiment(wanted, folder, program=PROGRAM, **options)


def started(folder: Path) -> list[str]:
    path = folder / "started.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_means_differences_and_files(folder: Path) -> None:
    planned: list[tuple[int, int]] = []
    summary = run(folder, experiment(), jobs=2, on_plan=lambda cells, left: planned.append((len(cells), len(left))))
    assert planned == [(4, 4)]
    assert len(started(folder)) == 4
    assert all(line.endswith(" 1") for line in started(folder))  # one thread each
    first, second = summary["rows"]
    assert (first["row"], first["network"], first["test_accuracy"]["n"]) == ("pqk", "pqk", 2)
    assert first["test_accuracy"]["mean"] == pytest.approx(0.86)
    assert first["test_accuracy"]["sd"] == pytest.approx(0.02 / 2**0.5)
    assert first["bytes"]["values"] == [1000, 1001]
    assert first["macs"]["mean"] > first["effective_macs"]["mean"] > 0
    assert first["latency_us"]["mean"] > 0
    assert second["test_accuracy"]["mean"] == pytest.approx(0.81)
    (pair,) = summary["pairs"]
    assert (pair["first"], pair["second"], pair["test_accuracy"]["better"]) == ("pqk", "pqk-pqk.teacher-false", 2)
    assert pair["test_accuracy"]["mean"] == pytest.approx(0.05)
    assert summary["complete"]
    assert json.loads((folder / "summary.json").read_text()) == summary
    text = (folder / "summary.md").read_text()
    assert "| pqk | 86.00 ± 1.41 % | 76.00 ± 1.41 % |" in text
    assert "| pqk \u2212 pqk-pqk.teacher-false | +5.00 [+5.00, +5.00] | 2 of 2 |" in text
    line = "pqk train --recipe pqk --run-dir again/pqk-pqk.teacher-false/seed1 --seed 1 --set pqk.teacher=false"
    assert line in text.splitlines()
    picture = (folder / "pareto.svg").read_text()
    assert picture.startswith("<svg xmlns=")
    assert "pqk-pqk.teacher-false: 1.00 kB, 81.00 %" in picture


def test_what_is_done_is_not_done_again_and_seeds_are_added(folder: Path) -> None:
    before = run(folder, experiment(1))
    after = run(folder, experiment(3))
    assert len(started(folder)) == 6
    assert sorted(line.split()[1] for line in started(folder)) == ["0", "0", "1", "1", "2", "2"]
    text = (folder / "summary.md").read_text()
    assert "| pqk \u2212 pqk-pqk.teacher-false | **+5.00 [+5.00, +5.00]** | 3 of 3 |" in text  # sure from three on
    assert after["rows"][0]["test_accuracy"]["values"][0] == before["rows"][0]["test_accuracy"]["values"][0]
    assert "low" not in before["pairs"][0] or before["pairs"][0]["test_accuracy"]["low"] is None


def test_a_failed_cell_is_reported_and_tried_again(folder: Path) -> None:
    (folder / "fail1").touch()
    ends: list[Ended] = []
    summary = run(folder, experiment(3), on_end=ends.append)
    assert len(ends) == 6
    assert not summary["complete"]
    failed = [cell for cell in summary["cells"] if cell["state"] == "failed"]
    assert [(cell["arm"], cell["seed"], cell["error"]) for cell in failed] == [
        ("pqk-pqk.teacher-false", 1, "exit code 1: loss is NaN")
    ]
    assert summary["pairs"][0]["seeds"] == [0, 2]  # only seeds that both have
    text = (folder / "summary.md").read_text()
    assert "- pqk-pqk.teacher-false, seed 1: exit code 1: loss is NaN" in text
    assert "(5 of 6 cells so far)" in text
    assert "| pqk | 3 | 86.33" in text
    assert "| pqk-pqk.teacher-false | 2 | 81.00" in text
    assert run(folder, experiment(3), run=False)["cells"][3]["state"] == "missing"
    assert len(started(folder)) == 6
    (folder / "fail1").unlink()
    summary = run(folder, experiment(3))
    assert summary["complete"]
    assert len(started(folder)) == 7
    assert "Failed" not in (folder / "summary.md").read_text()


def test_cells_from_another_kind_of_device_are_not_mixed(folder: Path) -> None:
    summary = run(folder, experiment(1).changed(device="cpu"))
    assert "Trained on" not in (folder / "summary.md").read_text()
    with pytest.raises(ResumeMismatchError, match="device: 'cpu' then, 'cuda' now"):
        run(folder, experiment(2).changed(device="cuda:1"))
    for cell in summary["cells"]:
        path = folder / "cells" / cell["arm"] / "seed0" / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"device": "cuda"}))
    summary = run(folder, experiment(1).changed(device="cuda:1"))
    assert summary["device"] == "cuda:1"
    assert "Trained on cuda:1." in (folder / "summary.md").read_text()
    with pytest.raises(ResumeMismatchError, match="device: 'cuda' then, 'cpu' now"):
        run(folder, experiment(1))


def test_cells_of_another_recipe_are_not_mixed(folder: Path) -> None:
    run(folder, experiment(1))
    changed = from_methods(["pqk:pqk.sparsity=0.5"], seeds=1)
    arm = next(iter(changed.arms.values()))
    renamed = Experiment(
        title="t", seeds=1, pairs=[], arms={"pqk": type(arm)(name="pqk", recipe="pqk", overrides=arm.overrides)}
    )
    with pytest.raises(ResumeMismatchError, match=r"pqk, seed 0: .*pqk\.sparsity: 0\.8 then, 0\.5 now"):
        run(folder, renamed)


def test_settings_that_a_later_version_added_and_folders_do_not_matter(folder: Path) -> None:
    run(folder, experiment(1))
    path = folder / "cells" / "pqk" / "seed0" / "result.json"
    result = json.loads(path.read_text())
    recipe = result["recipe"]
    del recipe["training"]["gamma"]  # as if an older version had had no such setting
    recipe["data"] = "keyword_spotting:/elsewhere"
    path.write_text(json.dumps(result))
    assert run(folder, experiment(1))["complete"]
    recipe["data"] = "cifar10:/elsewhere"
    path.write_text(json.dumps(result))
    with pytest.raises(ResumeMismatchError, match=r"data: 'cifar10:/elsewhere' then, 'keyword_spotting' now"):
        run(folder, experiment(1))
    recipe["data"] = "keyword_spotting"
    recipe["training"]["momentun"] = 0.3  # a setting that is no more
    path.write_text(json.dumps(result))
    with pytest.raises(ResumeMismatchError, match=r"training\.momentun: 0\.3 then, 'not set' now"):
        run(folder, experiment(1))
    path.write_text("{")
    with pytest.raises(ValueError, match=r"result\.json: no JSON"):
        run(folder, experiment(1))


def test_several_networks_are_rows_of_their_own(folder: Path) -> None:
    (folder / "two").touch()
    summary = run(folder, experiment(1))
    assert [row["row"] for row in summary["rows"]] == [
        "pqk/big",
        "pqk/small",
        "pqk-pqk.teacher-false/big",
        "pqk-pqk.teacher-false/small",
    ]
    assert [(pair["first"], pair["second"]) for pair in summary["pairs"]] == [
        ("pqk/big", "pqk-pqk.teacher-false/big"),
        ("pqk/small", "pqk-pqk.teacher-false/small"),
    ]
    arms = {name: type(arm)(**{**vars(arm), "network": "small"}) for name, arm in experiment().arms.items()}
    picked = run(folder, Experiment(title="t", seeds=1, arms=arms, pairs=experiment().pairs))
    assert [(row["row"], row["network"]) for row in picked["rows"]] == [
        ("pqk", "small"),
        ("pqk-pqk.teacher-false", "small"),
    ]
    assert len(started(folder)) == 2
    mistaken = Experiment(title="t", seeds=1, arms=experiment().arms, pairs=[("pqk/large", "pqk/small")])
    with pytest.raises(
        ValueError, match=r"compare: \[pqk/large, pqk/small\]: expected two of the rows pqk/big, pqk/small"
    ):
        run(folder, mistaken)
    arms["pqk"] = type(arms["pqk"])(name="pqk", recipe="pqk", network="large")
    with pytest.raises(ValueError, match="arm pqk: network: expected one of big, small, got 'large'"):
        run(folder, Experiment(title="t", seeds=1, arms=arms, pairs=[]))


def test_one_experiment_at_a_time_in_a_directory(folder: Path) -> None:
    def again(cells: list[Cell], waiting: list[Cell]) -> None:
        with pytest.raises(RunLockedError):
            run(folder, experiment(1))

    run(folder, experiment(1), on_plan=again)


def test_an_exception_stops_the_cells_and_waits_for_them(folder: Path) -> None:
    (folder / "wait").touch()

    def interrupt(cell: Cell) -> None:
        while not (folder / "waits0").exists():
            time.sleep(0.02)
            if cell.arm.name == "pqk":
                return  # not begun yet
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, experiment(1), jobs=2, on_start=interrupt)
    assert (folder / "stopped").read_text() == "0"
    (folder / "wait").unlink()
    assert run(folder, experiment(1))["complete"]


def test_cells_end_when_the_process_that_started_them_is_killed(folder: Path) -> None:
    """Their standard input ends; ``pqk_ext.compare.cell`` turns that into SIGTERM."""
    code = """
import pathlib, sys, time
import pqk_ext.cli
def main(words):
    pathlib.Path(words[0]).touch()
    time.sleep(60)
pqk_ext.cli.main = main
from pqk_ext.compare.cell import main
sys.exit(main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "begun")],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(pqk_ext.__file__).parent.parent)},
    )
    while not (folder / "begun").exists():
        assert process.poll() is None
        time.sleep(0.02)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == -signal.SIGTERM


def test_front() -> None:
    points = [(3.0, 90.0), (1.0, 80.0), (2.0, 79.0), (3.0, 91.0), (4.0, 91.0), (0.5, 10.0)]
    assert pareto_front(points) == [5, 1, 3]
    assert pareto_front([]) == []
