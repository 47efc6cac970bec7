"""The library of CUDA kernels: what it depends on, and what it registers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pqk_ext
from tests.ops.cuda_ops import emulated_namespace

ROOT = Path(__file__).parent.parent.parent
PACKAGE = Path(pqk_ext.__file__).parent
LIBRARY = PACKAGE / "_ops_cuda.so"
needs_library = pytest.mark.skipif(
    not LIBRARY.exists(), reason="_ops_cuda.so was NOT built: no CUDA compiler was found"
)
# Masked layers are torch's own on a weight masked once, which no kernel of ours would beat. A weight is compressed once
# for all calls.
WITHOUT_A_KERNEL = {
    "pqk::masked_conv2d",
    "pqk::masked_conv2d_backward",
    "pqk::masked_linear",
    "pqk::masked_linear_backward",
    "pqk::semi_structured_compress",
}
# Namespace and dispatch key -> which ops have a kernel there. Only the libraries are loaded: the package itself gives
# ops without a kernel one made of torch's operators.
KERNELS = """
import json, sys, torch
for library in sys.argv[1:]:
    torch.ops.load_library(library)
has = torch._C._dispatch_has_kernel_for_dispatch_key
names = sorted({schema.name + (schema.overload_name and "." + schema.overload_name)
                for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("pqk::")})
print(json.dumps({key: [name for name in names if has(name, key)] for key in ("CPU", "CUDA")}))
"""


def implemented() -> set[str]:
    """The ops that the bindings of the CUDA kernels name."""
    sources = sorted((ROOT / "csrc" / "torch").glob("*_cuda.cpp"))
    names = {name for path in sources for name in re.findall(r'm\.impl\("([\w.]+)"', path.read_text())}
    assert names
    return names


@pytest.fixture(scope="module")
def kernels() -> dict[str, set[str]]:
    libraries = [str(PACKAGE / "_ops.so"), str(LIBRARY)]
    command = [sys.executable, "-c", KERNELS, *libraries]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    found: dict[str, list[str]] = json.loads(result.stdout)
    return {key: set(names) for key, names in found.items()}


@needs_library
def test_registers_its_kernels(kernels: dict[str, set[str]]) -> None:
    assert {f"pqk::{name}" for name in implemented()} <= kernels["CUDA"]


@needs_library
def test_every_op_has_a_kernel_or_a_reason(kernels: dict[str, set[str]]) -> None:
    assert kernels["CPU"] - kernels["CUDA"] == WITHOUT_A_KERNEL


def test_the_emulation_has_the_same_kernels() -> None:
    emulated_namespace()
    for name in implemented():
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pqk_emulated::{name}", "CPU"), name


@needs_library
def test_library_needs_no_cuda_library() -> None:
    dynamic = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert needed
    assert not [name for name in needed if "cuda" in name or "cudart" in name]
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", LIBRARY], capture_output=True, text=True, check=True
    ).stdout.split()
    # torch's CPU library defines this constant.
    assert [s for s in symbols if "cuda" in s.lower()] == ["aoti_torch_device_type_cuda"]
