"""The README's Python runs as it stands, and the files that it and the others name exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pqk_ext

ROOT = Path(__file__).parent.parent


def test_python_of_the_readme(tmp_path: Path) -> None:
    """In one process, one block after the other, in an empty folder."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    script = "\n".join(["import torch", "torch.manual_seed(0)", *blocks])
    environment = {**os.environ, "PYTHONPATH": str(Path(pqk_ext.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    nbytes, accuracy = first.split()
    assert 0 < int(nbytes) < 25_000
    assert float(accuracy) > 0.6  # chance is 0.083
    coded, resident, equal = re.fullmatch(r"(\d+) bytes of weights instead of (\d+) (True|False)", second).groups()  # type: ignore[union-attr]
    assert int(coded) < int(resident)
    assert equal == "True"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["average.pqk", "int8.pqk", "net.pqk", "shared.pqk"]


@pytest.mark.parametrize("name", ["README.md", "HACKING.md", "CHANGELOG.md"])
def test_named_files_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    named = re.findall(r"`((?:benchmarks|csrc|pqk_ext|tests|tools|\.ci)/[\w./-]+)`", text)
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []
