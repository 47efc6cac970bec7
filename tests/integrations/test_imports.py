"""The package asks for none of the libraries that it has adapters to."""

from __future__ import annotations

import subprocess
import sys


def test_nothing_else_imports_them() -> None:
    script = """
import sys
blocked = ("lightning", "pytorch_lightning", "transformers", "accelerate")
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
import pqk_ext, pqk_ext.integrations
for name in pqk_ext.__all__:
    getattr(pqk_ext, name)
import pqk_ext.cli.app, pqk_ext.training
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
