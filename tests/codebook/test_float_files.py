"""Files of networks with shared weights: what they hold and what they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pqk_ext
from pqk_ext import models, runtime, share_weights
from pqk_ext.deploy import assert_close, lower_float, relative_difference
from pqk_ext.runtime import format as files

from ..networks import SmallNet, batch
from .float_networks import NETWORKS, every_operator, shared


@pytest.mark.parametrize("sparsity", [0.0, 0.8])
@pytest.mark.parametrize("name", NETWORKS)
def test_file_computes_the_network(name: str, sparsity: float, tmp_path: Path) -> None:
    model, x = shared(name, sparsity)
    pqk_ext.export(model, tmp_path / "net.pqk", example_inputs=x)
    assert_close(model, tmp_path / "net.pqk", x, num_threads=2, tolerance=2e-5)
    for isa in pqk_ext._core.supported_isas():
        pqk_ext._core.force_isa(isa)
        try:
            assert_close(model, tmp_path / "net.pqk", x, tolerance=2e-5)
        finally:
            pqk_ext._core.force_isa("")


def test_file_of_every_operator(tmp_path: Path, isa: str) -> None:
    model, x = every_operator()
    pqk_ext.export(model, tmp_path / "net.pqk", example_inputs=x)
    assert_close(model, tmp_path / "net.pqk", x, tolerance=1e-5)


def test_file_holds_the_graph(tmp_path: Path) -> None:
    model, x = shared("resnet8", 0.8)
    pqk_ext.export(model, tmp_path / "net.pqk", example_inputs=x)
    graph = lower_float(model, x)
    read = files.read(tmp_path / "net.pqk")
    for node, same in zip(graph.nodes, read.nodes, strict=True):
        assert (node.op, node.inputs, node.attributes) == (same.op, same.inputs, same.attributes)
        for name, tensor in node.tensors.items():
            assert np.array_equal(tensor, same.tensors[name])
    assert files.dumps(graph) == (tmp_path / "net.pqk").read_bytes()


def test_pruned_files_are_smaller(tmp_path: Path) -> None:
    sizes = []
    for sparsity in (0.0, 0.8, 0.95):
        model, x = shared("resnet8", sparsity)
        pqk_ext.export(model, tmp_path / "net.pqk", example_inputs=x)
        sizes.append((tmp_path / "net.pqk").stat().st_size)
    weights = sum(p.numel() for p in models.create("resnet8").parameters())
    assert sizes[0] < 0.75 * weights  # less than 6 bits a weight with everything
    assert sizes[1] < 0.6 * sizes[0]
    assert sizes[2] < 0.6 * sizes[1]


def test_after_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = share_weights(SmallNet(), 16, scope="network", sparsity=0.5).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(5):
        x, y = batch(step)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    pqk_ext.export(model, tmp_path / "net.pqk", example_inputs=x)
    assert_close(model, tmp_path / "net.pqk", x)
    assert model.training
    network = runtime.load(tmp_path / "net.pqk")
    weights = [
        n.tensors["codebook"][n.tensors["weight"].astype(int) + n.attributes["zero"]]
        for n in network.graph.nodes
        if "weight" in n.tensors
    ]
    for name, weight in zip(("conv1", "conv2", "fc"), weights, strict=True):
        assert np.array_equal(weight, model.get_submodule(name).weight.detach().numpy())


def test_difference_is_found(tmp_path: Path) -> None:
    model, x = shared("resnet8", 0.0)
    pqk_ext.export(model, tmp_path / "net.pqk", example_inputs=x)
    with torch.no_grad():
        next(iter(pqk_ext.codebook.shared_layers(model).values())).centroids[0] += 0.01
    assert relative_difference(model, tmp_path / "net.pqk", x) > 1e-4
    with pytest.raises(AssertionError, match=r"differ by .* of the largest output"):
        assert_close(model, tmp_path / "net.pqk", x)
    with pytest.raises(ValueError, match="at least one sample"):
        assert_close(model, tmp_path / "net.pqk", x[:0])


def test_export_refuses(tmp_path: Path) -> None:
    model, x = shared("resnet8", 0.0)
    with pytest.raises(ValueError, match="example_inputs is needed"):
        pqk_ext.export(model, tmp_path / "net.pqk")
    with pytest.raises(ValueError, match="calibration has no use"):
        pqk_ext.export(model, tmp_path / "net.pqk", example_inputs=x, calibration=x)
    with pytest.raises(TypeError, match="example_inputs must be a float32 tensor"):
        pqk_ext.export(model, tmp_path / "net.pqk", example_inputs=x.double())
    assert not list(tmp_path.iterdir())
