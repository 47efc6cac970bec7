"""Settings of single layers: `PQKConfig(layers=...)`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pqk_ext
from pqk_ext.config import LayerSettings, PQKConfig
from pqk_ext.preparation import PreparedModel, prepare

from ..networks import SmallNet, batch

MIXED = {
    "conv.*": {"weight_bits": 4},
    "conv1": {"sparsity": 0.25, "act_bits": 6},
    "fc": {"sparsity": 0.9, "weight_bits": 3},
}


def trained(config: PQKConfig) -> PreparedModel:
    torch.manual_seed(0)
    model = prepare(SmallNet(), config, example_inputs=batch(0)[0])
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.02), momentum=0.9)
    for step in range(config.total_steps):
        model.pqk.loss(*batch(step)).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
    return model


def test_each_layer_gets_its_own_and_the_rest_the_common_ones(tmp_path: Path) -> None:
    model = trained(PQKConfig(sparsity=0.5, total_steps=12, mask_update_interval=1, layers=MIXED))
    layers = {"conv1": (4, 0.25), "conv2": (4, 0.5), "fc": (3, 0.9)}
    for name, (bits, sparsity) in layers.items():
        layer = model.get_submodule(name)
        assert layer.weight_quant_max == 2 ** (bits - 1) - 1
        assert abs(int((~layer.weight_mask).sum()) - sparsity * layer.weight.numel()) <= 1, name
    by_module = {block.module: model.pqk_quantizers[block.quantizer] for block in model.plan if block.quantizer}
    assert by_module["conv1"].quant_max == 63
    assert by_module["conv2"].quant_max == 255
    x = batch(99)[0]
    assert abs(model.pqk.sparsity - model.pqk.final_sparsity) < 0.005
    pqk_ext.export(model.eval(), tmp_path / "mixed.pqk")
    pqk_ext.assert_parity(model, tmp_path / "mixed.pqk", x)


def test_sparsity_zero_leaves_a_layer_dense_and_exclude_still_counts() -> None:
    config = PQKConfig(sparsity=0.5, total_steps=10, layers={"conv1": {"sparsity": 0}, "fc": {"sparsity": 0.5}})
    model = prepare(SmallNet(), config, example_inputs=batch(0)[0], exclude=["fc"])
    assert [layer.prunable for layer in model.pqk.layers()] == [False, True, False]


def test_the_last_pattern_counts_setting_by_setting_and_matches_whole_names() -> None:
    config = PQKConfig(layers=MIXED)
    assert config.for_layer("conv1") == LayerSettings(sparsity=0.25, weight_bits=4, act_bits=6)
    assert config.for_layer("conv10") == LayerSettings(weight_bits=4)
    assert config.for_layer("fc2") == LayerSettings()


def test_dict_and_yaml_give_it_back(tmp_path: Path) -> None:
    config = PQKConfig(layers=MIXED)
    assert PQKConfig.from_dict(config.to_dict()) == config
    config.to_yaml(tmp_path / "config.yaml")
    assert PQKConfig.load_yaml(tmp_path / "config.yaml") == config
    mixed = {pattern: dict(own) for pattern, own in MIXED.items()}
    own = PQKConfig(layers=mixed)
    mixed["conv1"]["sparsity"] = 0.0
    assert own == config


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "layers: expected a mapping"),
        ({"conv1": 0.5}, "layers: expected a mapping"),
        ({"(": {}}, r"regular expressions.*found '\('"),
        ({1: {}}, "regular expressions.*found 1"),
        ({"conv1": {"sparsty": 0.5}}, "only sparsity, weight_bits, act_bits.*found 'sparsty'"),
        ({"conv1": {"sparsity": 1.0}}, r"a number in \[0, 1\) for sparsity of 'conv1' \(found 1.0\)"),
        ({"conv1": {"weight_bits": 9}}, r"an integer from 2 to 8 for weight_bits of 'conv1' \(found 9\)"),
        ({"conv1": {"sparsity": 0.999}}, "min_keep_fraction: expected at most"),
    ],
)
def test_bad_settings_are_refused(layers: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PQKConfig(layers=layers)  # type: ignore[arg-type]


def test_a_pattern_without_a_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layers: 'block\.conv' matches no layer.*'conv1', 'conv2', 'fc'"):
        prepare(SmallNet(), PQKConfig(layers={"block.conv": {"sparsity": 0.5}}), example_inputs=batch(0)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers:\n  conv1:\n    sparsity: 2\n", r"1:1: layers: expected a number in .* \(found 2\)"),
        ("layers:\n  conv1: {sparsity: 0.5}\n  conv1: {}\n", "3:3: key 'conv1' is given twice"),
        ("layers:\n  conv1: {sparsity: {a: 1}}\n", "2:21: expected a plain value"),
        ("layers: &a\n  conv1: *a\n", "1:9: expected a plain value"),
        ("layers: 3\n", "1:1: layers: expected a mapping"),
    ],
)
def test_bad_yaml_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        PQKConfig.load_yaml(tmp_path / "c.yaml")
