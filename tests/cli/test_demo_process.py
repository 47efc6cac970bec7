"""The demo's torch-less process takes the package that runs the demo, wherever it is started."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pqk_ext
from pqk_ext import demo, runtime

GOLDEN = sorted((Path(__file__).parent.parent / "golden" / "v1.0").glob("*.pqk"))


def test_a_source_tree_in_the_current_folder_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pqk_ext").mkdir()
    (tmp_path / "pqk_ext" / "__init__.py").write_text("raise ImportError('the wrong package')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(pqk_ext.__file__).parent.parent))
    network = runtime.load(GOLDEN[0])
    x = np.random.default_rng(0).normal(size=(3, *network.input_shape)).astype(np.float32)
    np.testing.assert_array_equal(demo.run_without_torch(GOLDEN[0], x), network(x))
