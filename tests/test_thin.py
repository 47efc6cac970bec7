"""Thinned networks compute what the originals compute with the removed channels masked to zero."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pqk_ext
from pqk_ext import deploy, models
from pqk_ext.models import count_macs, count_parameters
from pqk_ext.thin import channel_map, thin

# What is removed of a layer, and the modules after which those channels are set to zero, with the offset at which the
# layer's channels lie in their output.
Case = dict[str, tuple[tuple[str, int], ...]]

DS_CNN: Case = {
    "conv": (("relu", 0), ("layers.0.relu1", 0)),
    "layers.0.pointwise": (("layers.0.relu2", 0), ("layers.1.relu1", 0)),
    "layers.1.pointwise": (("layers.1.relu2", 0), ("layers.2.relu1", 0)),
    "layers.2.pointwise": (("layers.2.relu2", 0), ("layers.3.relu1", 0)),
    "layers.3.pointwise": (("layers.3.relu2", 0),),
}
RESNET8_MLPERF: Case = {
    "conv": (("relu", 0), ("stage1.relu2", 0)),
    "stage1.conv1": (("stage1.relu1", 0),),
    "stage2.conv1": (("stage2.relu1", 0),),
    "stage2.shortcut": (("stage2.relu2", 0),),
    "stage3.conv1": (("stage3.relu1", 0),),
    "stage3.conv2": (("stage3.relu2", 0),),
}
RESNET8: Case = {  # the shortcuts put zero channels on both sides: 8 and 8, then 16 and 16
    "conv1": (("relu", 0), ("layer1.0.relu2", 0), ("layer2.0.relu2", 8), ("layer3.0.relu2", 24)),
    "layer1.0.conv1": (("layer1.0.relu1", 0),),
    "layer2.0.conv1": (("layer2.0.relu1", 0),),
    "layer3.0.conv1": (("layer3.0.relu1", 0),),
}
VGG6: Case = {f"features.{4 * i}": ((f"features.{4 * i + 2}", 0),) for i in range(5)}
MOBILENET_V1: Case = {
    "features.0": (("features.2", 0), ("features.5", 0)),
    "features.6": (("features.8", 0), ("features.11", 0)),
    "features.78": (("features.80", 0),),
}
MOBILENET_V2: Case = {
    "features.0": (("features.2", 0), ("features.3.layers.2", 0)),
    "features.3.layers.3": (("features.3", 0),),
    "features.4.layers.0": (("features.4.layers.2", 0), ("features.4.layers.5", 0)),
    "features.4.layers.6": (("features.4", 0), ("features.5", 0)),  # tied to the next block by its addition
    "features.20": (("features.22", 0),),
}
CASES = {
    "ds_cnn": DS_CNN,
    "resnet8_mlperf": RESNET8_MLPERF,
    "resnet8": RESNET8,
    "vgg6": VGG6,
    "mobilenet_v1": MOBILENET_V1,
    "mobilenet_v2": MOBILENET_V2,
}


def lively(model: nn.Module) -> nn.Module:
    """With batch norms that move every channel away from zero."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert isinstance(tensor, Tensor)
                nn.init.uniform_(tensor, 0.2, 1.0)
    return model.eval()


def masks(model: nn.Module, case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    keep = {}
    for name in case:
        count = model.get_submodule(name).out_channels
        keep[name] = torch.rand(count, generator=generator) < 0.6
        keep[name][0] = True
    return keep


def zeroing(keep: Tensor, offset: int) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        factor = torch.ones(output.shape[1], dtype=output.dtype)
        factor[offset : offset + len(keep)] = keep.to(output.dtype)
        return output * factor[:, None, None]

    return hook


@pytest.mark.parametrize("name", CASES)
def test_equals_the_masked_network(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    model = lively(models.create(name))
    x = torch.randn(2, *models.input_shape(name))
    keep = masks(model, case)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    thinned = thin(model, keep, example_inputs=x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not thinned.training
    assert list(thinned.state_dict()) == list(before)
    masked, x = model.double(), x.double()
    with torch.no_grad():
        got, whole = thinned.double()(x), masked(x)
    for layer, places in case.items():
        for module, offset in places:
            masked.get_submodule(module).register_forward_hook(zeroing(keep[layer], offset))
    with torch.no_grad():
        expected = masked(x)
    assert (whole - expected).abs().max() > 1e-3 * expected.abs().max()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    for layer in case:
        assert thinned.get_submodule(layer).out_channels == int(keep[layer].sum())
    assert count_parameters(thinned) < count_parameters(model)
    assert count_macs(thinned, models.input_shape(name)) < count_macs(model, models.input_shape(name))


@pytest.mark.parametrize("name", ["ds_cnn", "resnet8"])
def test_keeping_everything_changes_nothing(name: str) -> None:
    model = lively(models.create(name))
    x = torch.randn(1, *models.input_shape(name))
    keep = {layer: torch.ones(model.get_submodule(layer).out_channels, dtype=torch.bool) for layer in CASES[name]}
    thinned = thin(model, keep, example_inputs=x)
    assert torch.equal(thinned(x), model(x))


def test_a_thinned_network_trains_and_exports_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.create("resnet8_mlperf")
    x = torch.randn(4, 3, 32, 32)
    thinned = thin(model, masks(model, RESNET8_MLPERF), example_inputs=x)
    prepared = pqk_ext.prepare(thinned, pqk_ext.PQKConfig(sparsity=0.5, total_steps=4), example_inputs=x)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    for _ in range(4):
        prepared.pqk.loss(x, torch.arange(4)).backward()
        optimizer.step()
        prepared.pqk.step()
        optimizer.zero_grad()
    deploy.export(prepared.eval(), tmp_path / "thin.pqk")
    assert deploy.compare(prepared, tmp_path / "thin.pqk", x).different == 0


class Dense(nn.Module):
    """Concatenation, batch norm before the activation, flattening of images, a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.twice = nn.Conv2d(10, 10, 1)
        self.linear = nn.Linear(10 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        y = torch.cat((y, self.b(y)), 1)
        y = F.relu(self.norm(y))
        y = F.relu(self.twice(y))
        y = F.relu(self.twice(y))
        out: Tensor = self.linear(torch.flatten(F.max_pool2d(y, 4), 1))
        return out


def test_concatenation_flattening_and_a_layer_called_twice() -> None:
    torch.manual_seed(0)
    model, x = lively(Dense()), torch.randn(2, 3, 8, 8)
    channels = channel_map(model, x)
    # Its output goes through it once more: outputs and inputs are one set, and that of the concatenation.
    assert channels.layers["twice"].outputs.tolist() == channels.layers["twice"].inputs.tolist()
    assert channels.layers["linear"].inputs.tolist() == [c for c in channels.layers["twice"].outputs for _ in range(4)]
    keep = torch.tensor([True, False, True, True, True, True, False, True, True, True])
    thinned = thin(model, {"twice": keep}, example_inputs=x)
    assert (thinned.a.out_channels, thinned.b.out_channels, thinned.b.in_channels) == (3, 5, 3)
    assert thinned.norm.num_features == thinned.twice.in_channels == thinned.twice.out_channels == 8
    assert thinned.linear.in_features == 32
    with torch.no_grad():
        y = F.relu(model.a(x)) * keep[:4, None, None]
        y = torch.cat((y, model.b(y)), 1) * keep[:, None, None]
        y = F.relu(model.norm(y)) * keep[:, None, None]
        y = F.relu(model.twice(y)) * keep[:, None, None]
        y = F.relu(model.twice(y)) * keep[:, None, None]
        expected = model.linear(torch.flatten(F.max_pool2d(y, 4), 1))
    torch.testing.assert_close(thinned(x), expected)


class Multiplier(nn.Module):
    """A depthwise convolution of two outputs for each input, then a transposed and a sequence of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 4, 3, padding=1)
        self.wide = nn.Conv1d(4, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose1d(8, 6, 2, stride=2)
        self.last = nn.Conv1d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.up(F.relu(self.wide(F.relu(self.first(x))))))
        return self.last(y).mean(2)


def test_depthwise_multiplier_and_transposed_convolution() -> None:
    torch.manual_seed(0)
    model, x = Multiplier().eval(), torch.randn(2, 2, 8)
    first, up = torch.tensor([True, False, True, True]), torch.tensor([False, True, True, False, True, True])
    thinned = thin(model, {"first": first, "up": up}, example_inputs=x)
    assert (thinned.wide.out_channels, thinned.wide.groups, thinned.up.in_channels) == (6, 3, 6)
    with torch.no_grad():
        y = F.relu(model.first(x)) * first[:, None]
        y = F.relu(model.wide(y)) * first.repeat_interleave(2)[:, None]
        y = F.relu(model.up(y)) * up[:, None]
        expected = model.last(y).mean(2)
    torch.testing.assert_close(thinned(x), expected)
    halves = torch.tensor([True, False] * 4)
    with pytest.raises(ValueError, match=r"keep: 'first', output channel 0 is removed, but .*'wide' is kept"):
        thin(model, {"wide": halves}, example_inputs=x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.b(F.relu(self.a(F.relu(self.first(x))))))).mean((2, 3))


def test_shared_weights_stay_shared() -> None:
    model, x = Tied(), torch.randn(1, 3, 5, 5)
    thinned = thin(model, {"a": [True, True, False, True]}, example_inputs=x)
    assert thinned.a.weight is thinned.b.weight
    assert thinned.a.weight.shape == (3, 3, 3, 3)
    assert thinned.training


class Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 2, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)[:, :4])).mean((2, 3))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(F.adaptive_avg_pool2d(self.a(x), 1).view(-1, 8))
        return out


@pytest.mark.parametrize(
    ("model", "keep", "message"),
    [
        (Sliced(), {"a": [False] + [True] * 7}, "'a', output channel 0 cannot be removed: .*by their position"),
        (Sliced(), {"b": [False, True]}, "'b', output channel 0 cannot be removed: the grouped convolution"),
        (Counting(), {"a": [False] * 4 + [True] * 4}, "forward of Counting needs its old number of channels"),
        (Counting(), {"b": [False, True]}, "'b', output channel 0 cannot be removed: it is an output of the network"),
        (Counting(), {"a": [False] * 8}, "'a' would lose all of its 8 output channels"),
        (Counting(), {"a": [True] * 7}, r"keep\['a'\]: expected a bool for each of 8 output channels, got .*\(7,\)"),
        (Counting(), {"a": torch.ones(8)}, r"keep\['a'\]: expected a bool for each of 8 .* got torch.float32 \(8,\)"),
        (Counting(), {"c": [True]}, r"'c' is not a layer of the model; its layers are \['a', 'b'\]"),
    ],
)
def test_refusals(model: nn.Module, keep: dict[str, Tensor | list[bool]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        thin(model, keep, example_inputs=torch.randn(2, 3, 5, 5))


def test_padded_zero_channels_stay() -> None:
    model, x = models.create("resnet8"), torch.randn(1, 3, 32, 32)
    group = channel_map(model, x).groups[0]
    assert group.layers == ("conv1", "layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2")
    assert (len(group.channels), len(group.removable)) == (64, 16)
    with pytest.raises(ValueError, match=r"'layer2.0.conv2', output channel 0 cannot be removed: .*zero channels"):
        thin(model, {"layer2.0.conv2": [False] + [True] * 31}, example_inputs=x)


def test_a_prepared_model_is_refused() -> None:
    model, x = models.create("ds_cnn"), torch.randn(1, 1, 49, 10)
    prepared = pqk_ext.prepare(model, pqk_ext.PQKConfig(total_steps=2), example_inputs=x)
    with pytest.raises(TypeError, match="prepared already; thin the float network first"):
        thin(prepared, {}, example_inputs=x)
