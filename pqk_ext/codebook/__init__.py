"""Weight sharing: few values for many weights, trained on, and stored as codes into a codebook.

The methods are those compared by Marino, Petrini, Malchiodi and Frasca, "Deep neural networks compression: a
comparative survey and choice recommendations" (Neurocomputing 520, 2023), one function a file; every file of this
folder without a leading underscore is imported as one.
"""

from __future__ import annotations

import importlib
import pkgutil

from pqk_ext.codebook._registry import METHODS, Codebook, codebook_method
from pqk_ext.codebook._share import SharedLayer, share_weights, shared_layers, unshare_weights
from pqk_ext.codebook._shared_weight import SharedWeight

__all__ = [
    "METHODS",
    "Codebook",
    "SharedLayer",
    "SharedWeight",
    "codebook_method",
    "share_weights",
    "shared_layers",
    "unshare_weights",
]

for _module_info in pkgutil.iter_modules(__path__):
    if _module_info.name.startswith("_"):
        continue
    _module = importlib.import_module(f"{__name__}.{_module_info.name}")
    for _name in _module.__all__:
        globals()[_name] = getattr(_module, _name)
        __all__ += [_name]
