"""Data sets: one inside the package, and readers for those that users have on disk.

Importing this package imports neither numpy nor torch; a name is loaded when it is first used. Any
`torch.utils.data.Dataset` of `(x, y)` pairs serves as well wherever the package takes data.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pqk_ext.data.augment import crop_and_flip as crop_and_flip
    from pqk_ext.data.cifar import ImageDataset as ImageDataset
    from pqk_ext.data.cifar import cifar10 as cifar10
    from pqk_ext.data.cifar import cifar100 as cifar100
    from pqk_ext.data.embedded import KEYWORDS as KEYWORDS
    from pqk_ext.data.embedded import keyword_spotting_arrays as keyword_spotting_arrays
    from pqk_ext.data.embedded import keyword_spotting_sources as keyword_spotting_sources
    from pqk_ext.data.keywords import keyword_spotting as keyword_spotting
    from pqk_ext.data.speech import speech_commands as speech_commands

# Public name -> module that defines it. A module must not bear the name of a function of this package: importing it
# would put the module in the function's place.
_WHERE = {
    "ImageDataset": "cifar",
    "KEYWORDS": "embedded",
    "cifar10": "cifar",
    "cifar100": "cifar",
    "crop_and_flip": "augment",
    "keyword_spotting": "keywords",
    "keyword_spotting_arrays": "embedded",
    "keyword_spotting_sources": "embedded",
    "speech_commands": "speech",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
