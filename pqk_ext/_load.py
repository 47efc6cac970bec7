"""Loads the native op libraries, or says in one sentence why that failed."""

from __future__ import annotations

from pathlib import Path

import torch

from pqk_ext import _core

_PACKAGE = Path(__file__).parent


def _load_library(path: Path) -> None:
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        built_against = _core.build_config()["torch_built_against"]
        raise ImportError(
            f"{path.name} was built against torch {built_against} and cannot be loaded beside torch "
            f"{torch.__version__}: {error}. Rebuild it: pip install --force-reinstall --no-deps pqk_ext"
        ) from error


def load_ops() -> None:
    """Registers the ops of namespace ``pqk`` with torch.

    Raises:
        ImportError: the op library is missing or does not fit this torch.
    """
    library = _PACKAGE / "_ops.so"
    if not library.exists():
        raise ImportError(
            f"{library} does not exist: this build has no torch ops. Rebuild with torch installed: "
            "pip install --force-reinstall --no-deps pqk_ext"
        )
    _load_library(library)
    cuda_library = _PACKAGE / "_ops_cuda.so"
    if torch.version.cuda and cuda_library.exists():
        _load_library(cuda_library)
