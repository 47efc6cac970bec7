"""The table of a fact, from results made up here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SUMMARY = {
    "experiment": "compare:\n- [a, b]\n- [a, c]\n",
    "cells": [
        {"arm": arm, "seed": seed, "result": {"facts": {"divergence": value, "anchors": [1, 2]}}}
        for arm, values in (("a", (1.0, 2.0, 4.0)), ("b", (0.5, 1.0, 3.5)))
        for seed, value in enumerate(values)
    ]
    + [{"arm": "c", "seed": 0, "state": "missing"}],
}


@pytest.fixture(scope="module")
def facts() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks/methods/facts.py"
    spec = importlib.util.spec_from_file_location("facts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_means_and_paired_differences(facts: ModuleType) -> None:
    lines = facts.table(SUMMARY, "divergence").splitlines()
    assert "| a | 2.3333 ± 1.5275 | 3 |" in lines
    # Differences 0.5, 1, 0.5: mean 2/3, deviation 0.2887, Student's t of 2 degrees 4.3027.
    assert "| a - b | +0.6667 | -0.0504 .. +1.3838 | 3 |" in lines
    assert not any("| a - c" in line for line in lines)


def test_a_fact_that_no_run_has(facts: ModuleType) -> None:
    for name in ("anchors", "weight"):
        with pytest.raises(ValueError, match=f"fact: no run of this experiment has a number '{name}'"):
            facts.table(SUMMARY, name)
