"""pqk_ext: pruning, quantization and knowledge distillation (PQK) for PyTorch, and a runtime for the result.

Importing the package imports neither torch nor the native code; each name below does so at its first use.
``pqk_ext.runtime`` never imports torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if importlib.util.find_spec(f"{__name__}._core") is None:
    raise ImportError(
        f"{__path__[0]} holds no built libraries: it is the source tree, which Python found before an installed "
        "pqk_ext. Start Python in another folder, or build in place: cmake --preset dev && cmake --build --preset dev"
    )

# Public name -> module that defines it.
_EXPORTS = {
    "FormatError": "pqk_ext.errors",
    "DataError": "pqk_ext.errors",
    "build_info": "pqk_ext._build_info",
    "PQKConfig": "pqk_ext.config",
    "prepare": "pqk_ext.preparation",
    "coded_size": "pqk_ext.entropy",
    "coded_sizes": "pqk_ext.entropy",
    "export": "pqk_ext.deploy",
    "assert_parity": "pqk_ext.deploy",
    "assert_sparsity": "pqk_ext.invariants",
    "assert_resume": "pqk_ext.training",
    "fit": "pqk_ext.training",
    "share_weights": "pqk_ext.codebook",
    "ema_multi_avg_fn": "pqk_ext.training.averaging",
    "controller": "pqk_ext.wrappers",
    "step_with": "pqk_ext.wrappers",
    "unwrap": "pqk_ext.wrappers",
}
_SUBMODULES = (
    "codebook",
    "data",
    "diagnostics",
    "distill",
    "distributed",
    "errors",
    "models",
    "nn",
    "ops",
    "prune",
    "quant",
    "runtime",
    "sensitivity",
    "thin",
)

__all__ = ["__version__", *_EXPORTS, *_SUBMODULES]

if TYPE_CHECKING:
    from pqk_ext import (
        codebook,
        data,
        diagnostics,
        distill,
        distributed,
        errors,
        models,
        nn,
        ops,
        prune,
        quant,
        runtime,
        sensitivity,
        thin,
    )
    from pqk_ext._build_info import build_info
    from pqk_ext.codebook import share_weights
    from pqk_ext.config import PQKConfig
    from pqk_ext.deploy import assert_parity, export
    from pqk_ext.entropy import coded_size, coded_sizes
    from pqk_ext.errors import DataError, FormatError
    from pqk_ext.invariants import assert_sparsity
    from pqk_ext.preparation import prepare
    from pqk_ext.training import assert_resume, fit
    from pqk_ext.training.averaging import ema_multi_avg_fn
    from pqk_ext.wrappers import controller, step_with, unwrap


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
