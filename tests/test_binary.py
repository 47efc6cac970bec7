"""The built libraries: no instruction that only some CPUs run lies outside the code that is chosen by CPU.

One AVX instruction in a function that every CPU runs (a shared inline function, a static initialiser) ends the
process on an older CPU, and no test on a newer one would notice.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pqk_ext

PACKAGE = Path(pqk_ext.__file__).parent
REPOSITORY = Path(__file__).parent.parent
LIBRARIES = ("libpqk_core.so", "_core", "_ops.so", "_ops_cuda.so")

_CHOSEN_BY_CPU = re.compile(r"\bpqk::(avx2|avx512vnni)::")
_SYMBOL = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_INSTRUCTION = re.compile(r"^\s*[0-9a-f]+:\s+(?:(?:rep[nz]*|lock|data16|cs|notrack|bnd)\s+)*(\S+)(.*)$")
# VEX and EVEX mnemonics begin with v; the other such ones are system instructions. Then BMI1 and BMI2.
# (tzcnt is missing on purpose: compilers use its encoding, `rep bsf`, where either meaning is right.)
_SYSTEM = re.compile(
    r"^(verr|verw|vm(call|clear|func|launch|load|mcall|ptrld|ptrst|read|resume|run|save|write|xoff|xon))$"
)
_BMI = frozenset(
    ["andn", "bextr", "blsi", "blsmsk", "blsr", "bzhi", "mulx", "pdep", "pext", "rorx", "sarx", "shlx", "shrx"]
)
_MASK_REGISTER = re.compile(r"%k[0-7]")


def instructions(listing: str) -> Iterator[tuple[str, str, str]]:
    """``(symbol, mnemonic, operands)`` of an ``objdump -d -C`` listing."""
    symbol = ""
    for line in listing.splitlines():
        if match := _SYMBOL.match(line):
            symbol = match[1]
        elif match := _INSTRUCTION.match(line):
            yield symbol, match[1], match[2]


def needs_newer_cpu(mnemonic: str, operands: str) -> bool:
    """Whether the x86-64 baseline lacks the instruction, as far as this package's instruction sets go."""
    if mnemonic in _BMI or _MASK_REGISTER.search(operands):
        return True
    return mnemonic.startswith("v") and not _SYSTEM.match(mnemonic)


def misplaced(listing: str) -> dict[str, str]:
    """Symbols that every CPU may run but that hold a newer CPU's instruction, with the first of these."""
    found: dict[str, str] = {}
    for symbol, mnemonic, operands in instructions(listing):
        if needs_newer_cpu(mnemonic, operands) and not _CHOSEN_BY_CPU.search(symbol):
            found.setdefault(symbol, f"{mnemonic}{operands}".strip())
    return found


def disassemble(library: Path) -> str:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"{platform.machine()} has one instruction set only in this package")
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("objdump is not installed (package binutils): the built libraries were NOT checked")
    command = [objdump, "-d", "-C", "--no-show-raw-insn", str(library)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def library_path(name: str) -> Path:
    paths = sorted(PACKAGE.glob(f"{name}*"))
    paths = [path for path in paths if path.suffix == ".so"]
    if not paths and name == "_ops_cuda.so":
        pytest.skip("this build has no CUDA ops")
    assert len(paths) == 1, f"expected one library {name} in {PACKAGE}, found {paths}"
    return paths[0]


@pytest.mark.parametrize("name", LIBRARIES)
def test_newer_instructions_lie_in_their_namespaces(name: str) -> None:
    assert misplaced(disassemble(library_path(name))) == {}


def test_each_instruction_set_has_its_code() -> None:
    """Guards the test above against a listing that it does not understand."""
    seen: dict[str, set[str]] = {"avx2": set(), "avx512vnni": set()}
    for symbol, mnemonic, operands in instructions(disassemble(library_path("libpqk_core.so"))):
        if match := _CHOSEN_BY_CPU.search(symbol):
            seen[match[1]] |= {mnemonic, *re.findall(r"%[xyz]mm", operands)}
    assert {"%ymm", "vpmaddwd"} <= seen["avx2"]
    assert "%zmm" not in seen["avx2"]
    assert {"%zmm", "vpdpbusd"} <= seen["avx512vnni"]


def test_a_misplaced_instruction_is_found() -> None:
    listing = """
0000000000001000 <_GLOBAL__sub_I_codec.cpp>:
    1000:\tvpxor  %xmm0,%xmm0,%xmm0
    1004:\tret
0000000000001010 <pqk::encode(std::vector<int>)>:
    1010:\tbnd jmp 1000 <x>
    1014:\tshlx   %rax,%rbx,%rcx
0000000000001020 <pqk::avx2::(anonymous namespace)::run(int)>:
    1020:\tvmovdqu (%rdi),%ymm0
0000000000001030 <std::min<long>(long const&, long const&)>:
    1030:\tcs nopw 0x0(%rax,%rax,1)
    1034:\tkmovd  %eax,%k1
0000000000001040 <pqk::isa_name(pqk::Isa)>:
    1040:\tverr   %ax
    1044:\tmovups (%rdi),%xmm0
"""
    assert set(misplaced(listing)) == {
        "_GLOBAL__sub_I_codec.cpp",
        "pqk::encode(std::vector<int>)",
        "std::min<long>(long const&, long const&)",
    }


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_find_each_other_and_hold_no_build_path(name: str) -> None:
    path = library_path(name)
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed (package binutils): RUNPATH was NOT checked")
    dynamic = subprocess.run([readelf, "-d", "-W", str(path)], check=True, capture_output=True, text=True).stdout
    run_paths = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", dynamic)
    assert run_paths == ["$ORIGIN"]
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert not [library for library in needed if "/" in library]
    assert not [library for library in needed if "torch" in library] or name.startswith("_ops")
    for build_path in (rb"/pip-build-env", rb"/site-packages/torch", bytes(REPOSITORY / "csrc")):
        assert build_path not in path.read_bytes()
