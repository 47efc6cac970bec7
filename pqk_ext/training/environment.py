"""Random states, and the facts of an environment that a bit-identical resume depends on."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from pqk_ext import __version__, _core

__all__ = ["describe_environment", "random_states", "restore_random_states"]


def describe_environment(device: torch.device, processes: int) -> dict[str, Any]:
    """What must be equal for a resumed run to give the same bits."""
    facts = {
        "torch": str(torch.__version__),
        "pqk_ext": __version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "isa": _core.active_isa(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        "processes": processes,
    }
    if device.type == "cuda":
        facts |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        }
    return facts


def random_states() -> dict[str, Any]:
    """States of the generators of torch (CPU and each CUDA device), NumPy and Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (str(name), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """The inverse of ``random_states``; nothing random may run between this and the next training step."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
