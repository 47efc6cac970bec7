"""Which options each parameter gets from the optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pqk_ext import models
from pqk_ext.config import PQKConfig
from pqk_ext.preparation import PreparedModel, prepare

from ..networks import SmallNet, batch

CONFIG = PQKConfig(total_steps=8, step_size_lr_factor=0.5)


@pytest.fixture
def model() -> PreparedModel:
    torch.manual_seed(0)
    return prepare(SmallNet(), CONFIG, example_inputs=batch(0)[0])


def options_by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Options of each parameter; fails if one is in two groups or in none."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    result: dict[str, dict[str, Any]] = {}
    for group in groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in result, names[id(parameter)]
            result[names[id(parameter)]] = {k: v for k, v in group.items() if k != "params"}
    assert result.keys() == set(names.values())
    return result


def is_step_size(name: str) -> bool:
    return name.endswith(("weight_scale", ".scale"))


@pytest.mark.parametrize("name", ["resnet20", "ds_cnn", "res15_narrow"])
def test_every_parameter_of_the_zoo_once(name: str) -> None:
    prepared = prepare(models.create(name), CONFIG, example_inputs=torch.randn(1, *models.input_shape(name)))
    overrides = {r".*\.bias": {"betas": (0.5, 0.9)}, r".*1\..*": {"lr": 0.3}}
    options_by_name(prepared, prepared.pqk.parameter_groups(0.1, 0.01, decay_norm_and_bias=False, overrides=overrides))


def test_two_groups_by_default(model: PreparedModel) -> None:
    groups = model.pqk.parameter_groups(0.1, 0.01)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 0.01), (0.05, 0.0)]
    for name, options in options_by_name(model, groups).items():
        assert options["lr"] == (0.05 if is_step_size(name) else 0.1), name


def test_no_decay_of_norms_and_biases(model: PreparedModel) -> None:
    options = options_by_name(model, model.pqk.parameter_groups(0.1, 0.01, decay_norm_and_bias=False))
    decayed = {name for name, values in options.items() if values["weight_decay"] > 0}
    assert decayed == {"conv1.weight", "conv2.weight", "fc.weight", "fc.teacher.weight"}
    assert options["bn1.weight"]["lr"] == options["bn2.teacher.bias"]["lr"] == options["conv2.bias"]["lr"] == 0.1


def test_overrides_by_name(model: PreparedModel) -> None:
    overrides = {r"conv\d\..*": {"lr": 0.01, "momentum": 0.5}, r".*\.weight.*": {"weight_decay": 1.0}}
    options = options_by_name(model, model.pqk.parameter_groups(0.1, 0.02, overrides=overrides))
    assert options["conv1.weight"] == {"lr": 0.01, "weight_decay": 0.02, "momentum": 0.5}  # the first that matches
    assert options["conv1.weight_scale"] == {"lr": 0.005, "weight_decay": 0.0, "momentum": 0.5}
    assert options["fc.weight"] == {"lr": 0.1, "weight_decay": 1.0}
    assert options["fc.weight_scale"] == {"lr": 0.05, "weight_decay": 0.0}
    assert options["fc.bias"] == {"lr": 0.1, "weight_decay": 0.02}


def test_layer_wise_rates_by_a_function(model: PreparedModel) -> None:
    depth = {"conv1": 2, "bn1": 2, "conv2": 1, "bn2": 1}

    def decayed(name: str, parameter: nn.Parameter) -> dict[str, Any] | None:
        assert isinstance(parameter, nn.Parameter)
        layer = name.split(".")[0]
        return {"lr": 0.1 * 0.5 ** depth[layer]} if layer in depth else None

    groups = model.pqk.parameter_groups(0.1, overrides=decayed)
    options = options_by_name(model, groups)
    assert [options[f"{name}.weight"]["lr"] for name in ("conv1", "bn2", "fc")] == [0.025, 0.05, 0.1]
    assert options["conv1.weight_scale"]["lr"] == 0.0125
    optimizer = torch.optim.AdamW(groups)
    model.pqk.loss(*batch(1)).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"conv": {"lr": 1.0}}, r"'conv' matches no whole name of a parameter, such as conv\d\.(weight|bias)"),
        ({"(": {}}, r"'\(' is no regular expression"),
    ],
)
def test_overrides_that_mean_nothing(model: PreparedModel, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.pqk.parameter_groups(0.1, overrides=overrides)


def test_a_module_around_the_model() -> None:
    from pqk_ext.training.parameter_groups import parameter_groups

    x, _ = batch(0)
    around = nn.ModuleDict({"net": prepare(SmallNet(), CONFIG, example_inputs=x), "extra": nn.Linear(3, 3)})
    options = options_by_name(around, parameter_groups(around, 0.1, 0.01))
    assert options["extra.weight"] == {"lr": 0.1, "weight_decay": 0.01}
    assert options["net.pqk_quantizers.q0.scale"]["lr"] == pytest.approx(0.001)
