"""Every fuzz target on every file of the corpus, former crashes included, without a fuzzing engine."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pqk_ext import _core

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
LIBRARIES = Path(_core.__file__).parent
REGISTERED = re.compile(r"^PQK_FUZZ_TARGET\((\w+)\)", re.MULTILINE)
TARGETS = sorted(name for path in HERE.glob("*.cpp") for name in REGISTERED.findall(path.read_text()))


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The targets, compiled against the library that the package brings."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the fuzz targets with")
    folder = tmp_path_factory.mktemp("fuzz")
    flags = ["-std=gnu++20", "-O0", "-I", str(HERE.parent.parent / "csrc")]
    if platform.machine() in ("x86_64", "AMD64"):
        flags.append("-DPQK_X86_64")

    def compiled(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        subprocess.run([compiler, *flags, "-c", str(source), "-o", str(target)], check=True, timeout=300)
        return str(target)

    with ThreadPoolExecutor(2) as threads:
        objects = list(threads.map(compiled, sorted(HERE.glob("*.cpp"))))
    program = folder / "replay"
    link = ["-L", str(LIBRARIES), "-lpqk_core", f"-Wl,-rpath,{LIBRARIES}", "-pthread", "-o", str(program)]
    subprocess.run([compiler, *objects, *link], check=True, timeout=300)
    return program


def test_every_target_has_a_corpus() -> None:
    assert sorted(folder.name for folder in CORPUS.iterdir()) == sorted([*TARGETS, "loads"])
    size = sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file())
    assert size <= 5 * 2**20


@pytest.mark.parametrize("target", TARGETS)
def test_corpus(target: str, replay: Path) -> None:
    result = subprocess.run([str(replay), str(CORPUS), target], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout == f"{target} {len(list((CORPUS / target).iterdir()))}\n"
