"""The loaders on the real sets, unpacked from the data folder's archives by the project's own tool."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pqk_ext import data

TOOL = Path(__file__).parents[2] / "tools" / "unpack_archives.py"


def test_speech_folder_gives_the_embedded_features(data_dir: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, TOOL, data_dir, tmp_path, "speech"], check=True, stdout=subprocess.DEVNULL)
    x, y = data.speech_commands(tmp_path / "speech_commands", "all").tensors
    shipped, _ = data.keyword_spotting_arrays("all")
    _, paths = data.keyword_spotting_sources("all")
    row = {path: number for number, path in enumerate(paths)}
    folder = tmp_path / "speech_commands"
    order = [row[f"{word}/{path.name}"] for word in data.KEYWORDS for path in sorted((folder / word).glob("*.wav"))]
    assert y.bincount().tolist() == [81, 81, 82, 81, 79, 80, 79, 82, 87, 84, 82, 82]
    expected = torch.from_numpy(shipped[order])
    assert ((x - expected).abs() <= expected.abs() * 2**-11 + 1e-3).all()


@pytest.mark.long
def test_cifar10_binary_files(data_dir: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, TOOL, data_dir, tmp_path, "cifar10"], check=True, stdout=subprocess.DEVNULL)
    train, test = data.cifar10(tmp_path), data.cifar10(tmp_path, train=False)
    assert (len(train), len(test)) == (50_000, 10_000)
    # The documented statistics are those of the training images.
    pixels = train.images.numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(pixels.mean(1) / 255, (0.4914, 0.4822, 0.4465), atol=1e-4)
    np.testing.assert_allclose(pixels.std(1) / 255, (0.2470, 0.2435, 0.2616), atol=1e-4)
