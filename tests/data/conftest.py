"""Sound and image files for the loaders' tests."""

from __future__ import annotations

import io
import lzma
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def fold0(data_dir: Path) -> dict[str, np.ndarray]:
    """980 clips of the Speech Commands test set: `waves` int16 (980, 16000), `y`, `index` (row in the features)."""
    with lzma.open(data_dir / "speech_commands_v2test_fold0.npz.xz") as file:
        archive = dict(np.load(io.BytesIO(file.read())))
    # Stored as zigzag-coded differences, low and high bytes apart.
    coded = archive["lo"] | (archive["hi"].astype(np.uint16) << 8)
    differences = (coded >> 1).astype(np.int16) ^ -(coded & 1).astype(np.int16)
    return {"waves": differences.cumsum(-1, dtype=np.int16), "y": archive["y"], "index": archive["index"]}


@pytest.fixture(scope="session")
def write_wav() -> Callable[..., Path]:
    """A function that writes samples as a wav file."""

    def write(path: Path, samples: np.ndarray, rate: int = 16_000, channels: int = 1, width: int = 2) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(width)
            file.setframerate(rate)
            file.writeframes(samples.tobytes())
        return path

    return write
