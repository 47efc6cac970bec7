"""Readers of the big data folder, for tests that score published weights."""

from __future__ import annotations

import io
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

Images = tuple[torch.Tensor, torch.Tensor]


def _cifar10(path: Path) -> Images:
    """Images, float32 (N, 3, 32, 32) in 0..255, and int64 labels."""
    with lzma.open(path) as file:
        archive = np.load(io.BytesIO(file.read()))
    # Stored as residuals of G, R - G and B - G along x, then y, modulo 256.
    green, red, blue = archive["r"].cumsum(2, dtype=np.uint8).cumsum(3, dtype=np.uint8)
    pixels = np.stack([red + green, green, blue + green], 1)
    return torch.from_numpy(pixels).float(), torch.from_numpy(archive["y"].astype(np.int64))


@pytest.fixture(scope="session")
def cifar10_test(data_dir: Path) -> Images:
    """The 10,000 CIFAR-10 test images and labels."""
    return _cifar10(data_dir / "cifar10_test.npz.xz")


@pytest.fixture(scope="session")
def cifar10_train(data_dir: Path) -> Images:
    """The first 10,000 CIFAR-10 training images and labels."""
    return _cifar10(data_dir / "cifar10_train1.npz.xz")
