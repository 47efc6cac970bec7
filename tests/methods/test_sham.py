"""Prune, share, code: networks of few different weights and what they take in each layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pqk_ext import codebook, export, runtime, share_weights
from pqk_ext.deploy.lower import weight_codes
from pqk_ext.methods import load_recipe, run
from pqk_ext.methods._layouts import file_layouts, published_layouts, shares
from pqk_ext.methods.sham import ShamSettings, integer_network
from pqk_ext.nn import PQKLayer
from pqk_ext.runtime import format
from pqk_ext.training import TrainingInterrupted
from pqk_ext.training.signals import stop_after_step
from tests.networks import SmallNet, enliven

SHORT = {"training.steps": 12, "training.batch_size": 8}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"codebook": "k-means"},
            "codebook: expected one of kmeans, entropy, probabilistic, uniform, none, got 'k-means'",
        ),
        ({"k": 1}, r"k: expected an integer from 2 to 255, got 1"),
        ({"k": 8.0}, r"k: expected an integer from 2 to 255, got 8\.0"),
        ({"scope": "all"}, "scope: expected one of layer, kind, network, got 'all'"),
        ({"float_share": 1.5}, r"float_share: expected a number in \[0, 1\], got 1\.5"),
        ({"float_share": 0.6, "prune_share": 0.5}, r"prune_share: expected at most 1 - float_share, got 0\.5"),
        ({"share_lr": 0}, r"share_lr: expected a number in \(0, inf\), got 0"),
        ({"files": ("int4",)}, "files: expected some of float, int8, got"),
        ({"files": "int8"}, "files: expected a list of at least 1 names, got 'int8'"),
        ({"codebook": "none"}, "files: expected int8 alone without a codebook"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShamSettings(**values)


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_equal_weights_have_equal_codes(scope: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    shared = share_weights(enliven(SmallNet(), x), k=9, sparsity=0.6, scope=scope)
    integer = integer_network(shared, x)
    for name, found in codebook.shared_layers(shared).items():
        layer = integer.get_submodule(name)
        assert isinstance(layer, PQKLayer)
        codes, own = weight_codes(layer).ravel(), found.codes.numpy().ravel()
        for code in np.unique(own):
            assert len(np.unique(codes[own == code])) == 1
        assert (codes[own == 0] == 0).all()
        assert np.abs(codes).max() == 127
    with torch.no_grad():
        expected = shared(x)
    assert float((integer(x) - expected).abs().max() / expected.abs().max()) < 0.1


def test_layouts_of_a_matrix_by_hand() -> None:
    # As a matrix of 4 inputs and 2 outputs: 5 zeros, 2 ones, a two: codes of 1, 2 and 2 bits.
    found = published_layouts(torch.tensor([[0.0, 1.0, -0.0, 0.0], [0.0, 2.0, 1.0, 0.0]]))
    assert (found["weights"], found["distinct"], found["sparsity"]) == (8, 3, 5 / 8)
    assert found["entropy"] == pytest.approx(
        -(5 / 8 * np.log2(5 / 8) + 1 / 4 * np.log2(1 / 4) + 1 / 8 * np.log2(1 / 8))
    )
    assert found["csc"] == (32 * 3 + 8 * (3 + 2)) / 8
    assert found["index_map"] == 8 + 3 * 4
    assert found["layout"] == min(("ham", "sham"), key=lambda name: found[name])
    assert min(found["ham"], found["sham"]) <= found["bound"]
    together = shares([found, found])
    assert together["csc"] == found["csc"] / 32
    assert together["best"] == min(found["ham"], found["sham"]) / 32


@pytest.mark.parametrize("density", [0.02, 0.5])
def test_indices_win_where_few_weights_are_left(density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(1, 33, (128, 300), generator=generator).float()
    weight *= torch.rand(128, 300, generator=generator) < density
    assert published_layouts(weight)["layout"] == ("sham" if density < 0.05 else "ham")


@pytest.mark.parametrize("method", sorted(codebook.METHODS))
def test_pruned_and_shared_is_smaller_than_shared(method: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    model = enliven(SmallNet(), x)
    sizes = []
    for sparsity in (0.0, 0.8):
        generator = torch.Generator().manual_seed(0)
        shared = share_weights(model, k=16, method=method, sparsity=sparsity, generator=generator)
        sizes.append(sum(layer["bytes"] for layer in file_layouts(shared, x).values()))
    assert sizes[1] < sizes[0]


def test_file_layouts_are_those_of_the_file(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    shared = share_weights(SmallNet().eval(), k=16, sparsity=0.8)
    export(shared, tmp_path / "net.pqk", example_inputs=x)
    info = format.inspect(tmp_path / "net.pqk")
    found = file_layouts(shared, x)
    assert [layer["codec"] for layer in found.values()] == [tensor.codec for tensor in info.weights]
    assert sum(layer["bytes"] for layer in found.values()) == (
        sum(tensor.payload_bytes for tensor in info.weights) + info.parts["codebook"]
    )


def test_the_recipe_ends_in_two_files_within_the_bounds(tmp_path: Path) -> None:
    result = run(load_recipe("sham", SHORT | {"settings.k": 16}), tmp_path, progress=False)
    networks, facts = result["networks"], result["facts"]
    assert networks["int8"]["parity"]["different"] == 0
    assert networks["float"]["relative_difference"] < 1e-4
    assert facts["pruned_sparsity"] == pytest.approx(0.8, abs=0.005)
    for layer in facts["layers"]:
        assert layer["distinct"] <= 17
        assert layer["sparsity"] == pytest.approx(0.0 if "depthwise" in layer["name"] else 0.8, abs=0.01)
        assert min(layer["ham"], layer["sham"]) <= layer["bound"]
        assert layer["entropy"] * layer["weights"] / 8 <= layer["ham"]
    psi = facts["shares_of_float32"]
    assert psi["float_file"] < psi["best"] <= psi["ham"] < psi["index_map"] < psi["csc"]
    graph = runtime.load(tmp_path / "int8.pqk").graph
    codes = [node.tensors["weight"] for node in graph.nodes if "weight" in node.tensors]
    assert all(len(np.unique(weight)) <= 17 for weight in codes)


def test_without_pruning_or_without_a_codebook(tmp_path: Path) -> None:
    changes = SHORT | {"training.steps": 4, "pqk.sparsity": 0.0, "settings.files": ["float"]}
    shared = run(load_recipe("sham", changes), tmp_path / "shared", progress=False)
    assert list(shared["networks"]) == ["float"]
    assert shared["networks"]["float"]["sparsity"] < 0.2
    assert not (tmp_path / "shared" / "pruned").exists()
    changes = SHORT | {"training.steps": 4, "settings.codebook": "none", "settings.files": ["int8"]}
    pruned = run(load_recipe("sham", changes), tmp_path / "pruned", progress=False)
    assert list(pruned["networks"]) == ["int8"]
    assert not (tmp_path / "pruned" / "shared").exists()
    assert pruned["networks"]["int8"]["sparsity"] > 0.7


def test_a_run_stopped_in_each_stage_ends_with_the_same_files(tmp_path: Path) -> None:
    recipe = load_recipe("sham", SHORT | {"training.steps": 10, "settings.codebook": "probabilistic"})
    run(recipe, tmp_path / "whole", progress=False)
    token = stop_after_step.set(2)  # the first stage has 1 step, the second 6, the last 3
    try:
        for _ in range(2):
            with pytest.raises(TrainingInterrupted):
                run(recipe, tmp_path / "stopped", progress=False)
    finally:
        stop_after_step.reset(token)
    run(recipe, tmp_path / "stopped", progress=False)
    for name in ("float", "int8"):
        assert (tmp_path / "whole" / f"{name}.pqk").read_bytes() == (tmp_path / "stopped" / f"{name}.pqk").read_bytes()
