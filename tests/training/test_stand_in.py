"""Training code on a GPU's stand-in (`tests/stand_in`), in a process whose torch is told of a device that it lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "stand_in"
CHECKS = [
    pytest.param(path.name, marks=[pytest.mark.long] if path.name == "check_methods.py" else [])
    for path in sorted(FOLDER.glob("check_*.py"))
]
_PROGRAM = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); import pytest; sys.exit(pytest.main(sys.argv[2:]))"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``library.cpp``, compiled."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the stand-in's library with")
    if torch.version.cuda is not None:
        pytest.skip(f"torch {torch.__version__} has a CUDA of its own, beside which there can be no stand-in")
    torch_folder = Path(torch.__file__).parent
    target = tmp_path_factory.mktemp("stand_in") / "library.so"
    folders = [f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", f"-Wl,-rpath,{torch_folder / 'lib'}"]
    options = ["-std=c++20", "-O0", "-fPIC", "-shared", "-lc10", "-ltorch_cpu", "-ltorch"]
    source = str(FOLDER / "library.cpp")
    subprocess.run([compiler, source, *folders, *options, "-o", str(target)], check=True, timeout=120)
    return target


@pytest.mark.parametrize("check", CHECKS)
def test_on_the_stand_in(check: str, library: Path) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(library), str(FOLDER / check), "-q", "-p", "no:cacheprovider"]
    root = FOLDER.parents[1]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=580)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
