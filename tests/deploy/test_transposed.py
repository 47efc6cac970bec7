"""Transposed convolutions: scales, masks and files by output channel, and the same bits everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pqk_ext
from pqk_ext.config import PQKConfig
from pqk_ext.deploy import assert_close, compare, export, lower
from pqk_ext.deploy.evaluate import TorchGraph
from pqk_ext.deploy.lower import weight_codes
from pqk_ext.nn import PQKConvTranspose2d, Role
from pqk_ext.preparation import PreparedModel, UnsupportedOperator, prepare
from pqk_ext.runtime import Model

from ..networks import enliven
from ..runtime.files import split


class Decoder(nn.Module):
    """Down and up again: residuals, a concatenation, batch norm, a transposed head."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.ConvTranspose2d(12, 8, 3, stride=(1, 2), padding=1, output_padding=(0, 1), groups=2)
        self.skip = nn.Conv2d(6, 8, 1, stride=1)
        self.head = nn.ConvTranspose2d(8, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.up(torch.relu(self.down(x)))))
        x = self.grouped(torch.cat([x, torch.tanh(x)], 1))
        return self.head(F.relu(x + self.skip(F.pad(F.max_pool2d(x[:, :6], 1), (0, 0, 0, 0)))))


class Sequence(nn.Module):
    """The same over sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(5, 8, 5, stride=3, padding=2, output_padding=1, groups=1)
        self.norm = nn.BatchNorm1d(8)
        self.depthwise = nn.ConvTranspose1d(8, 8, 4, stride=2, groups=8)
        self.head = nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.depthwise(torch.relu(self.norm(self.up(x))))))


SHAPES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "decoder": (Decoder, (3, 10, 9)),
    "sequence": (Sequence, (5, 7)),
}


def samples(shape: tuple[int, ...], count: int = 16) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def prepared(name: str, **options: Any) -> tuple[PreparedModel, Tensor]:
    torch.manual_seed(0)
    kind, shape = SHAPES[name]
    x = samples(shape)
    config = PQKConfig(**{"sparsity": 0.6, "total_steps": 10, "warmup_fraction": 0.0, **options})
    model = prepare(enliven(kind(), x), config, example_inputs=x)
    model.pqk._go_to(config.ramp_end_step)
    model.pqk.update_masks()
    return model.eval(), x


@pytest.mark.filterwarnings("ignore:exporting at step.*sparsity")  # few and large units
@pytest.mark.parametrize("granularity", ["unstructured", "1x4", "filter"])
@pytest.mark.parametrize("name", SHAPES)
def test_parity(name: str, granularity: str, isa: str, tmp_path: Path) -> None:
    model, x = prepared(name, granularity=granularity, prune_depthwise=True)
    export(model, tmp_path / "net.pqk", example_inputs=x)
    assert model(x).std(0).mean() > 0, "outputs must depend on the inputs, or equality proves nothing"
    coded, resident = (pqk_ext.runtime.load(tmp_path / "net.pqk", weights=kind) for kind in ("coded", "resident"))
    np.testing.assert_array_equal(coded(x.numpy()), resident(x.numpy()))
    for num_threads in (1, 2):
        assert compare(model, tmp_path / "net.pqk", x, num_threads=num_threads).different == 0
    with torch.no_grad():
        reference = model.run(x, Role.STUDENT)
    assert model(x).shape == reference.shape
    assert (model(x) - reference).abs().mean() < 0.02 * reference.abs().max()


@st.composite
def geometries(draw: Any) -> tuple[dict[str, Any], tuple[int, int]]:
    """Arguments of a ConvTranspose2d and the size of an image that it gives something for."""

    def two(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, stride, dilation, padding = two(1, 4), two(1, 4), two(1, 3), two(0, 6)
    more = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    size = two(1, 5)
    groups = draw(st.sampled_from([1, 2, 4]))
    arguments = {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "output_padding": more,
        "groups": groups,
        "bias": draw(st.booleans()),
        "dilation": dilation,
    }
    spans = zip(size, stride, padding, dilation, kernel, more, strict=True)
    results = [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, s, p, d, k, o in spans]
    if min(results) < 1:
        arguments["padding"] = (0, 0)
    return arguments, size


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(geometry=geometries(), seed=st.integers(0, 2**31))
def test_every_geometry(geometry: tuple[dict[str, Any], tuple[int, int]], seed: int) -> None:
    """Against torch's own operator on the codes, in double; and the engine against that, to the bit."""
    arguments, size = geometry
    torch.manual_seed(seed)
    source = nn.ConvTranspose2d(**arguments)
    x = torch.randn(2, arguments["in_channels"], *size)
    model = prepare(source_in_network(source), PQKConfig(teacher=False), example_inputs=x).eval()
    layer = model.layer_
    graph = lower(model)
    first = graph.nodes[0].value
    assert first.scale is not None
    codes = (x * (1 / torch.tensor(first.scale))).round() + first.zero_point
    real = (codes.clamp(0, 255) - first.zero_point).double() * first.scale
    weight = layer.from_channels(torch.from_numpy(weight_codes(layer))) * layer.scale_of_weights().double()
    names = ("stride", "padding", "output_padding", "groups", "dilation")
    expected = F.conv_transpose2d(
        real, weight, None if source.bias is None else source.bias.double(), *(arguments[name] for name in names)
    )
    got = model(x)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    from_engine = Model.from_graph(graph, tune=False)(x.numpy())
    np.testing.assert_array_equal(from_engine.view(np.int32), got.numpy().view(np.int32))
    np.testing.assert_array_equal(TorchGraph(graph, native=True)(x).numpy(), from_engine)


def source_in_network(source: nn.ConvTranspose2d) -> nn.Module:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer_ = source

        def forward(self, x: Tensor) -> Tensor:
            return self.layer_(x)

    return One()


def test_all_that_is_cut_off_leaves_the_bias() -> None:
    source = nn.ConvTranspose2d(2, 3, 1, stride=3, padding=1, output_padding=2)
    x = torch.randn(4, 2, 1, 1)
    model = prepare(source_in_network(source), PQKConfig(teacher=False), example_inputs=x).eval()
    assert [node.op for node in lower(model).nodes] == ["quantize", "dilate", "pad", "slice", "conv2d"]
    torch.testing.assert_close(model(x), source(x).detach())


def test_a_stride_of_one_is_a_plain_convolution(tmp_path: Path) -> None:
    source = nn.ConvTranspose2d(4, 6, 3, padding=1)
    x = torch.randn(4, 4, 5, 5)
    model = prepare(source_in_network(source), PQKConfig(teacher=False), example_inputs=x).eval()
    assert [node.op for node in lower(model).nodes] == ["quantize", "conv2d"]
    export(model, tmp_path / "net.pqk", codec="raw")
    assert "dilate" not in split((tmp_path / "net.pqk").read_bytes())[1]["required_features"]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_scales_are_those_of_output_channels(groups: int) -> None:
    """Output channel c of a weight that is c + 1 times as large has a step size that is."""
    source = nn.ConvTranspose2d(8, 8, 3, groups=groups, bias=False)
    with torch.no_grad():
        source.weight.copy_(torch.rand(8, 1, 3, 3) + 0.5)
        for i in range(8):
            first = i // (8 // groups) * (8 // groups)
            source.weight[i] *= torch.arange(first + 1, first + 1 + 8 // groups)[:, None, None]
        source.weight[:, 0, 0, 0] = source.weight[:, 0, 0, 0].clone()
    x = torch.randn(2, 8, 4, 4)
    layer = prepare(source_in_network(source), PQKConfig(teacher=False), example_inputs=x).layer_
    assert isinstance(layer, PQKConvTranspose2d)
    largest = torch.stack([source(torch.eye(8)[:, :, None, None])[:, c].abs().max() for c in range(8)])
    torch.testing.assert_close(layer.weight_scale.detach(), largest.detach() / 127, rtol=0.25, atol=0)
    assert torch.equal(layer.from_channels(layer.by_channel(layer.weight)), layer.weight)
    error = (layer.student_weight() - layer.weight).abs()
    assert (error <= 0.5001 * layer.scale_of_weights() + 1e-6).float().mean() > 0.95
    layer.student_weight().sum().backward()
    assert layer.weight.grad.shape == layer.weight.shape
    assert layer.weight_scale.grad.abs().min() > 0


@pytest.mark.parametrize("granularity", ["filter", "1x4", "unstructured"])
@pytest.mark.parametrize("groups", [1, 2])
def test_masks_go_by_output_channel(groups: int, granularity: str) -> None:
    torch.manual_seed(0)
    source = nn.ConvTranspose2d(16, 12, 3, groups=groups)
    config = PQKConfig(
        sparsity=0.5,
        total_steps=10,
        warmup_fraction=0.0,
        granularity=granularity,
        prune_depthwise=True,
        teacher=False,
        prune_linear=True,
        min_keep_per_channel=1,
    )
    model = prepare(source_in_network(source), config, example_inputs=torch.randn(2, 16, 4, 4))
    model.pqk._go_to(config.ramp_end_step)
    model.pqk.update_masks()
    mask = model.layer_.by_channel(model.layer_.weight_mask)
    assert mask.shape == (12, 16 // groups, 3, 3)
    assert abs(float(mask.float().mean()) - 0.5) < 0.05
    if granularity == "filter":
        assert set(mask.flatten(1).float().mean(1).tolist()) == {0.0, 1.0}
    else:
        assert mask.flatten(1).any(1).all()
    if granularity == "1x4":
        blocks = mask.unflatten(1, (-1, 4)).float().mean(2)
        assert set(blocks.unique().tolist()) == {0.0, 1.0}
    stored = lower(model.eval()).nodes[-1].tensors["weight"]
    assert not stored[:, :, ::-1, ::-1][~mask.numpy()].any()


def test_training_and_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = PQKConfig(sparsity=0.8, total_steps=24, weight_bits=4, size_penalty=0.01)
    x = samples((3, 10, 9))
    model = prepare(Decoder(), config, example_inputs=x)
    target = torch.randn_like(model.eval()(x))
    model.train()
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.01), momentum=0.9)
    for _ in range(config.total_steps):
        loss = model.pqk.loss(x, target, lambda a, b: F.mse_loss(a, b))
        loss.backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
    assert abs(model.pqk.sparsity - 0.8) < 0.02
    assert torch.isfinite(loss)
    export(model, tmp_path / "net.pqk")
    pqk_ext.assert_parity(model, tmp_path / "net.pqk", samples((3, 10, 9), 32))
    weights = {weight.node: weight for weight in pqk_ext.runtime.format.inspect(tmp_path / "net.pqk").weights}
    assert weights["up"].shape == (6, 8, 4, 4)
    assert weights["grouped"].shape == (8, 6, 3, 3)
    pqk_ext.assert_sparsity(model, model.pqk.sparsity, tolerance=0.05)


def test_onnx() -> None:
    reason = "onnx or onnxruntime is not installed (extra bench): the ONNX models were NOT checked"
    pytest.importorskip("onnx", reason=reason)
    onnxruntime = pytest.importorskip("onnxruntime", reason=reason)
    from pqk_ext.onnx_graph import to_onnx

    for name in SHAPES:
        model, x = prepared(name)
        for quantized in (True, False):
            made = to_onnx(lower(model), batch=len(x), quantized=quantized).SerializeToString()
            session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
            got = session.run(["y"], {"x": x.numpy()})[0]
            expected = model(x).numpy()
            assert got.shape == expected.shape
            assert np.abs(got - expected).mean() < 0.02 * np.abs(expected).max()
            kinds = [node.op_type for node in to_onnx(lower(model), batch=1, quantized=quantized).graph.node]
            assert kinds.count("ConvTranspose") == {"decoder": 3, "sequence": 2}[name]


@pytest.mark.parametrize("name", SHAPES)
def test_shared_weights(name: str, tmp_path: Path) -> None:
    kind, shape = SHAPES[name]
    torch.manual_seed(0)
    x = samples(shape)
    model = pqk_ext.share_weights(enliven(kind(), x), k=16, sparsity=0.5)
    export(model, tmp_path / "net.pqk", example_inputs=x)
    assert_close(model, tmp_path / "net.pqk", x)
    assert "dilate" in {node.op for node in pqk_ext.runtime.load(tmp_path / "net.pqk").graph.nodes}


def test_what_is_not_supported_is_named() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 2, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, output_size=[10, 10])

    with pytest.raises(UnsupportedOperator, match=r"node .up.*one input and nothing else, got.*output_size"):
        prepare(Sized(), PQKConfig(), example_inputs=torch.randn(2, 2, 4, 4))


def test_macs_are_counted_by_input() -> None:
    up = nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2)
    assert pqk_ext.models.count_macs(up, (6, 5, 4)) == 6 * 5 * 4 * 2 * 9
    assert pqk_ext.models.count_macs(nn.Conv1d(6, 4, 3), (6, 10)) == 4 * 8 * 6 * 3
