"""Sensitivity of layers, and settings chosen from it, against networks changed by hand in plain torch."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pqk_ext
from pqk_ext.config import PQKConfig
from pqk_ext.quant import per_channel_scale
from pqk_ext.sensitivity import Row, Sensitivity, allocate, choose_config, sensitivity
from pqk_ext.sensitivity.measure import as_prepared, set_layer

from ..networks import SmallNet, batch, enliven

GRID = {"sparsities": (0.0, 0.6), "weight_bits": (8, 3)}


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = SmallNet().train()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(60):
        F.cross_entropy(net(batch(step)[0]), batch(step)[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    x, y = batch(1000, 96)
    return enliven(net, x), x, y


@pytest.fixture(scope="module")
def table(trained: tuple[nn.Module, Tensor, Tensor]) -> Sensitivity:
    return sensitivity(*trained, **GRID)


class Shifted(nn.Module):
    """A changed convolution, after which the batch norm's running statistics move as much as the batch's did."""

    def __init__(self, before: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.before, self.after = copy.deepcopy(before), before
        self.norm, self.mean, self.variance = norm, norm.running_mean.clone(), norm.running_var.clone()

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.before(x), self.after(x)
        axes = (0, 2, 3)
        self.norm.running_mean.copy_(self.mean + after.mean(axes) - before.mean(axes))
        variances = [part.var(axes, correction=0) + self.norm.eps for part in (before, after)]
        self.norm.running_var.copy_(self.variance * variances[1] / variances[0])
        return self.after(x)


def by_hand(net: nn.Module, settings: dict[str, tuple[float, int]]) -> nn.Module:
    """The float network with weights pruned by size and rounded, layer by layer."""
    changed = copy.deepcopy(net).requires_grad_(False)
    for name, (sparsity, bits) in settings.items():
        layer = changed.get_submodule(name)
        shifted = Shifted(layer, changed.get_submodule(f"bn{name[-1]}")) if name != "fc" else layer
        weight = layer.weight.data
        kept = weight.numel() - round(sparsity * weight.numel())
        border = weight.abs().flatten().sort(descending=True).values[kept - 1]
        mask = weight.abs() >= border
        quant_max = 2 ** (bits - 1) - 1
        scale = per_channel_scale(weight, mask, quant_max).view(-1, *[1] * (weight.dim() - 1))
        weight.copy_(torch.where(mask, (weight / scale).round().clamp(-quant_max, quant_max) * scale, 0.0))
        setattr(changed, name, shifted)
    return changed


def test_rows_are_what_a_changed_network_gives(trained: tuple[nn.Module, Tensor, Tensor], table: Sensitivity) -> None:
    net, x, y = trained
    assert table.layers() == ["conv1", "conv2", "fc"]
    assert len(table.rows) == 12
    assert table.accuracy > 0.5
    with torch.no_grad():
        reference = F.log_softmax(net(x), 1)
    for row in table.rows:
        logits = by_hand(net, {row.layer: (row.sparsity, row.weight_bits)})(x).detach()
        kl = (reference.exp() * (reference - F.log_softmax(logits, 1))).sum(1).mean()
        assert row.kl == pytest.approx(float(kl), rel=1e-3, abs=1e-5)
        assert row.loss == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-4)
        assert row.accuracy == pytest.approx(float((logits.argmax(1) == y).double().mean()), abs=0.02)
        assert 0 < row.nbytes < net.get_submodule(row.layer).weight.numel() * 1.2 + 64


def test_the_model_is_untouched_and_two_runs_are_equal(
    trained: tuple[nn.Module, Tensor, Tensor], table: Sensitivity
) -> None:
    before = copy.deepcopy(trained[0].state_dict())
    assert sensitivity(*trained, **GRID) == table
    assert all(torch.equal(before[name], value) for name, value in trained[0].state_dict().items())


def test_a_prepared_model_counts_with_its_float_weights(
    trained: tuple[nn.Module, Tensor, Tensor], table: Sensitivity
) -> None:
    net, x, y = trained
    prepared = pqk_ext.prepare(net, PQKConfig(total_steps=10), example_inputs=x)
    prepared.pqk._step = 9
    prepared.pqk.update_masks()
    assert prepared.pqk.sparsity > 0.8
    assert [row.layer for row in sensitivity(prepared, x, y, **GRID).rows] == [row.layer for row in table.rows]
    assert sensitivity(prepared, x, y, **GRID).accuracy == table.accuracy
    assert prepared.pqk.sparsity > 0.8


def test_it_goes_on_where_it_was_stopped(
    trained: tuple[nn.Module, Tensor, Tensor], table: Sensitivity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"

    def stop(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivity(*trained, **GRID, path=path, progress=stop)
    path.write_bytes(path.read_bytes()[:-7])  # as if killed while it wrote
    measured: list[str] = []
    real = pqk_ext.sensitivity.measure._measure
    monkeypatch.setattr(
        pqk_ext.sensitivity.measure, "_measure", lambda *args: (measured.append(args[2]), real(*args))[1]
    )
    assert sensitivity(*trained, **GRID, path=path) == table
    assert len(measured) == 8
    assert sensitivity(*trained, **GRID, path=path) == table
    assert len(measured) == 8


def test_rows_of_something_else_are_refused(trained: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    net, x, y = trained
    path = tmp_path / "rows.jsonl"
    sensitivity(net, x, y, sparsities=(0.5,), weight_bits=(8,), path=path)
    with pytest.raises(ValueError, match="another network, or of other samples"):
        sensitivity(net, x[1:], y[1:], path=path)
    path.write_text("hello\n")
    with pytest.raises(ValueError, match="does not hold rows"):
        sensitivity(net, x, y, path=path)
    assert path.read_text() == "hello\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.zeros(3, dtype=torch.int64)}, "y: expected one label for each"),
        ({"sparsities": (1.0,)}, "sparsity: expected a number"),
        ({"weight_bits": (9,)}, "weight_bits: expected an integer from 2 to 8, got 9"),
    ],
)
def test_bad_arguments(trained: tuple[nn.Module, Tensor, Tensor], change: dict[str, object], message: str) -> None:
    net, x, y = trained
    with pytest.raises(ValueError, match=message):
        sensitivity(net, **({"x": x, "y": y} | change))  # type: ignore[arg-type]


def random_table(seed: int, layers: int = 4, settings: int = 5) -> Sensitivity:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for layer, setting in itertools.product(range(layers), range(settings)):
        kl, size = torch.rand(2, generator=generator).tolist()
        rows.append(Row(f"l{layer}", setting / 10, 8, kl, 0.0, 0.0, 100 + int(1000 * size)))
    return Sensitivity(0.0, 1.0, 1, tuple(rows))


@pytest.mark.parametrize("seed", range(20))
def test_allocation_is_close_to_the_best_of_all(seed: int) -> None:
    table = random_table(seed)
    options = [[row for row in table.rows if row.layer == layer] for layer in table.layers()]
    everything = [(sum(r.nbytes for r in rows), sum(r.kl for r in rows)) for rows in itertools.product(*options)]
    largest_step = max(row.kl for row in table.rows)
    for target in (1200, 1800, 2600, 4400):
        possible = [kl for size, kl in everything if size <= target]
        if not possible:
            with pytest.raises(ValueError, match="weight_bytes: expected at least"):
                allocate(table, target)
            continue
        found = allocate(table, target)
        assert found.nbytes <= target
        assert [row.layer for row in found.rows] == table.layers()
        assert min(possible) - 1e-9 <= found.kl <= min(possible) + largest_step


def test_with_room_for_all_nothing_is_lost() -> None:
    table = random_table(3)
    best = sum(min(row.kl for row in table.rows if row.layer == layer) for layer in table.layers())
    assert allocate(table, 10**9).kl == pytest.approx(best)


@pytest.mark.parametrize("share", [0.9, 0.75])
def test_a_file_of_the_target_size(
    trained: tuple[nn.Module, Tensor, Tensor], table: Sensitivity, share: float, tmp_path: Path
) -> None:
    """It is small enough, and that of the next allocation with more bytes is not."""
    net, x, y = trained

    def file_size(settings: Mapping[str, Mapping[str, float]]) -> int:
        prepared = as_prepared(net, x)
        for pattern, own in settings.items():
            set_layer(prepared, pattern, own["sparsity"], int(own["weight_bits"]))
        pqk_ext.export(prepared, tmp_path / "small.pqk")
        return (tmp_path / "small.pqk").stat().st_size

    pqk_ext.export(net, tmp_path / "dense.pqk", example_inputs=x[:1], calibration=x)
    target = round((tmp_path / "dense.pqk").stat().st_size * share)
    config = choose_config(net, x, y, PQKConfig(total_steps=50), target_bytes=target, table=table)
    assert file_size(config.layers) <= target
    least = sum(min(row.nbytes for row in table.rows if row.layer == layer) for layer in table.layers())
    budgets = (allocate(table, budget) for budget in range(least, target))
    chosen = next(found for found in budgets if found.layers() == config.layers)
    larger = next(found for found in budgets if found.nbytes > chosen.nbytes)
    assert file_size(larger.layers()) > target
    pqk_ext.prepare(net, config, example_inputs=x)


def test_an_accuracy_before_training(trained: tuple[nn.Module, Tensor, Tensor], table: Sensitivity) -> None:
    net, x, y = trained
    target = table.accuracy - 0.05
    config = choose_config(net, x, y, PQKConfig(total_steps=50), target_accuracy=target, table=table)
    settings = {name: (own["sparsity"], int(own["weight_bits"])) for name, own in config.layers.items()}
    accuracy = float((by_hand(net, settings)(x).argmax(1) == y).double().mean())
    assert accuracy >= target - 0.02
    assert any(setting != (0.0, 8) for setting in settings.values())


def test_targets_that_cannot_be_reached_say_what_can(
    trained: tuple[nn.Module, Tensor, Tensor], table: Sensitivity
) -> None:
    net, x, y = trained
    with pytest.raises(ValueError, match=r"target_bytes: cannot be reached: .* at least \d+.* are no weights, got 100"):
        choose_config(net, x, y, PQKConfig(), target_bytes=100, table=table)
    with pytest.raises(ValueError, match=r"target_accuracy: expected at most 0\.\d+"):
        choose_config(net, x, y, PQKConfig(), target_accuracy=1.0, table=dataclasses.replace(table))
    with pytest.raises(ValueError, match="exactly one"):
        choose_config(net, x, y, PQKConfig(), table=table)


def test_names_with_dots_are_matched_as_they_are(table: Sensitivity) -> None:
    row = dataclasses.replace(table.rows[0], layer="block.0.conv")
    layers = allocate(dataclasses.replace(table, rows=(row,)), 10**6).layers()
    config = PQKConfig(layers=layers)
    assert config.for_layer("block.0.conv").weight_bits == 8
    assert config.for_layer("blockX0.conv").weight_bits is None


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pqk_ext.cli.app import run

    output = tmp_path / "chosen.yaml"
    words = ["sensitivity", "--data", "keyword_spotting", "--model", "ds_cnn", "--pretrained", "--samples", "24"]
    words += ["--rows", str(tmp_path / "rows.jsonl")]
    assert run([*words, "--target-bytes", "16000", "-o", str(output), "--json", "-"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["samples"] == 24
    assert PQKConfig.load_yaml(output) == PQKConfig.from_dict(values["config"])
    assert len(values["config"]["layers"]) == 10
    assert run([*words, "--target-accuracy", "0.5"]) == 0
    assert "layers.3.pointwise" in capsys.readouterr().out
    for wrong, code in (
        (["--target-bytes", "10"], 2),
        (["--target-bytes", "9", "--target-accuracy", "0.5"], 2),
        (["-o", str(tmp_path / "x.yaml")], 2),
        (["--run-dir", str(tmp_path)], 2),
        (["--target-bytes", "16000", "-o", str(output)], 4),
    ):
        assert run([*words, *wrong]) == code, wrong
        assert "pqk: error: " in capsys.readouterr().err
