"""Pruning, quantization and distillation in any order: what a stage begins with, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pqk_ext import PQKConfig, runtime
from pqk_ext.methods import Run, load_recipe, run
from pqk_ext.methods.sequence import SequenceSettings, _schedule
from pqk_ext.nn import PQKLayer
from pqk_ext.training.trainee import network_of

SHORT = {"training.batch_size": 8}

Stage = dict[str, Any]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[Stage]:
    """What each stage begins and ends with: masks and step sizes by layer."""
    seen: list[Stage] = []
    fit = Run.fit

    def spy(self: Run, stage: str, model: nn.Module, **options: Any) -> nn.Module:
        before = _state(model)
        trained = fit(self, stage, model, **options)
        seen.append({"stage": stage, "before": before, "after": _state(model)})
        return trained

    monkeypatch.setattr(Run, "fit", spy)
    return seen


def _state(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    layers = {name: layer for name, layer in network_of(model).named_modules() if isinstance(layer, PQKLayer)}
    return {
        "masks": {name: layer.weight_mask.clone() for name, layer in layers.items()},
        "scales": {name: layer.weight_scale.detach().clone() for name, layer in layers.items()},
        "zeros": {name: layer.weight.detach() == 0 for name, layer in layers.items()},
    }


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stages": "prune"}, r"stages: expected a list of stages, each train or prune, .* joined by \+, got 'prune'"),
        ({"stages": ()}, r"stages: expected a list of stages, .*, got \(\)"),
        ({"stages": ("prune+",)}, r"stages: expected a list of stages, .*, got \('prune\+',\)"),
        ({"stages": ("prune+prune",)}, "stages: expected a list of stages"),
        ({"stages": ("train+prune",)}, "stages: expected a list of stages"),
        ({"stages": (1,)}, "stages: expected a list of stages"),
        ({"stages": ("prune", "quantize+prune")}, "stages: expected prune in one stage at most"),
        ({"teacher": "ensemble"}, "teacher: expected one of start, network, inside, got 'ensemble'"),
        ({"stages": ("prune+distill",), "teacher": "inside"}, "teacher: expected start or network where a stage"),
        ({"start_steps": -1}, "start_steps: expected an integer of at least 0, got -1"),
        ({"teacher": "network"}, "teacher_steps: expected at least 1 for a teacher of its own, got 0"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceSettings(**values)


@pytest.mark.parametrize("done", [(), ("prune",), ("quantize",), ("prune", "quantize")])
@pytest.mark.parametrize("action", ["train", "prune", "quantize", "distill"])
def test_a_stage_does_what_it_says_and_no_more(action: str, done: tuple[str, ...]) -> None:
    if action in done:
        return
    base = PQKConfig(sparsity=0.8, total_steps=200, layers={"fc": {"sparsity": 0.5, "weight_bits": 4}})
    changes = _schedule(base, frozenset(done), frozenset({action} - {"train"}))
    config = PQKConfig.from_dict({**base.to_dict(), **changes})
    assert config.float_steps == (0 if "quantize" in (*done, action) else 200)
    assert config.phase1_steps == 200
    pruned = "prune" in (*done, action)
    assert config.sparsity == (0.8 if pruned else 0.0)
    assert config.for_layer("fc").sparsity == (0.5 if pruned else None)
    assert config.for_layer("fc").weight_bits == 4
    if action == "prune":
        assert config.ramp_end_step == base.ramp_end_step
        assert config.mask_update_interval == base.mask_update_interval
    else:
        assert config.mask_update_interval > 200
    if action == "prune" and "quantize" not in done:
        assert config.warmup_steps == base.warmup_steps


def test_one_after_the_other(tmp_path: Path, stages: list[Stage]) -> None:
    recipe = load_recipe(
        "sequence", SHORT | {"training.steps": 10, "settings.stages": ["prune", "quantize", "distill"]}
    )
    result = run(recipe, tmp_path, progress=False)
    assert [entry["steps"] for entry in result["facts"]["stages"]] == [3, 3, 4]
    assert [entry["quantized"] for entry in result["facts"]["stages"]] == [False, True, True]
    first, second, third = stages
    masks = first["after"]["masks"]
    assert all(bool(mask.all()) for mask in first["before"]["masks"].values())
    kept = sum(int(mask.sum()) for name, mask in masks.items() if "depthwise" not in name and name != "linear")
    total = sum(mask.numel() for name, mask in masks.items() if "depthwise" not in name and name != "linear")
    assert kept / total == pytest.approx(0.1, abs=0.001)
    for stage in (second, third):
        assert _same(masks, stage["before"]["masks"])
        assert _same(masks, stage["after"]["masks"])
        assert all(bool(stage["after"]["zeros"][name][~mask].all()) for name, mask in masks.items())
    assert _same(second["after"]["scales"], third["before"]["scales"])
    network = result["networks"]["network"]
    assert network["parity"]["different"] == 0
    codes = [node.tensors["weight"] for node in runtime.load(tmp_path / "network.pqk").graph.nodes if node.tensors]
    assert all(np.abs(weight).max() <= 7 for weight in codes[1:-1])
    assert np.abs(codes[0]).max() > 7


def test_a_quantized_network_is_pruned_with_its_step_sizes(tmp_path: Path, stages: list[Stage]) -> None:
    changes = {"training.steps": 6, "settings.stages": ["quantize", "prune+distill"], "settings.teacher": "network"}
    recipe = load_recipe("sequence", SHORT | changes | {"settings.teacher_steps": 2})
    result = run(recipe, tmp_path, progress=False)
    teacher, first, second = stages
    assert teacher["stage"] == "teacher"
    assert result["extra_steps"] == 2
    assert set(result["facts"]["teacher"]) == {"validation", "test"}
    assert _same(first["after"]["scales"], second["before"]["scales"])
    assert all(bool(mask.all()) for mask in first["after"]["masks"].values())
    assert result["facts"]["stages"][0]["sparsity"] == 0
    assert result["facts"]["stages"][1]["sparsity"] == pytest.approx(0.9, abs=0.001)


def test_all_at_once_with_the_teacher_inside_is_pqk(tmp_path: Path) -> None:
    recipe = load_recipe(
        "sequence", SHORT | {"training.steps": 40, "training.batch_size": 2, "settings.teacher": "inside"}
    )
    run(recipe, tmp_path / "sequence", progress=False)
    changes = {f"pqk.{name}": value for name, value in recipe.pqk.items()}
    changes |= {f"training.{name}": getattr(recipe.training, name) for name in ("steps", "batch_size", "lr")}
    run(load_recipe("pqk", changes), tmp_path / "pqk", progress=False)
    assert (tmp_path / "sequence/network.pqk").read_bytes() == (tmp_path / "pqk/pqk.pqk").read_bytes()


def test_a_network_that_stays_float_is_quantized_after_training(tmp_path: Path) -> None:
    result = run(
        load_recipe("sequence", SHORT | {"training.steps": 2, "settings.stages": ["distill"]}), tmp_path, progress=False
    )
    facts, network = result["facts"], result["networks"]["network"]
    assert facts["float"]["test"] == facts["stages"][0]["test"]
    assert abs(network["test_accuracy"] - facts["float"]["test"]) < 0.03
    assert facts["post_training"]["weight_bits"] == 4
    assert facts["post_training"]["test"] < facts["float"]["test"]
    assert network["sparsity"] < 0.05


def test_without_a_trained_start_there_is_nothing_to_compress(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"settings\.start_steps: expected at least 1 for a network that is not pretr"):
        run(load_recipe("sequence", {"pretrained": False}), tmp_path, progress=False)
