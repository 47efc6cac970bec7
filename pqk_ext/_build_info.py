"""How the native parts were built and which of them are in use."""

from __future__ import annotations

import importlib.util

from pqk_ext import _core


def build_info() -> dict[str, object]:
    """Facts for a bug report: version, compiler, which libraries were built, instruction sets.

    Returns:
        A dictionary with keys ``version``, ``compiler``, ``torch_ops``, ``cuda_ops``, ``cuda_engine``,
        ``torch_built_against``, ``torch_running`` (None without torch), ``isa`` (the instruction set in use) and
        ``isas_supported``.
    """
    info: dict[str, object] = dict(_core.build_config())
    info["torch_running"] = None
    if importlib.util.find_spec("torch") is not None:
        import torch

        info["torch_running"] = torch.__version__
    info["isa"] = _core.active_isa()
    info["isas_supported"] = _core.supported_isas()
    return info
