"""The float graph of networks with shared weights, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pqk_ext import share_weights
from pqk_ext.deploy import lower_float
from pqk_ext.deploy.lower_float import codes_and_codebook
from pqk_ext.preparation import UnsupportedOperator

from ..networks import SmallNet, batch
from .float_networks import NETWORKS, every_operator, shared
from .float_reference import evaluate

# --- codes and codebook ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 33, 200, 256])
@pytest.mark.parametrize("negative", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("pruned", [False, True])
def test_codes_give_the_weight_back(count: int, negative: float, pruned: bool) -> None:
    generator = torch.Generator().manual_seed(count)
    values = torch.rand(count, generator=generator) + 0.1
    values[: int(negative * count)] *= -1
    if pruned:
        values[0] = 0.0
    weight = values[torch.randint(count, (60, 70), generator=generator)]
    if pruned:
        weight[0, :3] = -0.0
    codes, codebook, zero = codes_and_codebook(weight, "layer")
    assert codes.dtype == np.int8
    assert codebook.dtype == np.float32
    assert bool((np.diff(codebook) > 0).all())
    assert np.array_equal(codebook[codes.astype(int) + zero], weight.numpy())
    # Code 0 is the value 0 unless more than 128 values lie on one side of it.
    below, above = int((codebook < 0).sum()), int((codebook > 0).sum())
    if pruned and below <= 128 and above <= 127:
        assert codebook[zero] == 0
        assert not np.signbit(codebook[zero])
        assert np.array_equal(codes == 0, weight.numpy() == 0)


def test_too_many_values() -> None:
    with pytest.raises(ValueError, match=r"fc: its weight holds 257 different values, a codebook at most 256"):
        codes_and_codebook(torch.arange(257.0)[None], "fc")
    with pytest.raises(ValueError, match="fc: the deployed weights must be finite"):
        codes_and_codebook(torch.tensor([[1.0, float("inf")]]), "fc")


# --- graphs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 0.8])
@pytest.mark.parametrize("name", NETWORKS)
def test_graph_computes_the_network(name: str, sparsity: float) -> None:
    model, x = shared(name, sparsity)
    graph = lower_float(model, x)
    with torch.no_grad():
        expected = model.double()(x.double())
    assert expected.std(0).mean() > 0, "outputs must depend on the inputs, or equality proves nothing"
    assert float((evaluate(graph, x) - expected).abs().max() / expected.abs().max()) < 1e-5
    coded = [node for node in graph.nodes if "weight" in node.tensors]
    assert all(len(node.tensors["codebook"]) <= 33 for node in coded)
    zeros = sum(int((node.tensors["weight"] == 0).sum()) for node in coded if sparsity)
    assert zeros >= sparsity * sum(node.tensors["weight"].size for node in coded)


def test_graph_of_every_operator() -> None:
    model, x = every_operator()
    graph = lower_float(model, x)
    assert {node.op for node in graph.nodes} == {
        "float_conv2d",
        "float_linear",
        "float_add",
        "float_affine",
        "float_max_pool2d",
        "float_avg_pool2d",
        "float_adaptive_avg_pool2d",
        "float_map",
        "concat",
        "flatten",
        "slice",
        "pad",
        "softmax",
    }
    maps = {node.attributes["function"] for node in graph.nodes if node.op == "float_map"}
    assert maps == {"relu", "sigmoid", "silu", "hard_swish", "hard_sigmoid", "tanh"}
    with torch.no_grad():
        expected = model.double()(x.double())
    assert torch.allclose(evaluate(graph, x), expected, atol=1e-6)


def test_the_model_is_left_alone() -> None:
    model, x = shared("resnet8", 0.5)
    model.train()
    model.layer1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lower_float(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model.layer1.training


def test_layers_that_are_not_shared() -> None:
    torch.manual_seed(0)
    x, _ = batch(0)
    model = share_weights(SmallNet(), 16, layers=["conv2", "fc"])
    lower_float(model, x)  # 216 different weights are a codebook of their own
    with pytest.raises(ValueError, match=r"conv2: its weight holds 576 different values.* share_weights"):
        lower_float(share_weights(SmallNet(), 16, layers=["conv1", "fc"]), x)


def test_unsupported_function() -> None:
    model = share_weights(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(64, 2)), 8)
    with pytest.raises(UnsupportedOperator, match="node '_1': gelu is not among the float functions"):
        lower_float(model, torch.zeros(1, 1, 6, 6))
