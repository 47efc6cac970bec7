"""The runtime works where torch is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from pqk_ext.runtime import Model, format
from tests.runtime.graphs import ds_cnn

SCRIPT = """
import sys
from importlib.abc import MetaPathFinder

class NoTorch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "triton"):
            raise ModuleNotFoundError(f"{name} must not be imported")

sys.meta_path.insert(0, NoTorch())
import numpy as np
import pqk_ext
net = pqk_ext.runtime.load(sys.argv[1], num_threads=2)
np.save(sys.argv[3], net(np.load(sys.argv[2])))
assert net.nbytes > 0
others = {m for m in sys.modules if m.startswith("pqk_ext.")}
allowed = ("pqk_ext.runtime", "pqk_ext.errors", "pqk_ext._core")
assert all(m.startswith(allowed) for m in others), others
"""


def test_load_and_run(tmp_path: Path) -> None:
    graph = ds_cnn()
    format.write(graph, tmp_path / "net.pqk")
    x = np.random.default_rng(0).normal(0, 2, (3, *graph.input.shape)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    arguments = [str(tmp_path / name) for name in ("net.pqk", "x.npy", "y.npy")]
    subprocess.run([sys.executable, "-c", SCRIPT, *arguments], check=True, timeout=60)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), Model.from_graph(graph)(x))
