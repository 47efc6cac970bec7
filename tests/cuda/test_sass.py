"""The CUDA kernels' machine code keeps what tools/check_sass.py promises."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

import pqk_ext

PACKAGE = Path(pqk_ext.__file__).parent
TOOL = Path(__file__).parent.parent.parent / "tools" / "check_sass.py"

LISTING = """
Fatbin elf code:
arch = sm_90
	code for sm_90
		Function : _ZN3pqk4cuda4goodEPf
        /*0000*/                   LDC R1, c[0x0][0x28] ;   /* 0x00000a00ff017b82 */
                                                            /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;  /* 0x0000000402047981 */
        /*0020*/                   IMMA.16832.U8.S8 R4, R8.ROW, R12.COL, R4 ;
		Function : _ZN3pqk4cuda3badEPf
        /*0010*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0018*/                   IMMA.SP.16864.S8.U8 R4, R8.ROW, R12.COL, R4, R2, 0x0 ;
        /*0020*/               @P1 STL.64 [R1+0x8], R2 ;
"""


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("check_sass", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_sass"] = module
    spec.loader.exec_module(module)
    return module


def test_finds_broken_promises(tool: Any) -> None:
    kernels = tool.parse(LISTING)
    assert [(kernel.name, kernel.architecture) for kernel in kernels] == [
        ("pqk::cuda::good(float*)", "sm_90"),
        ("pqk::cuda::bad(float*)", "sm_90"),
    ]
    assert kernels[0].instructions == {"LDC": 1, "LDG.E.128": 1, "IMMA.16832.U8.S8": 1}
    spill = "pqk::cuda::bad(float*) on sm_90 has 1 accesses to local memory"
    assert tool.broken(kernels, (tool.Promise("bad", (tool.SPARSE_TENSOR_CORES,)),)) == [spill]
    promise = tool.Promise("good|bad|absent", (tool.LOADS_16, tool.TENSOR_CORES))
    assert tool.broken(kernels, (promise, tool.Promise("absent", ()))) == [
        f"pqk::cuda::bad(float*) on sm_90 has no {tool.LOADS_16}",
        f"pqk::cuda::bad(float*) on sm_90 has no {tool.TENSOR_CORES}",
        "no kernel matches absent",
        spill,
    ]


@pytest.mark.long  # disassembling takes half a minute an architecture; .ci/run does it after the suite
@pytest.mark.parametrize("library", ["_ops_cuda", "_engine_cuda"])
def test_kernels_keep_their_promises(tool: Any, library: str) -> None:
    cuobjdump = tool.find_cuobjdump()
    if cuobjdump is None:
        pytest.skip("no cuobjdump on PATH, in $CUDA_HOME/bin or in triton: machine code was NOT checked")
    built = list(PACKAGE.glob(f"{library}.*so"))
    if not built:
        pytest.skip(f"{library} was NOT built: no CUDA compiler was found")
    kernels = tool.disassemble(cuobjdump, built[0])
    assert kernels
    assert tool.broken(kernels, tool.promises_of(built[0])) == []
