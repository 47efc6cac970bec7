"""The data set inside the package."""

from __future__ import annotations

import hashlib
import inspect
import io
import lzma
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pqk_ext import data
from pqk_ext.data import embedded
from pqk_ext.errors import DataError

ASSETS = Path(embedded.__file__).parent / "assets"
SIZES = {"train": 2937, "validation": 973, "test": 980, "all": 4890}


@pytest.mark.parametrize("split", SIZES)
def test_shapes_types_and_counts(split: embedded.Split) -> None:
    x, y = data.keyword_spotting_arrays(split)
    assert x.shape == (SIZES[split], 1, 49, 10)
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    assert np.isfinite(x).all()
    assert x.flags.c_contiguous
    # The table in the documentation.
    row = re.search(rf"\| {split} +\|(.*)\|", inspect.getdoc(data.keyword_spotting) or "")
    assert row
    *counts, total = (int(cell.replace(",", "")) for cell in row[1].split("|"))
    assert np.bincount(y, minlength=12).tolist() == counts
    assert total == len(y)

    dataset = data.keyword_spotting(split)
    assert torch.equal(dataset.tensors[0], torch.from_numpy(x))
    assert torch.equal(dataset.tensors[1], torch.from_numpy(y))


def test_no_speaker_is_in_two_splits() -> None:
    speakers = {split: set(data.keyword_spotting_sources(split)[0]) - {""} for split in SIZES}
    assert len(speakers["all"]) == 239
    assert not speakers["train"] & speakers["validation"]
    assert not speakers["train"] & speakers["test"]
    assert not speakers["validation"] & speakers["test"]


def test_labels_agree_with_the_paths() -> None:
    _, y = data.keyword_spotting_arrays("all")
    _, paths = data.keyword_spotting_sources("all")
    assert [path.split("/")[0] for path in paths] == [data.KEYWORDS[label] for label in y]


def test_arrays_are_fresh() -> None:
    x, _ = data.keyword_spotting_arrays("test")
    x[:] = 0
    assert data.keyword_spotting_arrays("test")[0].any()


def test_equals_the_source(data_dir: Path) -> None:
    with lzma.open(data_dir / "speech_commands_mfcc.npz.xz") as file:
        source = np.load(io.BytesIO(file.read()))
    x, y = data.keyword_spotting_arrays("all")
    assert np.array_equal(x[:, 0], source["mfcc"].astype(np.float32))
    assert np.array_equal(y, source["y"])
    assert tuple(label.decode() for label in source["labels"]) == data.KEYWORDS
    test = source["fold"] == 4
    assert np.array_equal(data.keyword_spotting_arrays("test")[0][:, 0], source["mfcc"][test].astype(np.float32))


def test_fits_the_budget_and_its_digests() -> None:
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) <= 4_000_000
    for line in (ASSETS / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest


def test_attribution_names_every_asset() -> None:
    text = (ASSETS / "ATTRIBUTION.txt").read_text()
    for path in ASSETS.iterdir():
        assert path.name in text or path.name in ("ATTRIBUTION.txt", "SHA256SUMS")


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_damaged_asset_is_refused(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "assets"
    folder.mkdir()
    (folder / "SHA256SUMS").write_bytes((ASSETS / "SHA256SUMS").read_bytes())
    content = bytearray((ASSETS / "ds_cnn.safetensors").read_bytes())
    content[5000] ^= 1
    if damage != "missing":
        (folder / "ds_cnn.safetensors").write_bytes(content[:-100] if damage == "cut" else content)
    monkeypatch.setattr(embedded.resources, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"ds_cnn.safetensors: expected (SHA-256 [0-9a-f]{64}|a file of the package)"):
        embedded.asset_bytes("ds_cnn.safetensors")


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="split: expected one of train, validation, test, all, got 'dev'"):
        data.keyword_spotting_arrays("dev")  # type: ignore[arg-type]


def test_names_are_found_and_typos_refused() -> None:
    for name in data.__all__:
        assert getattr(data, name) is not None
    assert dir(data) == data.__all__
    with pytest.raises(AttributeError, match="no attribute 'cifar11'"):
        _ = data.cifar11


def test_arrays_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pqk_ext import data\n"
        "assert data.keyword_spotting_arrays('test')[0].shape == (980, 1, 49, 10)\n"
        "import pqk_ext.data.features\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
