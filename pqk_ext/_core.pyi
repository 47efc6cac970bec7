"""Typed view of the native module (csrc/python)."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_CsrValue = TypeVar("_CsrValue", np.int8, np.float32)


def active_isa() -> str: ...
def supported_isas() -> list[str]: ...
def force_isa(name: str) -> None: ...
def build_config() -> dict[str, object]: ...
def csr_from_dense(dense: NDArray[_CsrValue]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[_CsrValue]]: ...
def csr_to_dense(
    crow_indices: NDArray[np.int32],
    col_indices: NDArray[np.int32],
    values: NDArray[_CsrValue],
    cols: int,
    max_bytes: int = ...,
) -> NDArray[_CsrValue]: ...
