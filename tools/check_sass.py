#!/usr/bin/env python3
"""Checks the machine code of the CUDA kernels against what they promise: wide loads, tensor cores, no spills.

    python tools/check_sass.py pqk_ext/_ops_cuda.so

Needs ``cuobjdump`` (of the CUDA toolkit on PATH or in $CUDA_HOME/bin, or of an installed triton) and ``c++filt``.
Exits with 1 when a promise is broken, on any architecture in the library.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

# Loads from and stores to local memory: registers did not suffice, or an array was indexed at run time.
SPILLS = re.compile(r"(LDL|STL)\b")
LOADS_16, STORES_16 = r"LDG\.E(\.\w+)*\.128", r"STG\.E(\.\w+)*\.128"
TENSOR_CORES, SPARSE_TENSOR_CORES = r"IMMA\.16832", r"IMMA\.SP\.16864"
DOT_PRODUCTS = r"IDP\.4A"
ASYNC_COPIES, MATRIX_LOADS = r"LDGSTS\.E(\.\w+)*\.128", r"LDSM\.16\.M88\.4"


@dataclass(frozen=True)
class Promise:
    """Every kernel whose name matches ``kernel`` has each of the instructions ``has``, and there is such a kernel."""

    kernel: str
    has: tuple[str, ...]


PROMISES = (
    # Packs of 16 bytes: 4 floats, 2 doubles, 8 bfloat16.
    Promise(r"\bforward_kernel<(float, 4|double, 2|pqk::cuda::BFloat16, 8),", (LOADS_16, STORES_16)),
    Promise(r"\bstraight_through_kernel<(unsigned int, 4|unsigned long, 2|unsigned short, 8)>", (LOADS_16, STORES_16)),
    Promise(r"\bbackward_by_(slice|column)<(float, 4|double, 2|pqk::cuda::BFloat16, 8)>", (LOADS_16, STORES_16)),
    Promise(r"\bsum_by_(block|warp)<", (LOADS_16,)),
    Promise(r"\bint8_matrix_kernel<.*VectorLoader>", (TENSOR_CORES, ASYNC_COPIES, MATRIX_LOADS, STORES_16)),
    Promise(r"\bint8_matrix_kernel<.*GatherLoader>", (TENSOR_CORES, ASYNC_COPIES, MATRIX_LOADS, STORES_16)),
    Promise(r"\bsparse_matrix_kernel<", (SPARSE_TENSOR_CORES, ASYNC_COPIES, MATRIX_LOADS, STORES_16)),
    Promise(r"\bint8_vector_kernel<", (DOT_PRODUCTS, LOADS_16)),
    Promise(r"\bint8_depthwise_kernel", (DOT_PRODUCTS, LOADS_16)),
    Promise(r"\bcuda::\(anonymous namespace\)::quantize_kernel<(un)?signed char, 4,", (LOADS_16,)),
    Promise(r"\bdequantize_kernel<(un)?signed char, 4,", (STORES_16,)),
    Promise(r"\bmask_kernel<(unsigned int, 4|unsigned long, 2|unsigned short, 8)>", (LOADS_16, STORES_16)),
    # Coded weights, whatever the codec; batch norm and what follows it; soft histograms.
    Promise(r"\bdecode_kernel<", (LOADS_16, STORES_16)),
    Promise(r"\bbitmask_expand_kernel\(", (LOADS_16, STORES_16)),
    Promise(r"\bcoded_linear_kernel<", (LOADS_16, DOT_PRODUCTS)),
    Promise(r"\bcodebook_linear_kernel<", (LOADS_16,)),
    Promise(r"\bstatistics_kernel<4>", (LOADS_16,)),
    Promise(r"\b(forward_kernel<4>|sums_kernel<4>|gradient_kernel<4,)", (LOADS_16, STORES_16)),
    Promise(r"\bhistogram_kernel\(", (LOADS_16,)),
    Promise(r"\bbackward_kernel<(32|256)>", (LOADS_16, STORES_16)),
)
# Of the engine, _engine_cuda: tensor cores fed by 16-byte loads, from shared memory where activations stay there.
ENGINE_PROMISES = (
    Promise(r"\bresident_kernel\b", (r"LDS\.128", r"LDG\.E\.128", TENSOR_CORES)),
    Promise(r"\bstep_kernel<pqk::engine::device::Conv>", (LOADS_16, TENSOR_CORES)),
)
# Kernels that may use local memory, and how many instructions of theirs at most.
MAY_SPILL = {
    # A decoder, and the sums of 4 rows: more state than a thread has registers.
    r"\bcodebook_linear_kernel<\(pqk::cuda::DeviceCodec\)[23], 4>": 32,
    # Float64, which is for checks.
    r"\bpositions_kernel<double, true>": 2,
}


@dataclass
class Kernel:
    """One kernel on one architecture."""

    name: str
    architecture: str
    instructions: Counter[str] = field(default_factory=Counter)

    def has(self, pattern: str) -> bool:
        return any(re.match(pattern, instruction) for instruction in self.instructions)


def find_cuobjdump() -> str | None:
    """The disassembler's path, or None."""
    found = shutil.which("cuobjdump")
    if found is not None:
        return found
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    if (triton := importlib.util.find_spec("triton")) is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return next((str(folder / "cuobjdump") for folder in folders if (folder / "cuobjdump").exists()), None)


def demangled(names: list[str]) -> list[str]:
    command = shutil.which("cu++filt") or shutil.which("c++filt")
    if command is None:
        raise SystemExit("check_sass: c++filt is not installed (package binutils)")
    result = subprocess.run([command], input="\n".join(names), capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_ARCHITECTURE = re.compile(r"^\s*(?:arch = |\.target\s+|code for )(sm_\w+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)")


def parse(listing: str) -> list[Kernel]:
    """The kernels of what ``cuobjdump -sass`` prints."""
    kernels: list[Kernel] = []
    architecture = "unknown"
    for line in listing.splitlines():
        if match := _ARCHITECTURE.match(line):
            architecture = match[1]
        elif match := _FUNCTION.match(line):
            kernels.append(Kernel(match[1], architecture))
        elif kernels and (match := _INSTRUCTION.match(line)):
            kernels[-1].instructions[match[1]] += 1
    for kernel, name in zip(kernels, demangled([kernel.name for kernel in kernels]), strict=True):
        kernel.name = name
    return kernels


def broken(kernels: list[Kernel], promises: tuple[Promise, ...] = PROMISES) -> list[str]:
    """One sentence for each promise that does not hold."""
    wrong: list[str] = []
    for promise in promises:
        promised = [kernel for kernel in kernels if re.search(promise.kernel, kernel.name)]
        if not promised:
            wrong.append(f"no kernel matches {promise.kernel}")
        wrong += [
            f"{kernel.name} on {kernel.architecture} has no {instruction}"
            for kernel in promised
            for instruction in promise.has
            if not kernel.has(instruction)
        ]
    for kernel in kernels:
        spills = sum(count for name, count in kernel.instructions.items() if SPILLS.match(name))
        allowed = max((most for pattern, most in MAY_SPILL.items() if re.search(pattern, kernel.name)), default=0)
        if spills > allowed:
            wrong.append(f"{kernel.name} on {kernel.architecture} has {spills} accesses to local memory")
    return wrong


def promises_of(library: Path) -> tuple[Promise, ...]:
    """What the kernels of a library promise, by its name."""
    return ENGINE_PROMISES if library.name.startswith("_engine_cuda") else PROMISES


def disassemble(cuobjdump: str, library: Path) -> list[Kernel]:
    """The kernels of a library, of all architectures."""
    return parse(subprocess.run([cuobjdump, "-sass", str(library)], capture_output=True, text=True, check=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("library", type=Path)
    parser.add_argument("--list", action="store_true", help="print each kernel's memory and matrix instructions too")
    arguments = parser.parse_args()
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        print("check_sass: no cuobjdump on PATH, in $CUDA_HOME/bin or in triton", file=sys.stderr)
        return 2
    kernels = disassemble(cuobjdump, arguments.library)
    if arguments.list:
        shown = re.compile(r"LD[GSL]|ST[GSL]|IMMA|IDP")
        for kernel in kernels:
            counts = sorted((i, n) for i, n in kernel.instructions.items() if shown.match(i))
            print(f"{kernel.architecture} {kernel.name}: " + ", ".join(f"{n} {i}" for i, n in counts))
    wrong = broken(kernels, promises_of(arguments.library))
    print("\n".join(wrong) or f"{len(kernels)} kernels keep their promises")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
