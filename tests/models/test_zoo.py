"""Every model of the zoo: sizes against published ones, shapes, tracing, determinism."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import fx, nn

from pqk_ext import models


# Trainable values. Sources: pytorch_resnet_cifar10 prints 269,722, 464,154, 658,586, 853,018 and 1,727,962 (He et
# al.: 0.27, 0.46, 0.66, 0.85, 1.7 M);
# MLPerf Tiny's files hold 78,666 and 24,908 values, of which 480 and 1,152 are running statistics; Tang and Lin: 110 K,
# 19.9 K, 238 K, 42.6 K; DenseNet-BC 0.8 M (the authors' code: 769,162); VGG-11 with batch norm and one linear layer and
# MobileNetV1 are 9,231,114 and 3,217,226 in the customary CIFAR form; MobileNetV2 is torchvision's 3,504,872 less 990
# classes. Those that nobody prints (ResNet-8, VGG-6, DS-CNN M and L, DenseNet-201 with CIFAR stem) are counted by hand
# from the layer tables.
def _inverted(in_channels: int, channels: int, expansion: int) -> int:
    hidden = in_channels * expansion
    expand = in_channels * hidden + 2 * hidden if expansion > 1 else 0
    return expand + 9 * hidden + 2 * hidden + hidden * channels + 2 * channels


# Input channels, output channels, expansion of each block of MobileNetV2 (table 2 of the paper), channels halved.
_HALF = (
    [(16, 8, 1), (8, 12, 6), (12, 12, 6), (12, 16, 6), (16, 16, 6), (16, 16, 6), (16, 32, 6)]
    + [(32, 32, 6)] * 3
    + [(32, 48, 6), (48, 48, 6), (48, 48, 6), (48, 80, 6), (80, 80, 6), (80, 80, 6), (80, 160, 6)]
)

PARAMETERS = {
    "resnet8": 75_290,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet8_mlperf": 78_666 - 480,
    "ds_cnn": 24_908 - 1_152,
    "ds_cnn_s": 24_908 - 1_152,
    "ds_cnn_m": 172 * 41 + 4 * 172 * (10 + 173) + 9 * 2 * 172 + 173 * 12,
    "ds_cnn_l": 276 * 41 + 5 * 276 * (10 + 277) + 11 * 2 * 276 + 277 * 12,
    "res8": 110_307,
    "res8_narrow": 19_905,
    "res15": 237_882,
    "res15_narrow": 42_648,
    "keyword_resnet8": 9 * 8 + 9 * (2 * 8 * 8 + 8 * 16 + 16 * 16 + 16 * 32 + 32 * 32) + 2 * (3 * 8 + 2 * 48) + 33 * 12,
    "keyword_resnet26": 9 * 16
    + 9 * (8 * 16 * 16 + 16 * 32 + 7 * 32 * 32 + 32 * 64 + 7 * 64 * 64)
    + 2 * (9 * 16 + 8 * 96)
    + 65 * 12,
    "vgg11": 9_231_114,
    "vgg6": 3_918_858,
    "mobilenet_v1": 3_217_226,
    "mobilenet_v2": 3_504_872 - 990 * 1_281,
    "mobilenet_v2_half": 27 * 16 + 32 + sum(_inverted(*row) for row in _HALF) + 162 * 1_280 + 10 * 1_281,
    "densenet_bc": 769_162,
    # 3 blocks of 4 layers (norm, 1x1 to 48, norm, 3x3 to 12), whose inputs have 24 + 12 i, 36 + 12 i and 42 + 12 i
    # channels; before them the stem, between them the transitions, then norm and classifier of 90 channels.
    "densenet_keywords": 24 * 40
    + sum(c * (2 + 48) + 2 * 48 + 48 * 12 * 9 for first in (24, 36, 42) for c in range(first, first + 48, 12))
    + (72 * (2 + 36) + 84 * (2 + 42))
    + (2 * 90 + 91 * 12),
    # 20,013,928 less 990 classes, with a 3x3 stem without batch norm instead of the 7x7 one.
    "densenet201": 20_013_928 - 990 * 1_921 - 64 * 3 * (49 - 9) - 128,
}

# Multiply-accumulates for one input, in millions, and the precision of the source. DS-CNN: Hello Edge, table 5, in
# operations (two a MAC), whose figures contain a little more than convolutions and the linear layer.
MEGA_MACS = {
    "resnet20": (40.55, 0.01),
    "resnet8_mlperf": (12.5, 0.05),
    "ds_cnn": (2.66, 0.01),
    "ds_cnn_s": (5.4 / 2, 0.05),
    "ds_cnn_m": (19.8 / 2, 0.1),
    "ds_cnn_l": (56.9 / 2, 0.2),
    "vgg11": (153, 0.5),
    "mobilenet_v1": (46.4, 0.1),
    "mobilenet_v2": (88, 0.5),
    "densenet201": (1364, 0.5),
}

ALLOWED_MODULES = (
    nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.ZeroPad2d, nn.Dropout, nn.Identity,
)  # fmt: skip
ALLOWED_FUNCTIONS = {"add", "cat", "flatten", "pad", "getitem"}


def test_every_model_has_a_published_size() -> None:
    assert set(models.names()) == set(PARAMETERS)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_count(name: str) -> None:
    assert models.count_parameters(models.create(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(MEGA_MACS))
def test_mac_count(name: str) -> None:
    expected, tolerance = MEGA_MACS[name]
    assert abs(models.count_macs(models.create(name), models.input_shape(name)) / 1e6 - expected) <= tolerance


# Howard et al., table 4: 4.2 M, 569 M. Sandler et al., table 4: 3.4 M, 300 M (torchvision prints 3,504,872).
# torchvision's DenseNet-201: 20,013,928 and 4.29 G.
@pytest.mark.parametrize(
    ("name", "parameters", "mega_macs"),
    [("mobilenet_v1", 4_231_976, 569), ("mobilenet_v2", 3_504_872, 301), ("densenet201", 20_013_928, 4_291)],
)
def test_imagenet_form(name: str, parameters: int, mega_macs: int) -> None:
    model = models.create(name, num_classes=1000, stem="imagenet")
    assert models.count_parameters(model) == parameters
    assert round(models.count_macs(model, (3, 224, 224)) / 1e6) == mega_macs


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_forward_and_trace(name: str) -> None:
    model = models.create(name, num_classes=7).eval()
    x = torch.randn(2, *models.input_shape(name))
    traced = fx.symbolic_trace(model)
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(traced(x), logits)
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    assert traced.state_dict().keys() == model.state_dict().keys()
    for node in traced.graph.nodes:
        if node.op == "call_module":
            assert isinstance(traced.get_submodule(node.target), ALLOWED_MODULES), node.target
        elif node.op == "call_function":
            assert node.target.__name__ in ALLOWED_FUNCTIONS, node.target
        else:
            assert node.op in ("placeholder", "output"), node.op


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_gradient_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = models.create(name)
    shape = models.input_shape(name)
    logits = model(torch.randn(2, *shape))
    assert logits.shape == (2, 10 if shape[0] == 3 else 12)
    nn.functional.cross_entropy(logits, torch.tensor([1, 3])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


def test_shortcut_without_parameters_halves_and_pads() -> None:
    block = models.create("resnet20").layer2[0]
    x = torch.arange(16 * 4 * 4, dtype=torch.float32).reshape(1, 16, 4, 4)
    y = block.shortcut(x)
    assert y.shape == (1, 32, 2, 2)
    assert torch.equal(y[:, 8:24], x[:, :, [0, 2]][..., [0, 2]])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_width_multiplies_channels() -> None:
    # 64-128-256: every 3x3 convolution between equal widths has 16 times the weights of ResNet-32's.
    wide = models.create("resnet32", width=4)
    first = 9 * 3 * 64 + 2 * 64 + 10 * (9 * 64**2 + 2 * 64)
    later = sum(9.5 * 9 * channels**2 + 10 * 2 * channels for channels in (128, 256))  # one convolution widens: half
    assert models.count_parameters(wide) == first + later + 257 * 10
    assert models.count_macs(wide, (3, 32, 32)) == pytest.approx(1.1e9, rel=0.01)
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        models.create("resnet32", width=0)


def test_same_padding_puts_the_odd_row_below() -> None:
    # Map of 49 rows, kernel 10, stride 2: 25 rows out need 9 rows of zeros, 4 above and 5 below.
    pad = models.create("ds_cnn").pad
    assert tuple(pad.padding) == (1, 1, 4, 5)
    # Stride 2 on 25 x 10: one above and below, and one column to the right only.
    assert tuple(models.create("ds_cnn_m").layers[0].pad.padding) == (0, 1, 1, 1)


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no model 'resnet220'; did you mean 'resnet20'\?"):
        models.create("resnet220")
    with pytest.raises(ValueError, match=r"known: .*vgg6"):
        models.input_shape("?")


def test_unknown_option_names_those_it_has() -> None:
    with pytest.raises(TypeError, match=r"'vgg6' has no option 'classes'; it has: num_classes"):
        models.create("vgg6", classes=3)
    with pytest.raises(ValueError, match="stem: expected 'cifar' or 'imagenet', got 'tiny'"):
        models.create("mobilenet_v2", stem="tiny")
    with pytest.raises(ValueError, match="stem: expected 'cifar' or 'imagenet', got 'tiny'"):
        models.create("densenet201", stem="tiny")


def test_register_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from pqk_ext.models import registry

    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    @models.register_model(input_shape=(3,))
    def tiny(width: int = 2) -> nn.Module:
        return nn.Linear(3, width)

    assert "tiny" in models.names()
    assert models.input_shape("tiny") == (3,)
    assert models.create("tiny", width=5).out_features == 5
    assert models.count_macs(models.create("tiny"), (3,)) == 6

    def vgg6() -> nn.Module:
        return nn.Linear(1, 1)

    with pytest.raises(ValueError, match=r"'vgg6' is already registered by pqk_ext.models.vgg"):
        models.register_model(input_shape=(1,))(vgg6)


def test_every_model_says_what_it_is() -> None:
    from pqk_ext.models import registry

    for name in models.names():
        assert inspect.getdoc(registry._ENTRIES[name].factory), name


def test_count_macs_leaves_the_model_as_it_was() -> None:
    model = models.create("resnet8").train()
    model.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    macs = models.count_macs(model, (3, 32, 32))
    assert macs == models.count_macs(model, (3, 32, 32))
    assert model.training
    assert not model.bn1.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
