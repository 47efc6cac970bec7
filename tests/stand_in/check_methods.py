"""Every published method on a GPU's stand-in, from nothing to measured files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pqk_ext.methods import METHODS, load_recipe, run
from pqk_ext.methods.data import Data, load_data
from tests.stand_in.device import stand_in

# Settings that make a method's whole course a few steps.
SHORT: dict[str, dict[str, Any]] = {
    "pqk": {},
    "kd": {"settings.teacher_steps": 2},
    "ajpq": {
        "settings.episodes": 3,
        "settings.warmup": 1,
        "settings.float_steps": 2,
        "settings.reward_samples": 16,
        "settings.reward_steps": 1,
    },
    "crosslayer": {"settings.init_fraction": 0.5, "settings.teacher_steps": 2},
    "diffq": {"settings.finetune_fraction": 0.25},
    "gradual_qat_ab": {"settings.teacher_steps": 2, "settings.qat_fraction": 0.25},
    "rco": {"settings.teacher_steps": 4, "settings.snapshots": 2, "settings.anchors": 2, "settings.strategy": "greedy"},
    "sequence": {"settings.stages": ["prune", "quantize", "distill"]},
    "sham": {},
    "student_ensemble": {},
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    whole = load_data("keyword_spotting", "cifar")
    parts = ((x[:: len(x) // 40], y[:: len(y) // 40]) for x, y in (whole.train, whole.validation, whole.test))
    train, validation, test = parts
    few = Data(train, validation, test, whole.classes)
    monkeypatch.setattr(sys.modules["pqk_ext.methods.run"], "load_data", lambda *_: few)
    with stand_in() as mode:
        yield mode


def test_no_method_is_left_out() -> None:
    assert sorted(SHORT) == sorted(METHODS)


@pytest.mark.parametrize("name", SHORT)
def test_it_runs_on_the_device(gpu: Any, tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name, {"training.steps": 6, "training.batch_size": 8} | SHORT[name])
    result = run(recipe, tmp_path, progress=False, device="cuda")
    assert result["networks"]
    for network in result["networks"].values():
        assert network.get("parity", {"different": 0})["different"] == 0
        assert network.get("relative_difference", 0.0) < 1e-4
    assert gpu.own_operators or name == "sham"
