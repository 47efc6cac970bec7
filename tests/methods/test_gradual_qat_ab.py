"""Each part of gradual pruning -> quantized training -> file, and its controls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pqk_ext import models, runtime
from pqk_ext.deploy import calibrate, export
from pqk_ext.deploy.lower import weight_codes
from pqk_ext.methods import METHODS, gradual_qat_ab, load_recipe, run
from pqk_ext.methods.data import Data, load_data
from pqk_ext.methods.gradual_qat_ab import GradualQatAbSettings, mask_and_codes_bytes
from pqk_ext.methods.run import Run
from pqk_ext.nn import PQKLayer, Role
from pqk_ext.nn.batch_norm import RoleBatchNorm
from pqk_ext.preparation import PreparedModel, prepare
from pqk_ext.runtime.sizes import inspect
from pqk_ext.training import TrainingInterrupted
from pqk_ext.training.signals import stop_after_step

SHORT = {"training.steps": 12, "training.batch_size": 8, "settings.teacher_steps": 6, "settings.qat_fraction": 0.25}
EXCLUDED = ("features.0", "linear")  # the first convolution and the classifier stay dense


@pytest.fixture(autouse=True)
def few_clips(monkeypatch: pytest.MonkeyPatch) -> Data:
    """Accuracies do not matter here, and validating them would take most of the time."""
    whole = load_data("keyword_spotting", "cifar")
    few = Data(*(_every_so_often(*split) for split in (whole.train, whole.validation, whole.test)), whole.classes)
    monkeypatch.setattr(sys.modules[Run.__module__], "load_data", lambda *_: few)  # the package's `run` is a function
    return few


def _every_so_often(x: torch.Tensor, y: torch.Tensor, count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Some of each class: they lie one after the other."""
    chosen = torch.arange(count) * len(x) // count
    return x[chosen], y[chosen]


def work(directory: Path, **changes: Any) -> Run:
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return Run(load_recipe("gradual_qat_ab", SHORT | changes), directory, 0, progress=False)


def train(task: Run) -> PreparedModel:
    model = METHODS["gradual_qat_ab"].train(task)["gradual_qat_ab"]
    assert isinstance(model, PreparedModel)
    return model


def layers(model: nn.Module) -> dict[str, PQKLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PQKLayer)}


def recorded(monkeypatch: pytest.MonkeyPatch, task: Run) -> tuple[PreparedModel, dict[str, torch.Tensor]]:
    """The deployed network, and the state of the float network as pruning left it."""
    kept: dict[str, torch.Tensor] = {}
    prune = gradual_qat_ab._prune

    def recording(*arguments: Any) -> nn.Module:
        network = prune(*arguments)
        kept.update({name: value.clone() for name, value in network.state_dict().items()})
        return network

    monkeypatch.setattr(gradual_qat_ab, "_prune", recording)
    return train(task), kept


def test_zeros_of_the_float_network_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = work(tmp_path / "run")
    model, pruned = recorded(monkeypatch, task)
    assert [path.name for path in sorted((tmp_path / "run").iterdir()) if path.is_dir()] == ["prune", "qat", "teacher"]
    export(model, tmp_path / "net.pqk")
    graph = runtime.load(tmp_path / "net.pqk", tune=False).graph
    of_file = [node.tensors["weight"] for node in graph.nodes if "weight" in node.tensors]
    in_order = [layers(model)[str(block.module)] for block in model.plan if block.op in ("conv2d", "linear")]
    moved = 0
    for codes, layer in zip(of_file, in_order, strict=True):
        assert (codes == weight_codes(layer)).all()
    for name, layer in layers(model).items():
        before, mask = pruned[f"{name}.weight"], layer.weight_mask
        if name in EXCLUDED:
            assert bool(mask.all()), name
        else:
            assert abs(int(mask.sum()) - 0.1 * mask.numel()) <= 1, name
            assert torch.equal(before != 0, mask), name
        assert not bool(layer.weight.detach()[~mask].any()), name
        assert not weight_codes(layer)[~mask.numpy()].any(), name
        moved += int((layer.weight.detach() != before).sum())
    assert moved > 1000  # quantized training did move what is kept


def test_the_file_says_what_fake_quantization_says(tmp_path: Path) -> None:
    changes = {"steps": 40, "batch_size": 16, "lr": 0.005}  # until it tells clips apart
    task = work(tmp_path, settings__teacher_steps=30, **{f"training__{name}": value for name, value in changes.items()})
    model = train(task)
    x = load_data("keyword_spotting", "cifar").test[0]
    with torch.no_grad():
        fake = model.eval().run(x, Role.STUDENT)
    export(model, tmp_path / "net.pqk")
    file = torch.from_numpy(runtime.load(tmp_path / "net.pqk", tune=False)(x.numpy()))
    assert float((fake.argmax(1) == file.argmax(1)).double().mean()) > 0.995
    assert len(set(file.argmax(1).tolist())) > 3


def test_every_ranking_hits_the_cubic_schedule_in_each_layer(tmp_path: Path) -> None:
    """s_t = s_f + (s_i - s_f) * (1 - (t - t0) / (n * dt))^3, s_i = 0; t0, dt and n from the recipe."""
    task = work(tmp_path)
    model = task.prepare(task.network(), steps=24, **gradual_qat_ab._FLOAT)
    config = model.pqk.config
    start, interval, end = 1, 4, 18  # 5 % of 24 steps, the recipe's interval, 75 %
    assert (config.warmup_steps, config.mask_update_interval, config.ramp_end_step) == (start, interval, end)
    optimizer = torch.optim.AdamW(model.pqk.parameter_groups(lr=0.002, weight_decay=0.01))
    x, y = (part[:4] for part in task.data.train)
    seen, wanted = [], 0.0
    for step in range(1, 25):
        model.pqk.loss(x, y).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
        if step % interval == 0:
            wanted = 0.9 if step >= end else 0.9 + (0 - 0.9) * (1 - (step - start) / (end - start)) ** 3
        for name, layer in layers(model).items():
            count = layer.weight.numel()
            goal = 0 if name in EXCLUDED else wanted
            assert abs(int((~layer.weight_mask).sum()) - goal * count) <= 1, (step, name)
        seen.append(model.pqk.sparsity)
    assert seen == sorted(seen)
    assert 0 < seen[3] < seen[7] < seen[11] < seen[15] < seen[19]


def test_one_shot_prunes_the_teachers_smallest_weights_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = []
    train_teacher = gradual_qat_ab._train_teacher

    def remember(task: Run) -> nn.Module:
        teachers.append(train_teacher(task))
        return teachers[0]

    monkeypatch.setattr(gradual_qat_ab, "_train_teacher", remember)
    model = train(work(tmp_path, settings__pruning="one_shot"))
    weights = dict(teachers[0].named_parameters())
    for name, layer in layers(model).items():
        if name not in EXCLUDED:
            size, mask = weights[f"{name}.weight"].detach().abs(), layer.weight_mask
            assert abs(int(mask.sum()) - 0.1 * mask.numel()) <= 1
            # The floor of one weight a channel keeps some that are smaller than the threshold.
            best = mask.flatten(1) & (size.flatten(1) < size.flatten(1).amax(1, keepdim=True))
            assert size.flatten(1)[best].min() >= size.flatten(1)[~mask.flatten(1)].quantile(0.99)


def test_ptq_is_calibration_of_the_pruned_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = work(tmp_path, settings__quantization="ptq")
    model, pruned = recorded(monkeypatch, task)
    assert not (tmp_path / "qat").exists()
    plain = task.network()
    plain.load_state_dict(pruned)
    config = task.recipe.config(4, ranking="fixed", teacher=False)
    expected = prepare(plain, config, example_inputs=task.example_inputs)
    batches = gradual_qat_ab._calibration(task)
    assert [len(x) for x in batches] == [8] * 8
    assert torch.equal(torch.cat(batches).sort(0).values, task.data.train[0].sort(0).values)  # all of them, once
    calibrate(expected, batches)
    x = task.data.test[0]
    assert torch.equal(model.eval()(x), expected.eval()(x))
    assert task.facts["ptq_validation_accuracy"] == task.accuracy(model)


@pytest.mark.parametrize(
    ("changes", "lengths"),
    [
        ({}, (0, 828, 92)),
        ({"quantization": "ptq"}, (0, 920, 0)),
        ({"ab_init_fraction": 0.25, "qat_fraction": 0.25}, (230, 460, 230)),
        ({"qat_fraction": 0}, (0, 920, 0)),
    ],
)
def test_all_arms_have_as_many_steps(changes: dict[str, Any], lengths: tuple[int, ...]) -> None:
    found = gradual_qat_ab._lengths(GradualQatAbSettings(**changes), 920)
    assert tuple(found.values()) == lengths
    assert sum(lengths) == 920


def similarity(task: Run, distil: gradual_qat_ab._Distil, student: PreparedModel) -> float:
    distil.look("now", student, Role.PRUNED)
    shares: list[float] = task.facts["now_activation_similarity"]
    return sum(shares) / len(shares)


def test_boundaries_alone_make_activations_alike_and_need_no_labels(tmp_path: Path) -> None:
    task = work(tmp_path)
    teacher, network = task.network(), task.network(draw=1)
    for norm in (module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        teacher.train()(task.data.train[0])
    distil = gradual_qat_ab._Distil(task, network, teacher.eval())
    student = task.prepare(network, steps=40, **{**gradual_qat_ab._FLOAT, "sparsity": 0.0, "layers": {}})
    trainee = distil.boundaries_alone(student)
    x, y = task.data.train
    gradients = []
    for labels in (y, (y + 1) % 12):
        trainee.zero_grad()
        trainee.loss(x[:16], labels[:16]).backward()
        gradients.append([p.grad.clone() for p in trainee.parameters() if p.grad is not None])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)
    before = similarity(task, distil, student)
    optimizer = torch.optim.AdamW(trainee.parameter_groups(lr=0.01, weight_decay=0.0))
    for step in range(24):
        trainee.train()
        chosen = slice(step % 2 * 32, step % 2 * 32 + 32)
        trainee.loss(x[chosen], y[chosen]).backward()
        optimizer.step()
        trainee.step()
        optimizer.zero_grad()
    assert before < 0.7
    assert similarity(task, distil, student) > before + 0.05


def test_a_copy_of_the_teacher_is_like_it_from_the_start(tmp_path: Path) -> None:
    task = work(tmp_path)
    teacher = task.network().eval()
    distil = gradual_qat_ab._Distil(task, teacher, teacher)
    assert distil.connectors is None
    assert distil.teacher.feature_shapes == ((72, 24, 5), (84, 12, 2), (90, 6, 1))  # transitions, and the last norm
    student = task.prepare(teacher, steps=8, **gradual_qat_ab._FLOAT)
    assert similarity(task, distil, student) == 1.0


@pytest.mark.parametrize("setting", ["train", "freeze"])
def test_running_statistics_in_quantized_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    model, pruned = recorded(monkeypatch, work(tmp_path, settings__qat_batch_norm=setting))
    norms = {name: module for name, module in model.named_modules() if isinstance(module, RoleBatchNorm)}
    assert len(norms) == 27
    same = [torch.equal(norm.running_mean, pruned[f"{name}.running_mean"]) for name, norm in norms.items()]  # type: ignore[arg-type]
    assert all(same) if setting == "freeze" else not any(same)


def test_a_student_of_other_widths_has_connectors_that_are_not_deployed(tmp_path: Path) -> None:
    task = work(
        tmp_path, model="res8_narrow", pqk__layers={}, settings__teacher="res8", settings__student="recipe",
        settings__points=(), settings__ab_init_fraction=0.25, settings__teacher_steps=2, training__batch_size=4,
    )  # fmt: skip
    model = train(task)
    assert not any("connectors" in name or "adapters" in name for name in model.state_dict())
    assert (tmp_path / "ab_init").exists()
    shares = task.facts["qat_activation_similarity"]
    assert len(shares) >= 1
    assert all(0 <= share <= 1 for share in shares)
    connectors = gradual_qat_ab._connectors([19, 45, 7], [45, 45, 9], 0)
    assert [len(stage) for stage in connectors.stages] == [2, 0, 2]  # type: ignore[arg-type]
    first = connectors.stages[0][0]  # type: ignore[index]
    assert first.bias is None
    assert float(first.weight.detach().std()) == pytest.approx((2 / 45) ** 0.5, rel=0.1)


def test_a_stopped_run_ends_with_the_same_file(tmp_path: Path) -> None:
    recipe = load_recipe("gradual_qat_ab", SHORT)
    whole = run(recipe, tmp_path / "whole", progress=False)
    token = stop_after_step.set(2)  # of the teacher, of pruning and of quantized training
    try:
        for _ in range(3):
            with pytest.raises(TrainingInterrupted):
                run(recipe, tmp_path / "stopped", progress=False)
    finally:
        stop_after_step.reset(token)
    stopped = run(recipe, tmp_path / "stopped", progress=False)
    del whole["seconds"], stopped["seconds"]
    assert whole == stopped
    name = "gradual_qat_ab"
    files = [(tmp_path / folder / f"{name}.pqk").read_bytes() for folder in ("whole", "stopped")]
    assert files[0] == files[1]
    assert whole["networks"][name]["parity"]["different"] == 0
    assert (whole["steps"], whole["extra_steps"]) == (12, 6)
    # Weights take no more than codes and a mask; the rest is a few floats a channel and the description of the graph.
    info = inspect(tmp_path / "whole" / f"{name}.pqk")
    weights = sum(layer.weight.payload_bytes for layer in info.layers)
    assert 0.5 * whole["facts"]["mask_and_codes_bytes"] < weights < 1.05 * whole["facts"]["mask_and_codes_bytes"]
    assert whole["networks"][name]["bytes"] == info.total_bytes


def test_the_size_of_densenet_201() -> None:
    """18,112,138 parameters with the 7x7 stem and ten classes; at 90 % and 8 bits 4.07 MB with a mask bit for each."""
    model = models.create("densenet201", stem="imagenet")
    count = models.count_parameters(model)
    assert count == 18_112_138
    assert mask_and_codes_bytes(count, round(0.1 * count), 8) / 1e6 == pytest.approx(18.1 * 0.1 + 2.26, abs=0.01)
    assert mask_and_codes_bytes(count, count, 8) == pytest.approx(count * 9 / 8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("student", "copy"),
        ("pruning", "twice"),
        ("quantization", 8),
        ("qat_batch_norm", True),
        ("teacher_steps", -1),
        ("teacher_steps", 1.5),
        ("calibration_batches", 0),
        ("ab_weight", -0.1),
        ("kd_weight", True),
        ("ce_weight", float("inf")),
        ("qat_lr_factor", "1"),
        ("margin", 0),
        ("temperature", 0.0),
        ("ab_init_fraction", 1.0),
        ("qat_fraction", 1.5),
        ("per_element", 1),
        ("points", "norm"),
        ("teacher_points", (1,)),
    ],
)
def test_a_wrong_setting_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got"):
        GradualQatAbSettings(**{name: value})  # type: ignore[arg-type]


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="qat_fraction: expected a sum with ab_init_fraction below 1"):
        GradualQatAbSettings(ab_init_fraction=0.5, qat_fraction=0.5)
    with pytest.raises(ValueError, match="student: expected 'recipe' beside a teacher of another network"):
        GradualQatAbSettings(teacher="ds_cnn")


def test_the_published_recipe_names_points_of_its_network() -> None:
    recipe = load_recipe("gradual_qat_ab-published")
    network = models.create(recipe.model)
    for point in recipe.settings.points:
        assert isinstance(network.get_submodule(point), nn.BatchNorm2d)
    assert gradual_qat_ab._lengths(recipe.settings, recipe.training.steps)["qat"] == 7019
