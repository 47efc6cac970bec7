"""The layers of HACKING.md, read from the includes and imports themselves."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
MAX_LINES = 450
# Files that may be longer, and how long.
LONGER: dict[str, int] = {}

PYTHON_HEADERS = r"pybind11/.*|Python\.h|numpy/.*"
TORCH_HEADERS = r"torch/.*|ATen/.*|c10/.*"
STABLE_TORCH = r"csrc/stable/|csrc/inductor/aoti_torch/c/|headeronly/"
PRINTING_HEADERS = r"iostream|cstdio|stdio\.h|print|syncstream"
# Folder -> headers that its files must not include.
FORBIDDEN_HEADERS = {
    "csrc/core": rf"{PYTHON_HEADERS}|{TORCH_HEADERS}|{PRINTING_HEADERS}|python/.*",
    "csrc/torch": rf"{PYTHON_HEADERS}|ATen/.*|c10/.*|python/.*|torch/(?!{STABLE_TORCH}).*",
    "csrc/python": TORCH_HEADERS,
}
# Folder -> calls that do not belong there.
FORBIDDEN_CALLS = {"csrc/core": r"\b(printf|fprintf|puts|abort|exit|_exit|terminate|system|popen|getenv)\s*\("}

# What the runtime may import, besides the standard library.
RUNTIME_IMPORTS = ("numpy", "safetensors", "pqk_ext._core", "pqk_ext.errors", "pqk_ext.runtime")


def sources(folder: str, *suffixes: str) -> list[Path]:
    found = [p for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    assert found, folder
    return sorted(found)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_comments(text: str) -> str:
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', "", text, flags=re.DOTALL)


def _is_own(folder: str, header: str) -> bool:
    """ "torch/check.h" is a file of csrc/torch, not of torch."""
    path = ROOT / "csrc" / header
    return path.exists() and path.is_relative_to(ROOT / folder)


@pytest.mark.parametrize("folder", FORBIDDEN_HEADERS)
def test_includes(folder: str) -> None:
    forbidden = re.compile(FORBIDDEN_HEADERS[folder])
    wrong = [
        f"{name(path)} includes {header}"
        for path in sources(folder, ".h", ".cpp", ".cu", ".cuh")
        for header in INCLUDE.findall(path.read_text())
        if forbidden.fullmatch(header) and not _is_own(folder, header)
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", FORBIDDEN_CALLS)
def test_calls(folder: str) -> None:
    forbidden = re.compile(FORBIDDEN_CALLS[folder])
    wrong = [
        f"{name(path)} calls {call}"
        for path in sources(folder, ".h", ".cpp", ".cu", ".cuh")
        for call in forbidden.findall(without_comments(path.read_text()))
        # The one variable of the environment that the core reads is PQK_FORCE_ISA.
        if (call, path.name) != ("getenv", "isa.cpp")
    ]
    assert wrong == []


def test_kernels_include_nothing_in_their_instruction_set_region() -> None:
    for path in sources("csrc/core", ".cpp"):
        if not path.stem.endswith("_cpu"):
            continue
        headers = INCLUDE.findall(path.read_text())
        assert "core/isa_begin.h" in headers, name(path)
        after = headers[headers.index("core/isa_begin.h") + 1 :]
        # Only the package's own fragments, which have no includes of their own, may follow.
        assert after[-1] == "core/isa_end.h", name(path)
        for header in after[:-1]:
            assert header.endswith("_cpu.h"), f"{name(path)}: {header}"
            assert INCLUDE.findall((ROOT / "csrc" / header).read_text()) == [], header


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, also those inside functions; not those for type checkers only."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _without_type_checking(tree: ast.Module) -> ast.Module:
    class Remove(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node

    return Remove().visit(tree)


def test_the_runtime_imports_nothing_else() -> None:
    wrong = []
    for path in [*sources("pqk_ext/runtime", ".py"), ROOT / "pqk_ext" / "errors.py"]:
        for module in imports(path):
            own = any(module == allowed or module.startswith(f"{allowed}.") for allowed in RUNTIME_IMPORTS)
            if not own and module.split(".")[0] not in sys.stdlib_module_names:
                wrong.append(f"{name(path)} imports {module}")
    assert wrong == []


def test_ops_do_not_know_what_is_above_them() -> None:
    above = {"nn", "prune", "quant", "distill", "methods", "models", "data", "runtime", "cli", "preparation", "deploy"}
    wrong = [
        f"{name(path)} imports {module}"
        for path in sources("pqk_ext/ops", ".py")
        for module in imports(path)
        if module.startswith("pqk_ext.") and module.split(".")[1] in above
    ]
    assert wrong == []


def test_importing_the_package_loads_neither_torch_nor_native_code() -> None:
    script = (
        "import sys, pqk_ext; "
        "loaded = [m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy') or m == 'pqk_ext._core']; "
        "sys.exit(' '.join(loaded) or 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("folder", ["csrc", "pqk_ext", "tests"])
def test_files_stay_short(folder: str) -> None:
    long = {
        name(path): lines
        for path in sources(folder, ".h", ".cpp", ".cu", ".cuh", ".py", ".pyi")
        if (lines := len(path.read_text().splitlines())) > LONGER.get(name(path), MAX_LINES)
    }
    assert long == {}
