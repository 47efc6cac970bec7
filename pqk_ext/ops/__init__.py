"""Native torch ops of namespace ``pqk``: one file an op, each with its plain-torch reference.

Every module of this folder that does not begin with an underscore is an op; its functions named in ``__all__``
are public here.
"""

from __future__ import annotations

import importlib
import pkgutil

from pqk_ext._load import load_ops

load_ops()

__all__: list[str] = []
for _module_info in pkgutil.iter_modules(__path__):
    if _module_info.name.startswith("_"):
        continue
    _module = importlib.import_module(f"{__name__}.{_module_info.name}")
    for _name in _module.__all__:
        globals()[_name] = getattr(_module, _name)
        __all__ += [_name]
