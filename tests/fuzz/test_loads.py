"""The loader on every file of its corpus: each gives a named error or a graph that runs."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent


def test_corpus_of_the_loader() -> None:
    spec = importlib.util.spec_from_file_location("fuzz_loads", HERE / "loads.py")
    assert spec is not None
    assert spec.loader is not None
    loads = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loads)
    outcomes = Counter(loads.attempt(path.read_bytes()) for path in sorted((HERE / "corpus" / "loads").iterdir()))
    assert outcomes["loaded"] >= 5
    assert len(outcomes) >= 15
