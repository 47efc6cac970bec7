"""Export of prepared and plain models, and parity of the file with evaluation over the model zoo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pqk_ext
from pqk_ext import models, runtime
from pqk_ext.config import PQKConfig
from pqk_ext.deploy import compare, export, quantize_post_training
from pqk_ext.preparation import PreparedModel, prepare
from pqk_ext.runtime.profile import block_density

from ..networks import SmallNet, batch, enliven

# The largest networks take seconds a sample in the exact float evaluation; they run with -m long.
LARGE = (
    "densenet201", "densenet_bc", "res15", "res15_narrow", "mobilenet_v1", "mobilenet_v2", "mobilenet_v2_half",
    "ds_cnn_l", "vgg11", "resnet44", "resnet56", "resnet110",
)  # fmt: skip
SAMPLES = 64


def pruned(name: str) -> tuple[PreparedModel, Tensor]:
    """A network of the zoo with lively outputs, 60 % of its weights masked, and inputs for it."""
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, *models.input_shape(name))
    model = enliven(models.create(name), x[:8])
    config = PQKConfig(sparsity=0.6, total_steps=10, warmup_fraction=0.0)
    prepared = prepare(model, config, example_inputs=x[:8])
    prepared.pqk._step = config.ramp_end_step
    prepared.pqk.update_masks()
    return prepared.eval(), x


def assert_same_bits_on_every_path(name: str, tmp_path: Path) -> None:
    prepared, x = pruned(name)
    path = tmp_path / "net.pqk"
    export(prepared, path, example_inputs=x)
    assert prepared(x).std(0).mean() > 0, "outputs must depend on the inputs, or equality proves nothing"
    for isa in pqk_ext._core.supported_isas():
        pqk_ext._core.force_isa(isa)
        try:
            for num_threads in (1, 2):
                result = compare(prepared, path, x, num_threads=num_threads)
                assert (result.samples, result.different) == (SAMPLES, 0), f"{isa}, {num_threads} threads"
        finally:
            pqk_ext._core.force_isa("")


@pytest.mark.parametrize("name", [name for name in models.names() if name not in LARGE])
def test_parity(name: str, tmp_path: Path) -> None:
    assert_same_bits_on_every_path(name, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", LARGE)
def test_parity_of_large_networks(name: str, tmp_path: Path) -> None:
    assert_same_bits_on_every_path(name, tmp_path)


class EveryOperator(nn.Module):
    """What the zoo does not hold: tables, ReLU6 on a sum, ceil-mode pooling, non-dividing adaptive pooling, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding="valid", bias=True)
        self.silu = nn.SiLU()
        self.grouped = nn.Conv2d(12, 12, (3, 1), padding="same", groups=3, dilation=(2, 1), bias=False)
        self.norm = nn.BatchNorm2d(12, affine=False)
        self.relu6 = nn.ReLU6()
        self.branch = nn.Conv2d(12, 5, 1)
        self.hardswish = nn.Hardswish()
        self.pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.average = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
        self.adaptive = nn.AdaptiveAvgPool2d((3, 2))
        self.fc = nn.Linear(17 * 6, 9)
        self.fc2 = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.silu(self.stem(x))
        x = self.relu6(self.norm(self.grouped(x)) + x)
        x = self.pool(torch.cat([x, torch.sigmoid(self.hardswish(self.branch(x)))], 1))
        x = self.adaptive(self.average(x))
        x = torch.relu(self.fc(x.view(x.size(0), -1)))
        return torch.softmax(self.fc2(x), dim=1)


def test_parity_of_every_operator(tmp_path: Path, isa: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 3, 27, 23)
    prepared = prepare(enliven(EveryOperator(), x), PQKConfig(), example_inputs=x).eval()
    ops = {node.op for node in pqk_ext.deploy.lower(prepared).nodes}
    assert ops == set(runtime.graph.OPS) - runtime.graph.FLOAT_OPS - {"add", "slice", "pad", "dilate", "dequantize"}
    export(prepared, tmp_path / "net.pqk")
    for num_threads in (1, 2):
        assert compare(prepared, tmp_path / "net.pqk", x, num_threads=num_threads).different == 0
    assert torch.allclose(prepared(x).sum(1), torch.ones(SAMPLES), atol=1e-5)


@pytest.mark.parametrize("granularity", ["unstructured", "1x4"])
def test_parity_after_training(tmp_path: Path, granularity: str) -> None:
    torch.manual_seed(0)
    config = PQKConfig(sparsity=0.8, total_steps=24, weight_bits=4, granularity=granularity)
    model = prepare(SmallNet(), config, example_inputs=batch(0)[0])
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.05), momentum=0.9)
    for step in range(config.total_steps):
        model.pqk.loss(*batch(step)).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
    path = tmp_path / "net.pqk"
    pqk_ext.export(model, path, example_inputs=batch(0)[0])
    pqk_ext.assert_parity(model, path, batch(77, SAMPLES)[0])
    assert model.training
    weights = [node.tensors["weight"] for node in runtime.load(path).graph.nodes if node.op == "conv2d"]
    size, kept = (sum(f(w) for w in weights) for f in (np.size, np.count_nonzero))
    assert kept <= 0.2 * size + 4
    if granularity == "1x4":
        assert sum(block_density(w) * w.size for w in weights) <= 0.2 * size + 4


def test_assert_parity_finds_a_difference(tmp_path: Path) -> None:
    x, _ = batch(0)
    model = prepare(enliven(SmallNet(), x), PQKConfig(), example_inputs=x)
    export(model, tmp_path / "net.pqk")
    with torch.no_grad():
        model.fc.bias[0] += 1e-3
    with pytest.raises(AssertionError, match="16 of 16 samples differ"):
        pqk_ext.assert_parity(model, tmp_path / "net.pqk", x)
    with pytest.raises(ValueError, match="at least one sample"):
        pqk_ext.assert_parity(model, tmp_path / "net.pqk", x[:0])


def test_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    x, _ = batch(0)
    model = prepare(enliven(SmallNet(), x), PQKConfig(), example_inputs=x)
    for name in ("a.pqk", "b.pqk"):
        export(model, tmp_path / name)
    assert (tmp_path / "a.pqk").read_bytes() == (tmp_path / "b.pqk").read_bytes()


def test_plain_model_is_quantized_after_training(tmp_path: Path) -> None:
    x, _ = batch(0, 128)
    model = enliven(SmallNet(), x)
    export(model, tmp_path / "net.pqk", example_inputs=x[:1], calibration=x.split(32))
    output = runtime.load(tmp_path / "net.pqk")(x.numpy())
    reference = model(x).detach().numpy()
    assert np.abs(output - reference).max() < 0.1 * np.abs(reference).max()
    assert type(model.conv1) is nn.Conv2d


def test_data_loader_serves_as_calibration() -> None:
    x, y = batch(0, 64)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32)
    quantized = quantize_post_training(enliven(SmallNet(), x), example_inputs=x[:1], calibration=loader)
    assert not quantized.training


def test_export_says_what_is_missing(tmp_path: Path) -> None:
    x, _ = batch(0)
    with pytest.raises(ValueError, match="calibration is needed"):
        export(SmallNet(), tmp_path / "net.pqk", example_inputs=x)
    with pytest.raises(ValueError, match="example_inputs is needed"):
        export(SmallNet(), tmp_path / "net.pqk", calibration=x)
    with pytest.raises(ValueError, match="calibration must give at least one batch"):
        export(SmallNet(), tmp_path / "net.pqk", example_inputs=x, calibration=[])
    model = prepare(SmallNet(), PQKConfig(), example_inputs=x)
    with pytest.raises(ValueError, match=r"example_inputs must have shape \(N, \*\(3, 8, 8\)\)"):
        export(model, tmp_path / "net.pqk", example_inputs=x[:, :, :4])
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="weights must not be NaN, found one at flat index 0"):
        export(model, tmp_path / "net.pqk")
    assert list(tmp_path.iterdir()) == []


def test_unfinished_training_is_said(tmp_path: Path) -> None:
    config = PQKConfig(sparsity=0.8, total_steps=40, warmup_fraction=0.0)
    model = prepare(SmallNet(), config, example_inputs=batch(0)[0])
    model.pqk.step()
    with pytest.warns(UserWarning, match=r"step 1 of 40: sparsity is 0\.\d+, the configuration asks for 0\.800"):
        export(model, tmp_path / "net.pqk")


def test_nan_input_is_an_error() -> None:
    x, _ = batch(0)
    model = prepare(enliven(SmallNet(), x), PQKConfig(), example_inputs=x).eval()
    x[1, 0, 0, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN, found one at flat index 195"):
        model(x)


def test_file_runs_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    x, _ = batch(0)
    model = prepare(enliven(SmallNet(), x), PQKConfig(), example_inputs=x).eval()
    export(model, tmp_path / "net.pqk")
    np.save(tmp_path / "x.npy", x.numpy())
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, pqk_ext.runtime\n"
        f"y = pqk_ext.runtime.load({str(tmp_path / 'net.pqk')!r})(np.load({str(tmp_path / 'x.npy')!r}))\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, y)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy").view(np.int32), model(x).numpy().view(np.int32))


def test_channels_in_float16_make_a_smaller_file_with_the_same_bits(tmp_path: Path) -> None:
    x, _ = batch(0, 64)
    sizes, outputs = {}, {}
    for bits in (16, 32):
        torch.manual_seed(0)
        config = pqk_ext.PQKConfig(sparsity=0.5, total_steps=4, affine_bits=bits)
        model = pqk_ext.prepare(enliven(SmallNet(), x), config, example_inputs=x).eval()
        path = tmp_path / f"{bits}.pqk"
        pqk_ext.export(model, path)
        pqk_ext.assert_parity(model, path, x)
        sizes[bits], outputs[bits] = path.stat().st_size, model(x)
        multiplier = pqk_ext.runtime.load(path).graph.nodes[1].tensors["multiplier"]
        assert (multiplier == multiplier.astype(np.float16)).all() == (bits == 16)
    assert sizes[16] < sizes[32]
    torch.testing.assert_close(outputs[16], outputs[32], rtol=0.05, atol=0.05)


def test_a_channel_too_large_for_float16_keeps_float32(tmp_path: Path) -> None:
    x, _ = batch(0, 16)
    model = pqk_ext.prepare(
        enliven(SmallNet(), x), pqk_ext.PQKConfig(total_steps=4, affine_bits=16), example_inputs=x
    ).eval()
    with torch.no_grad():
        model.fc.bias[0] = 1e6
    pqk_ext.export(model, tmp_path / "net.pqk")
    pqk_ext.assert_parity(model, tmp_path / "net.pqk", x)
    assert model(x)[:, 0].min() > 9e5
