"""``pqk train`` in a process of its own, stopped by a signal to its whole process group, as a terminal sends it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import pqk_ext

RUN = "import sys; from pqk_ext.cli import main; sys.exit(main())"


def _start(words: Sequence[object]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(pqk_ext.__file__).parent.parent)},
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_anywhere_and_told_how_to_go_on(tmp_path: Path, number: int, code: int) -> None:
    run, config = tmp_path / "run", tmp_path / "pqk.yaml"
    config.write_text("total_steps: 100000\n")
    words = ["train", "--data", "keyword_spotting", "--model", "ds_cnn", "--pretrained", "--config", config]
    words += ["--run-dir", run, "--batch-size", 16, "--workers", 2]
    process = _start(words)
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.02)
    start = time.monotonic()
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert time.monotonic() - start < 20  # mostly the end of Python; 10 s on a machine that does nothing else
    assert len(list(run.glob("step-*.ckpt"))) == 1
    assert f"stopped by {signal.Signals(number).name} after step" in said
    command = said.splitlines()[-1].partition(": this goes on with it: pqk ")[2]
    assert shlex.split(command) == [*map(str, words), "--resume"]
