"""Published systems of compression as recipes on shared parts, one a file.

A *method* is a function of a :class:`Run`; a *recipe* is a YAML file that names a method, a network, data and settings.
``pqk train --recipe NAME`` and :func:`run` do the same: train, write the files, compare their bits, measure.
"""

from __future__ import annotations

import importlib
import pkgutil

from pqk_ext.methods._registry import METHODS, Method, method
from pqk_ext.methods.recipe import Recipe, Training, load_recipe, parse_change, recipe_names
from pqk_ext.methods.run import Run, run

__all__ = [
    "METHODS",
    "Method",
    "Recipe",
    "Run",
    "Training",
    "load_recipe",
    "method",
    "parse_change",
    "recipe_names",
    "run",
]

for _module_info in pkgutil.iter_modules(__path__):
    if not _module_info.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module_info.name}")
