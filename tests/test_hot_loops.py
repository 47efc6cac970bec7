"""The disassembly of the kernels' innermost loops: their sums stay in registers.

A compiler that runs out of registers keeps sums on the stack and says nothing; the loop then takes twice the time and
gives the same numbers, so that no other test would notice. Constants may be read from there: they would be read from
the packed weights otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.test_binary import disassemble, library_path

FUSED = "vfmadd231ps"
MULTIPLY_ADDS = frozenset(["vpdpbusd", "vpmaddwd", FUSED])
# What must be found at least, by instruction set: guards the tests against a listing that they do not understand.
EXPECTED = [
    ("avx2", r"int8_peak_kernel", "vpmaddwd"),
    ("avx512vnni", r"int8_peak_kernel", "vpdpbusd"),
    *[
        (isa, kernel, multiply)
        for isa, multiply in (("avx2", "vpmaddwd"), ("avx512vnni", "vpdpbusd"))
        for kernel in (
            r"multiply_tile<.*\bTile&",  # direct
            r"multiply_tile<.*\bGatherProgram\b",
            r"compute_\w+<.*\bInt8BlocksPlan\b",
            r"multiply_row<",  # depthwise
        )
    ],
    *[
        (isa, kernel, FUSED)
        for isa in ("avx2", "avx512vnni")
        for kernel in (r"multiply_tile<2, \d+>", r"sum_(rows|block)<", r"float_depthwise_kernel|compute<4>")
    ],
    ("avx512vnni", r"multiply_unit_stride<", "vpdpbusd"),  # depthwise3x3
    ("avx512vnni", r"multiply_stride_2<", "vpdpbusd"),
]

_SYMBOL = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(?:(?:rep[nz]*|lock|data16|cs|notrack|bnd)\s+)*(\S+)\s*(.*)$")
_JUMP_TARGET = re.compile(r"^([0-9a-f]+)\b")


@dataclass(frozen=True)
class Instruction:
    address: int
    mnemonic: str
    operands: str


@dataclass(frozen=True)
class Function:
    name: str
    body: list[Instruction]

    def hot_loops(self) -> list[list[Instruction]]:
        """Each backward jump's range that multiplies and adds and holds no smaller such range."""
        start = self.body[0].address
        ranges = set()
        for instruction in self.body:
            target = _JUMP_TARGET.match(instruction.operands)
            if not instruction.mnemonic.startswith("j") or target is None:
                continue
            if start <= int(target[1], 16) < instruction.address:
                ranges.add((int(target[1], 16), instruction.address))
        work = [i.address for i in self.body if i.mnemonic in MULTIPLY_ADDS]
        hot = [(low, high) for low, high in ranges if any(low <= address <= high for address in work)]
        inner = [r for r in hot if not any(o != r and r[0] <= o[0] and o[1] <= r[1] for o in hot)]
        return [[i for i in self.body if low <= i.address <= high] for low, high in sorted(inner)]

    def spills(self) -> list[str]:
        """The vector stores of its hot loops that go to the stack."""
        # Without a frame, rbp is a register like others.
        has_frame = any(i.mnemonic == "mov" and i.operands == "%rsp,%rbp" for i in self.body)
        stack = re.compile(r"%[xyz]mm\d+,[^,]*\(%r(?:sp|bp)\b" if has_frame else r"%[xyz]mm\d+,[^,]*\(%rsp\b")
        return [
            f"{i.address:x}: {i.mnemonic} {i.operands}"
            for loop in self.hot_loops()
            for i in loop
            if stack.match(i.operands)
        ]


def functions(listing: str) -> Iterator[Function]:
    """The functions of an ``objdump -d -C`` listing that multiply and add."""
    for block in re.split(r"\n(?=[0-9a-f]+ <)", listing):
        lines = block.strip().splitlines()
        symbol = _SYMBOL.match(lines[0]) if lines else None
        if symbol is None or not any(name in block for name in MULTIPLY_ADDS):
            continue
        matches = [match for line in lines[1:] if (match := _INSTRUCTION.match(line))]
        yield Function(symbol[1], [Instruction(int(m[1], 16), m[2], m[3].strip()) for m in matches])


@pytest.fixture(scope="module")
def kernels() -> list[Function]:
    return list(functions(disassemble(library_path("libpqk_core.so"))))


@pytest.mark.parametrize(("isa", "symbol", "instruction"), EXPECTED)
def test_the_kernels_are_found(kernels: list[Function], isa: str, symbol: str, instruction: str) -> None:
    found = [k for k in kernels if f"pqk::{isa}::" in k.name and re.search(symbol, k.name)]
    assert any(i.mnemonic == instruction for k in found for loop in k.hot_loops() for i in loop)


@pytest.mark.parametrize("isa", ["avx2", "avx512vnni"])
def test_no_hot_loop_stores_sums_on_the_stack(kernels: list[Function], isa: str) -> None:
    spilled = {k.name: k.spills() for k in kernels if f"pqk::{isa}::" in k.name}
    assert [f"{len(found)} in {name}, as {found[0]}" for name, found in spilled.items() if found] == []


@pytest.mark.parametrize("isa", ["avx2", "avx512vnni"])
def test_the_measured_peak_reads_no_memory(kernels: list[Function], isa: str) -> None:
    (peak,) = (k for k in kernels if k.name.startswith(f"pqk::{isa}::int8_peak_kernel"))
    (loop,) = peak.hot_loops()
    assert sum(i.mnemonic in MULTIPLY_ADDS for i in loop) == 12
    assert [i for i in loop if "(%" in i.operands] == []


LISTING = """
0000000000001000 <pqk::avx2::plain(long)>:
    1000:\tvmovdqa 0x20(%rsp),%ymm1
    1008:\tvpmaddwd (%rdi),%ymm0,%ymm2
    100c:\tvpmaddwd 0x0(%rbp,%rax,1),%ymm0,%ymm2
    1010:\tmov    0x8(%rsp),%rax
    1018:\tjne    1008 <pqk::avx2::plain(long)+0x8>
    1020:\tvmovdqa %ymm1,0x20(%rsp)
    1028:\tjne    1000 <pqk::avx2::plain(long)>
    1030:\tret

0000000000002000 <pqk::avx2::spills(long)>:
    2000:\tpush   %rbp
    2001:\tmov    %rsp,%rbp
    2008:\tvpmaddwd (%rdi),%ymm0,%ymm2
    2010:\tvmovdqa %ymm2,-0x40(%rbp)
    2018:\tvpaddd 0x40(%rsp,%rax,1),%ymm2,%ymm2
    2020:\tcs jne 2008 <pqk::avx2::spills(long)+0x8>
    2028:\tvmovdqa %ymm1,0x20(%rsp)
    2030:\tret

0000000000003000 <pqk::avx2::other(long)>:
    3000:\tvmovdqa %ymm1,0x20(%rsp)
    3008:\tjne    3000 <pqk::avx2::other(long)>
"""


def test_a_spill_is_found() -> None:
    plain, spills = functions(LISTING)
    assert [i.address for i in plain.hot_loops()[0]] == [0x1008, 0x100C, 0x1010, 0x1018]
    assert plain.spills() == []
    assert spills.spills() == ["2010: vmovdqa %ymm2,-0x40(%rbp)"]
