"""``pqk compare`` with real cells of a few steps: interrupted, resumed, and wrong from the start."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pqk_ext
from pqk_ext.cli import main

RUN = "import sys; from pqk_ext.cli import main; sys.exit(main())"
STEPS = 150
WORDS = ["--methods", "pqk", "--seeds", "1", "--budget", str(STEPS), "--set", "training.batch_size=4"]


def test_interrupted_and_resumed_as_if_never_stopped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["compare", *WORDS, "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(pqk_ext.__file__).parent.parent)},
    )
    cell = tmp_path / "out" / "cells" / "pqk" / "seed0"
    while not (cell / "student" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert said == f"pqk: stopped; this goes on with it: pqk {shlex.join(words)}\n"
    assert list((cell / "student").glob("step-*.ckpt")), "the cell has saved where it was"
    assert not (cell / "result.json").exists()

    assert main(words) == 0
    capfd.readouterr()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["complete"]
    assert {row["steps"]["mean"] for row in summary["rows"]} == {STEPS}

    # The line under the table makes the same file again.
    command = summary["cells"][0]["command"].split()
    command[command.index("again/pqk/seed0")] = str(tmp_path / "again")
    assert command[0] == "pqk"
    assert main(command[1:]) == 0
    assert (tmp_path / "again" / "pqk.pqk").read_bytes() == (cell / "pqk.pqk").read_bytes()

    # A cell that cannot be run is reported.
    (cell / "result.json").unlink()
    (cell / "recipe.json").write_text("{}")
    assert main(words) == 1
    said = capfd.readouterr().err
    assert "pqk, seed 0: failed: exit code 5:" in said
    assert said.splitlines()[-1].startswith("pqk: error: 1 of 1 cells failed: pqk, seed 0: exit code 5:")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "either EXPERIMENT.yaml or --methods"),
        (["x.yaml", "--methods", "pqk"], "either EXPERIMENT.yaml or --methods"),
        (["{tmp}/none.yaml"], "none.yaml: cannot read"),
        (["--methods", "pqq"], "no recipe 'pqq'"),
        (["--methods", "pqk", "--set", "training.steps"], "training.steps"),
        (["--methods", "pqk", "--set", "training.stepz=3"], "training: unknown key 'stepz'"),
        (["--methods", "pqk", "--budget", "0"], "--budget"),
        (["--methods", "pqk", "--seeds", "0"], "--seeds"),
        (["--methods", "pqk", "--device", "tpu"], "--device: expected 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        (["--methods", "pqk,pqk:training.steps=3"], "training.steps: expected the same in all arms"),
    ],
)
def test_wrong_from_the_start(tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], part: str) -> None:
    filled = [word.format(tmp=tmp_path) for word in words]
    assert main(["compare", "--out", str(tmp_path / "out"), *filled]) == 2
    assert part in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
