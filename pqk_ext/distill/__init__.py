"""Distillation losses, one function a file; every file of this folder without a leading underscore is imported."""

from __future__ import annotations

import importlib
import pkgutil

from pqk_ext.distill._registry import FEATURE_LOSSES, LOSSES, distillation_loss, feature_loss

__all__ = ["FEATURE_LOSSES", "LOSSES", "distillation_loss", "feature_loss"]

for _module_info in pkgutil.iter_modules(__path__):
    if _module_info.name.startswith("_"):
        continue
    _module = importlib.import_module(f"{__name__}.{_module_info.name}")
    for _name in _module.__all__:
        globals()[_name] = getattr(_module, _name)
        __all__ += [_name]
