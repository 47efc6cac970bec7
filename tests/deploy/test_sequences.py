"""Networks with Conv1d: equal bits in evaluation, the int8 ops and the file; training, ONNX, shared weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pqk_ext
from pqk_ext.config import PQKConfig
from pqk_ext.deploy import assert_close, compare, export
from pqk_ext.nn import PQKConv1d, Role
from pqk_ext.preparation import PreparedModel, prepare

from ..networks import enliven

CHANNELS, LENGTH = 6, 23


class Classifier(nn.Module):
    """Every operator over sequences, as modules and as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(CHANNELS, 12, 5, stride=2, padding=2, bias=False)
        self.norm = nn.BatchNorm1d(12)
        self.depthwise = nn.Conv1d(12, 12, 3, padding="same", dilation=2, groups=12)
        self.depthwise_norm = nn.BatchNorm1d(12)
        self.grouped = nn.Conv1d(12, 12, 4, padding="valid", groups=3)
        self.pool = nn.MaxPool1d(3, 2, padding=1, ceil_mode=True)
        self.dropout = nn.Dropout1d(0.1)
        self.average = nn.AvgPool1d(2, 1)
        self.pad = nn.ZeroPad1d((1, 2))
        self.wide = nn.Conv1d(14, 7, 4)
        self.to_two = nn.AdaptiveAvgPool1d(2)
        self.fc = nn.Linear(7 * 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = F.silu(self.depthwise_norm(self.depthwise(x))) + x
        x = torch.relu(self.grouped(F.pad(x, (2, 1))) + x)
        x = self.average(self.dropout(self.pool(x)))
        x = torch.cat([x, F.max_pool1d(F.pad(x[:, 2:8:3, 1:], (1, 0)), 3, 1, 1)], 1)
        return self.fc(torch.flatten(self.to_two(F.relu6(self.wide(self.pad(x)))), 1))


class Dense(nn.Module):
    """Gives a sequence: no pooling to a vector, no flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(CHANNELS, 8, 3, padding=1)
        self.second = nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Averaged(nn.Module):
    """The ends of keyword networks: mean over time, or pooling to one and squeezing."""

    def __init__(self, squeeze: bool) -> None:
        super().__init__()
        self.squeeze = squeeze
        self.conv = nn.Conv1d(CHANNELS, 9, 3)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return self.fc(self.pool(x).squeeze(-1) if self.squeeze else x.mean(2))


NETWORKS = {
    "classifier": Classifier,
    "dense": Dense,
    "mean": lambda: Averaged(False),
    "squeeze": lambda: Averaged(True),
    "uneven": lambda: nn.Sequential(nn.Conv1d(CHANNELS, 5, 2), nn.AdaptiveAvgPool1d(7), nn.Flatten(), nn.Linear(35, 3)),
    "one_window": lambda: nn.Sequential(nn.Conv1d(CHANNELS, 5, LENGTH), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3)),
}


def samples(count: int) -> Tensor:
    return torch.randn(count, CHANNELS, LENGTH, generator=torch.Generator().manual_seed(1))


def prepared(name: str, **settings: object) -> PreparedModel:
    torch.manual_seed(0)
    config = PQKConfig(sparsity=0.6, total_steps=10, warmup_fraction=0.0, **settings)
    model = prepare(enliven(NETWORKS[name](), samples(32)), config, example_inputs=samples(32))
    model.pqk._step = config.ramp_end_step
    model.pqk.update_masks()
    return model.eval()


@pytest.mark.filterwarnings("ignore:exporting at step.*sparsity")  # few and large units
@pytest.mark.parametrize(
    ("name", "granularity"),
    [*((name, "unstructured") for name in NETWORKS), ("classifier", "1x4"), ("classifier", "filter")],
)
def test_parity(name: str, granularity: str, isa: str, tmp_path: Path) -> None:
    model, x = prepared(name, granularity=granularity), samples(64)
    export(model, tmp_path / "net.pqk", example_inputs=x)
    assert model(x).std(0).mean() > 0, "outputs must depend on the inputs, or equality proves nothing"
    for num_threads in (1, 2):
        assert compare(model, tmp_path / "net.pqk", x, num_threads=num_threads).different == 0
    loaded = pqk_ext.runtime.load(tmp_path / "net.pqk")
    assert loaded.input_shape == (CHANNELS, LENGTH)
    assert loaded.output_shape == tuple(model(x).shape[1:])
    coded = pqk_ext.runtime.load(tmp_path / "net.pqk", weights="coded")
    np.testing.assert_array_equal(coded(x.numpy()), loaded(x.numpy()))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_float_role_is_the_original_network(name: str) -> None:
    x = samples(32)
    model = enliven(NETWORKS[name](), x)
    copy = prepare(model, PQKConfig(), example_inputs=x).eval()
    with torch.no_grad():
        torch.testing.assert_close(copy.run(x, Role.FLOAT), model(x))
        reference = model(x)
    assert (copy(x) - reference).abs().max() < 0.15 * reference.abs().max()


def test_training_prunes_and_the_file_follows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = PQKConfig(sparsity=0.8, total_steps=24, weight_bits=4)
    model = prepare(Classifier(), config, example_inputs=samples(16))
    assert isinstance(model.stem, PQKConv1d)
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.05), momentum=0.9)
    y = torch.randint(0, 5, (16,))
    for _ in range(config.total_steps):
        model.pqk.loss(samples(16), y).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
    assert model.pqk.phase == 2
    assert abs(model.pqk.sparsity - 0.8) < 0.02
    export(model, tmp_path / "net.pqk")
    pqk_ext.assert_parity(model, tmp_path / "net.pqk", samples(64))
    stored = pqk_ext.runtime.load(tmp_path / "net.pqk").graph.nodes[1].tensors["weight"]
    mask = model.stem.weight_mask.numpy()[:, :, None]
    assert stored.shape == mask.shape
    assert np.abs(stored).max() <= 127
    assert not stored[~mask].any()


@pytest.mark.parametrize("name", ["classifier", "dense"])
def test_onnx(name: str, tmp_path: Path) -> None:
    reason = "onnx or onnxruntime is not installed (extra bench): the ONNX models were NOT checked"
    pytest.importorskip("onnx", reason=reason)
    onnxruntime = pytest.importorskip("onnxruntime", reason=reason)
    from pqk_ext.onnx_graph import to_onnx

    model, x = prepared(name), samples(8)
    export(model, tmp_path / "net.pqk")
    network = pqk_ext.runtime.load(tmp_path / "net.pqk")
    for quantized in (True, False):
        made = to_onnx(network.graph, batch=8, quantized=quantized).SerializeToString()
        session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
        got = session.run(["y"], {"x": x.numpy()})[0]
        expected = network(x.numpy())
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() < 0.1 * np.abs(expected).max()


def test_shared_weights(tmp_path: Path) -> None:
    model = pqk_ext.share_weights(enliven(Classifier(), samples(32)), k=16, sparsity=0.5)
    assert pqk_ext.codebook.shared_layers(model).keys() == {"stem", "depthwise", "grouped", "wide", "fc"}
    export(model, tmp_path / "net.pqk", example_inputs=samples(2))
    assert_close(model, tmp_path / "net.pqk", samples(8))
    assert pqk_ext.runtime.load(tmp_path / "net.pqk").input_shape == (CHANNELS, LENGTH)
