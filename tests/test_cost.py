"""What a network costs, against counts made another way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pqk_ext
from pqk_ext import cost, models
from pqk_ext.deploy import export, quantize_post_training
from pqk_ext.models.count import count_macs
from pqk_ext.runtime.graph import Graph, Node, Value
from tests.networks import SmallNet, enliven


def linear_graph(weight: np.ndarray, quant_max: int = 15) -> Graph:
    """One linear layer over codes of an input quantized to 0..quant_max."""
    outputs, inputs = weight.shape
    nodes = (
        Node("quantize", "in", (0,), Value((inputs,), "u8", 0.125, 0), {"quant_min": 0, "quant_max": quant_max}),
        Node(
            "linear",
            "fc",
            (1,),
            Value((outputs,), "f32"),
            {},
            {
                "weight": weight.astype(np.int8),
                "multiplier": np.ones(outputs, np.float32),
                "bias": np.zeros(outputs, np.float32),
            },
        ),
    )
    return Graph(Value((inputs,), "f32"), nodes)


def test_counts_of_a_layer_by_hand() -> None:
    #                        bits of a channel: 3 (codes -3..3), 2 (a factor 16 out), none, 8
    weight = np.array([[3, -3, 0, 0], [16, -16, 16, 16], [0, 0, 0, 0], [127, 1, 0, 0]])
    found = cost.measure(linear_graph(weight), rounds=0)
    assert (found.parameters, found.nonzeros, found.macs, found.effective_macs) == (20, 8, 16, 8)
    assert found.bit_operations == (2 * 3 + 4 * 2 + 2 * 8) * 4
    (layer,) = found.layers
    assert layer.input_bits == 4
    assert layer.weight_bits == pytest.approx(30 / 8)
    assert found.dense_bit_operations == 16 * 30 // 8 * 4
    assert found.latency is None
    assert "latency_us" not in found.to_dict()


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_of_codes_are_those_of_the_layer(bits: int) -> None:
    (layer,) = cost.measure(linear_graph(np.array([[1 - 2 ** (bits - 1), 1]])), rounds=0).layers
    assert layer.weight_bits == bits


@pytest.mark.parametrize("name", ["ds_cnn", "resnet8_mlperf"])
def test_macs_and_weights_are_those_of_the_model(name: str) -> None:
    model = models.create(name)
    shape = models.input_shape(name)
    x = torch.randn(2, *shape)
    found = cost.measure(quantize_post_training(model, example_inputs=x, calibration=x), rounds=0)
    assert found.macs == count_macs(model, shape)
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sorted(layer.weights for layer in found.layers) == sorted(m.weight.numel() for m in weighted)
    assert found.biases == sum(len(m.weight) for m in weighted)


def test_a_transposed_convolution_is_not_charged_for_the_zeros_between() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1, output_padding=1), nn.ReLU())
    x = torch.randn(2, 3, 7, 6)
    found = cost.measure(quantize_post_training(model, example_inputs=x, calibration=x), rounds=0)
    assert found.macs == count_macs(model, (3, 7, 6))


def test_a_pruned_model_and_its_file_cost_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    config = pqk_ext.PQKConfig(sparsity=0.75, weight_bits=4, act_bits=3, total_steps=4, warmup_fraction=0.0)
    model = pqk_ext.prepare(enliven(SmallNet(), x), config, example_inputs=x)
    model.train()
    for _ in range(4):
        model.pqk.loss(x, torch.zeros(8, dtype=torch.int64)).backward()
        model.pqk.step()
    export(model.eval(), tmp_path / "net.pqk")
    of_model, of_file = cost.measure(model, rounds=0), cost.measure(tmp_path / "net.pqk", rounds=0)
    assert of_model == of_file
    assert of_file.nbytes == (tmp_path / "net.pqk").stat().st_size
    assert of_file.effective_macs < of_file.macs
    middle = next(layer for layer in of_file.layers if "conv2" in layer.name)
    assert middle.input_bits == 3
    assert 1 < middle.weight_bits <= 4


def test_float_files_multiply_floats(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    shared = pqk_ext.share_weights(SmallNet().eval(), k=8, sparsity=0.5)
    export(shared, tmp_path / "net.pqk", example_inputs=x)
    found = cost.measure(tmp_path / "net.pqk", rounds=0)
    assert {layer.input_bits for layer in found.layers} == {32}
    assert {layer.weight_bits for layer in found.layers} == {32.0}
    assert found.nonzeros == sum(int((module.weight != 0).sum()) for module in [shared.conv1, shared.conv2, shared.fc])
    assert found.bit_operations == 1024 * found.effective_macs


def test_latency_in_turns() -> None:
    small, large = (linear_graph(np.ones((size, size))) for size in (64, 2048))
    quick, slow = cost.latencies([small, large], rounds=3)
    assert 0 < quick.least <= quick.median < slow.least <= slow.median
    assert cost.measure(small, rounds=1).to_dict()["latency_us"] > 0


def test_what_cannot_be_measured() -> None:
    with pytest.raises(TypeError, match=r"expected a \.pqk file, a graph or a prepared model, got SmallNet"):
        cost.measure(SmallNet())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rounds: expected at least 0, got -1"):
        cost.measure(linear_graph(np.ones((1, 1))), rounds=-1)
    with pytest.raises(ValueError, match=r"rounds: expected at least 1, got 0"):
        cost.latencies([], 0)


def test_files_are_measured_without_torch(tmp_path: Path) -> None:
    from pqk_ext.runtime.format import write

    write(linear_graph(np.eye(3)), tmp_path / "net.pqk")
    program = (
        "import sys; sys.modules['torch'] = None; from pqk_ext import cost; "
        f"print(cost.measure({str(tmp_path / 'net.pqk')!r}, rounds=1).macs)"
    )
    installed = str(Path(pqk_ext.__file__).parents[1])  # not the tree that the tests stand in
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "PYTHONPATH": installed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "9\n", result.stderr
