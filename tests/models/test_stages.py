"""Networks with other channels in their stages: the thin copies of Walawalkar et al. (2020), table 1, and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pqk_ext import models

# Table 1 of the paper gives relative sizes of students 2 to 5; the full sizes are those of option-B networks.
SIZES = {
    "resnet20": (272_474, (62.95, 35.61, 15.50, 3.95)),
    "resnet32": (466_906, (62.87, 35.43, 15.33, 3.80)),
    "resnet110": (1_730_714, (62.79, 35.26, 15.15, 3.64)),
}


@pytest.mark.parametrize("name", SIZES)
def test_size_table(name: str) -> None:
    full, percents = SIZES[name]
    widths = [[channels * (5 - j) // 5 for channels in (16, 32, 64)] for j in range(5)]
    assert widths[4] == [3, 6, 12]
    counts = [models.count_parameters(models.create(name, stage_channels=w)) for w in widths]
    assert counts[0] == full
    assert tuple(round(100 * count / full, 2) for count in counts[1:]) == percents


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet8", (12, 25, 51)),
        ("resnet20", (3, 6, 12)),
        ("resnet32", (16, 16, 64)),
        ("resnet8_mlperf", (5, 10, 21)),
        ("ds_cnn", (42, 21, 42, 7)),
    ],
)
def test_stages_have_the_channels_asked_for(name: str, channels: tuple[int, ...]) -> None:
    model = models.create(name, stage_channels=channels)
    assert model.stage_channels == channels
    seen: dict[nn.Module, int] = {}

    def remember(module: nn.Module, _: object, output: torch.Tensor) -> None:
        seen[module] = output.shape[1]

    stages = [model.get_submodule(stage) for stage in model.stage_names]
    for stage in stages:
        stage.register_forward_hook(remember)
    logits = model(torch.randn(2, *models.input_shape(name)))
    assert tuple(seen[stage] for stage in stages) == channels
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["resnet8_mlperf", "ds_cnn"])
def test_own_channels_change_nothing(name: str) -> None:
    torch.manual_seed(0)
    plain = models.create(name)
    torch.manual_seed(0)
    same = models.create(name, stage_channels=list(plain.stage_channels))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), same.parameters(), strict=True))


def test_shortcuts_are_projections_where_shapes_change() -> None:
    model = models.create("resnet20", stage_channels=(16, 32, 64))
    kinds = [type(block.shortcut) for stage in (model.layer1, model.layer2, model.layer3) for block in stage]
    plain, projection = nn.Identity, nn.Sequential
    assert kinds == [plain, plain, plain, projection, plain, plain, projection, plain, plain]
    assert isinstance(models.create("resnet20", stage_channels=(8, 32, 64)).layer1[0].shortcut, projection)


@pytest.mark.parametrize("name", ["resnet20", "resnet8_mlperf", "ds_cnn"])
@pytest.mark.parametrize("channels", [(), (16,), (16, 32, 0, 4), (16, 32.0, 64), (True, 32, 64), (8, 8, 8, 8, 8)])
def test_wrong_channels(name: str, channels: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=r"stage_channels: expected \d positive integers, got"):
        models.create(name, stage_channels=channels)


def test_pretrained_weights_fit_no_other_channels() -> None:
    with pytest.raises(ValueError, match="stage_channels: the pretrained DS-CNN has its own"):
        models.create("ds_cnn", pretrained=True, stage_channels=(64, 64, 64, 32))
