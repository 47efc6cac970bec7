"""Students on one base: widths, what is shared, the three losses and whom they move, files, resuming."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pqk_ext
from pqk_ext import models, runtime
from pqk_ext.deploy import calibrate, compare, export
from pqk_ext.methods.student_ensemble import StudentEnsemble, StudentEnsembleSettings, branch_widths
from pqk_ext.nn import Role
from pqk_ext.preparation import PreparedModel, find_taps
from pqk_ext.preparation.sharing import share_beginning
from pqk_ext.teachers.students import AverageOfStudents, average_logits
from pqk_ext.training import assert_resume

STAGES = ("layer1", "layer2", "layer3")
WIDTHS = ((16, 32, 64), (10, 21, 42), (5, 10, 21))


def images(seed: int, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def make_students(seed: int = 0, **config: object) -> list[PreparedModel]:
    values = {"sparsity": 0.0, "teacher": False, "total_steps": 8, "warmup_fraction": 0.0, **config}
    settings = pqk_ext.PQKConfig(**values)  # type: ignore[arg-type]
    torch.manual_seed(seed)
    networks = [models.create("resnet8", stage_channels=width) for width in WIDTHS]
    students = [pqk_ext.prepare(network, settings, example_inputs=images(0)[0]) for network in networks]
    for student in students:
        if settings.float_steps == 0:
            calibrate(student, images(0)[0])  # else the first batch would give the ranges
    return students


def make(seed: int = 0, settings: dict[str, object] | None = None, **config: object) -> StudentEnsemble:
    students = make_students(seed, **config)
    return StudentEnsemble(students, STAGES, StudentEnsembleSettings(**(settings or {})))  # type: ignore[arg-type]


def branch(student: PreparedModel) -> list[nn.Parameter]:
    return [p for name, p in student.named_parameters() if name.startswith(("layer", "linear"))]


def base(student: PreparedModel) -> dict[str, Tensor]:
    return {name: value for name, value in student.state_dict().items() if name.startswith(("conv1", "bn1"))}


def gradients(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True))


def train(trainee: StudentEnsemble, steps: int, seed: int = 1) -> None:
    optimizer = torch.optim.AdamW(trainee.parameter_groups(0.01, 0.1))
    for step in range(steps):
        trainee.loss(*images(seed + step)).backward()
        optimizer.step()
        trainee.step()
        optimizer.zero_grad()


# --- widths and settings ----------------------------------------------------------------------------------------------


def test_widths_are_cut_off() -> None:
    assert branch_widths((16, 32, 64), 5) == [(16, 32, 64), (12, 25, 51), (9, 19, 38), (6, 12, 25), (3, 6, 12)]
    assert branch_widths((64, 64), 3) == [(64, 64), (42, 42), (21, 21)]
    for students in range(2, 17):  # as the authors write it
        expected = [tuple(int(c * (students - j) / students) for c in (16, 32, 64)) for j in range(students)]
        assert branch_widths((16, 32, 64), students) == expected


def test_too_many_students() -> None:
    with pytest.raises(ValueError, match="students: expected at most 16, the channels of a stage, got 17"):
        branch_widths((16, 32, 64), 17)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("students", 1),
        ("students", 2.0),
        ("base_stages", -1),
        ("alpha", 0.0),
        ("alpha", float("nan")),
        ("beta", -0.1),
        ("gamma", "1"),
        ("temperature", 0),
        ("adapter_lr_factor", float("inf")),
        ("base_gradient", "none"),
        ("alone", 1),
    ],
)
def test_wrong_settings(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        StudentEnsembleSettings(**{name: value})  # type: ignore[arg-type]


# --- the ensemble as a teacher ----------------------------------------------------------------------------------------


def test_average_is_plain_and_constant() -> None:
    logits = [torch.randn(4, 3, requires_grad=True) for _ in range(3)]
    average = average_logits(logits)
    torch.testing.assert_close(average, (logits[0] + logits[1] + logits[2]).detach() / 3)
    assert not average.requires_grad


def test_average_of_students_in_evaluation() -> None:
    students = [student.eval() for student in make_students()]
    x = images(3)[0]
    teacher = AverageOfStudents(students)
    expected = torch.stack([student(x) for student in students]).mean(0)
    assert torch.equal(teacher(x, 7).logits, expected)
    assert teacher(x).features == ()


def test_average_of_nothing_or_of_other_shapes() -> None:
    with pytest.raises(ValueError, match="logits: expected one shape, got none"):
        average_logits([])
    with pytest.raises(ValueError, match=r"logits: expected one shape, got \[\(2, 3\), \(2, 4\)\]"):
        average_logits([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(ValueError, match="students: expected at least one"):
        AverageOfStudents([])


# --- what is shared ---------------------------------------------------------------------------------------------------


def test_base_is_one_and_branches_are_not() -> None:
    students = make_students()
    apart = sum(p.numel() for s in students for p in s.parameters())
    alike = sum(p.numel() for p in {p: None for p in students[0].parameters() if p.requires_grad})
    trainee = StudentEnsemble(students, STAGES, StudentEnsembleSettings(beta=0.0))
    first, others = students[0], students[1:]
    for student in others:
        assert student.conv1 is first.conv1
        assert student.bn1 is first.bn1
        assert student.plan[1].quantizer is not None
        for key in (student.plan[0].quantizer, student.plan[1].quantizer):
            assert student.pqk_quantizers[key] is first.pqk_quantizers[key]
        own = {id(p) for p in branch(student)}
        assert own.isdisjoint({id(p) for p in branch(first)})
    base_size = sum(p.numel() for p in (*first.conv1.parameters(), *first.bn1.parameters())) + 2  # two step sizes
    assert sum(p.numel() for p in trainee.parameters()) == apart - 2 * base_size
    assert alike < apart - 2 * base_size


def test_base_is_computed_once() -> None:
    trainee = make()
    trainee.loss(*images(1))
    assert int(trainee.student.bn1.num_batches_tracked) == 1  # type: ignore[union-attr,arg-type]
    for student in trainee.students:
        assert int(student.layer1[0].bn1.num_batches_tracked) == 1  # type: ignore[index,union-attr]


@pytest.mark.parametrize("warming", [True, False])
def test_students_say_what_each_would_say_by_itself(warming: bool) -> None:
    trainee = make(warmup_fraction=0.25 if warming else 0.0, phase1_fraction=1.0)
    x, y = images(1)
    assert trainee.student.pqk.quantizing is not warming  # type: ignore[union-attr]
    role = Role.FLOAT if warming else Role.STUDENT
    expected = [s.run(x, role, taps=find_taps(s, STAGES)) for s in copy.deepcopy(trainee).students]
    own, outputs = trainee.outputs(x, y)
    for output, wanted in zip(outputs, expected, strict=True):
        assert torch.equal(output.logits, wanted.logits)
        assert len(output.features) == 3
        assert all(torch.equal(a, b) for a, b in zip(output.features, wanted.features, strict=True))
    torch.testing.assert_close(own, sum(F.cross_entropy(w.logits, y) for w in expected))


def test_gradient_of_the_base_is_the_sum_over_branches() -> None:
    trainee = make()
    x, y = images(1)
    weight = trainee.student.conv1.weight  # type: ignore[union-attr]
    by_itself = [gradients(F.cross_entropy(s.run(x, Role.STUDENT), y), [weight])[0] for s in trainee.students]  # type: ignore[list-item]
    together = gradients(trainee.outputs(x, y)[0], [weight])[0]  # type: ignore[list-item]
    torch.testing.assert_close(together, by_itself[0] + by_itself[1] + by_itself[2])


def test_only_the_first_branch_may_train_the_base() -> None:
    trainee = make(settings={"base_gradient": "first"})
    x, y = images(1)
    _, outputs = trainee.outputs(x, y)
    parameters = list(trainee.student.conv1.parameters())  # type: ignore[union-attr]
    assert all(g is None for output in outputs[1:] for g in gradients(output.logits.sum(), parameters))
    assert all(g is not None for g in gradients(outputs[0].logits.sum(), parameters[:1]))


def test_begun_runs_end_with_the_context() -> None:
    first, second, _ = make_students()
    x = images(1)[0]
    count = share_beginning([first, second], "layer1")
    values = [torch.zeros(6, *block.shape) for block in first.plan[:count]]
    with second.begins_with(values):
        assert torch.equal(second.run(x, Role.STUDENT), second.run(x + 1, Role.STUDENT))
        assert not torch.equal(second.run(x, Role.TEACHER), second.run(x + 1, Role.TEACHER))
    with pytest.raises(ZeroDivisionError), second.begins_with(values):
        print(1 / 0)
    assert not torch.equal(second.run(x, Role.STUDENT), second.run(x + 1, Role.STUDENT))


def test_what_cannot_be_shared() -> None:
    first, second, _ = make_students()
    config = first.pqk.config
    with pytest.raises(ValueError, match="models: expected two or more, got 1"):
        share_beginning([first], "layer1")
    with pytest.raises(ValueError, match="stage: no layer of the network lies in 'stage1'"):
        share_beginning([first, second], "stage1")
    with pytest.raises(ValueError, match="stage: no layer comes before 'conv1'"):
        share_beginning([first, second], "conv1")
    with pytest.raises(ValueError, match="models: number 1 differs from the first before 'layer2'"):
        share_beginning([first, second], "layer2")
    wide = pqk_ext.prepare(models.create("resnet32", width=2), config, example_inputs=images(0)[0])
    with pytest.raises(ValueError, match="models: number 1 differs from the first before 'layer1'"):
        share_beginning([first, wide], "layer1")
    other = make_students(sparsity=0.5)[1]
    with pytest.raises(ValueError, match="models: number 1 has another config"):
        share_beginning([first, other], "layer1")


# --- losses -----------------------------------------------------------------------------------------------------------


def test_loss_is_the_published_sum() -> None:
    trainee = make(settings={"temperature": 3.0})
    x, y = images(1)
    outputs = [s.run(x, Role.STUDENT, taps=find_taps(s, STAGES)) for s in copy.deepcopy(trainee).students]
    logits = [o.logits.double() for o in outputs]
    average = (logits[0] + logits[1] + logits[2]) / 3
    ce = sum(F.cross_entropy(one, y) for one in logits)
    p = F.softmax(average / 3, 1)
    kd = sum(9 * (p * (p.log() - F.log_softmax(one / 3, 1))).sum(1).mean() for one in logits)
    maps = torch.zeros(())
    for adapters, output in zip(trainee.adapters, outputs[1:], strict=True):
        for stage, own, wanted in zip(adapters.stages, output.features, outputs[0].features, strict=True):
            convolution = stage[0]
            assert convolution.weight.shape == (wanted.shape[1], own.shape[1], 1, 1)
            adapted = torch.einsum("oi,nihw->nohw", convolution.weight[:, :, 0, 0], own)
            maps = maps + ((adapted + convolution.bias[:, None, None] - wanted) ** 2).mean()
    expected = 0.7 * ce + 0.15 * maps + 0.15 * kd
    torch.testing.assert_close(trainee.loss(x, y).double(), expected.double(), rtol=1e-5, atol=1e-6)
    metrics = trainee.metrics()
    for name, part in (("loss", expected), ("features", maps), ("kd", kd)):
        assert metrics[name] == pytest.approx(part.item(), rel=1e-5)


def test_feature_loss_never_moves_student_1() -> None:
    trainee = make()
    loss = trainee.feature_loss(trainee.outputs(*images(1))[1])
    first, *others = trainee.students
    assert all(g is None for g in gradients(loss, branch(first)))
    for student in others:
        moved = [g for g in gradients(loss, branch(student)) if g is not None and bool(g.any())]
        assert len(moved) > len(branch(student)) // 2
    assert all(g is not None and g.any() for g in gradients(loss, list(trainee.adapters.parameters())))


def test_ensemble_loss_takes_the_average_as_a_constant() -> None:
    trainee = make()
    _, outputs = trainee.outputs(*images(1))
    loss = trainee.ensemble_loss(outputs)
    average = average_logits([o.logits for o in outputs])
    for output in outputs:
        found = torch.autograd.grad(loss, output.logits, retain_graph=True)[0]
        expected = 2.0 * (F.softmax(output.logits / 2, 1) - F.softmax(average / 2, 1)) / len(average)
        torch.testing.assert_close(found, expected)
        assert found.any()


def test_without_features_and_divergence_the_loss_is_cross_entropy() -> None:
    trainee = make(settings={"beta": 0.0, "gamma": 0.0, "alpha": 1.0})
    x, y = images(1)
    expected = sum(F.cross_entropy(s.run(x, Role.STUDENT), y).item() for s in copy.deepcopy(trainee).students)
    assert trainee.loss(x, y).item() == pytest.approx(expected)
    assert len(trainee.adapters) == 0
    assert trainee.parameter_groups(0.1, 0.0)
    assert "kd" not in trainee.metrics()


def test_every_parameter_has_a_gradient_and_one_group() -> None:
    trainee = make()
    trainee.loss(*images(1)).backward()
    for name, parameter in trainee.named_parameters():
        assert parameter.grad is not None, name
    groups = trainee.parameter_groups(0.1, 1e-4)
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed)) == len(list(trainee.parameters()))
    adapters = {id(p) for p in trainee.adapters.parameters()}
    of_adapters = [group for group in groups if {id(p) for p in group["params"]} & adapters]
    assert [group["lr"] for group in of_adapters] == [0.05]
    assert {id(p) for p in of_adapters[0]["params"]} == adapters


# --- with pruning and PQK's own teacher -------------------------------------------------------------------------------


def test_masks_of_the_base_are_the_first_students() -> None:
    trainee = make(sparsity=0.6, phase1_fraction=1.0, mask_update_interval=1, ramp_end=0.5)
    first, *others = trainee.students
    layer = first.conv1
    train(trainee, 2)
    before, masked = layer.weight.detach().clone(), ~layer.weight_mask  # type: ignore[union-attr,operator]
    train(trainee, 1, seed=5)
    still = masked & ~layer.weight_mask  # type: ignore[operator]
    assert 0 < int(still.sum()) < masked.numel()
    # What stays pruned keeps its value, through weight decay and three controllers.
    assert torch.equal(layer.weight[still], before[still])  # type: ignore[index]
    assert not torch.equal(layer.weight, before)  # type: ignore[arg-type]
    train(trainee, 5, seed=9)
    for student in trainee.students:
        assert student.pqk.global_step == 8
        assert student.pqk.sparsity == pytest.approx(0.6, abs=0.02)
    alone = copy.deepcopy(first)
    alone.pqk.update_masks()
    assert torch.equal(alone.conv1.weight_mask, first.conv1.weight_mask)  # type: ignore[union-attr,arg-type]
    assert all(torch.equal(a, b) for s in others for a, b in zip(base(s).values(), base(first).values(), strict=True))


def test_composes_with_pqks_own_teacher() -> None:
    trainee = make(sparsity=0.5, teacher=True, phase1_fraction=0.5, mask_update_interval=2, total_steps=4)
    train(trainee, 3)
    assert all(student.pqk.phase == 2 for student in trainee.students)
    loss = trainee.loss(*images(20))
    loss.backward()
    assert all(p.grad is not None for p in trainee.parameters() if p.requires_grad)
    own = [student.pqk.metrics() for student in trainee.students]
    assert all(values["kd"] > 0 and values["teacher_ce"] > 0 for values in own)
    total = sum(values["student_ce"] + values["kd"] + values["teacher_ce"] for values in own)
    assert trainee.metrics()["own"] == pytest.approx(total, rel=1e-5)


def test_files_of_all_students_begin_with_the_same_base(tmp_path: Path) -> None:
    trainee = make(sparsity=0.5, phase1_fraction=1.0, mask_update_interval=1, total_steps=4)
    train(trainee, 4)
    trainee.eval()
    x = images(30, 32)[0]
    layers = []
    for index, student in enumerate(trainee.students):
        path = tmp_path / f"{index}.pqk"
        export(student, path)
        assert compare(student, path, x).different == 0
        graph = runtime.load(path, tune=False).graph
        layers.append(graph.nodes[1].tensors)
    assert layers[0]["weight"].any()
    for tensors in layers[1:]:
        assert all((tensors[name] == value).all() for name, value in layers[0].items())


# --- under fit --------------------------------------------------------------------------------------------------------


def test_stopped_runs_end_with_the_same_bytes() -> None:
    x, y = images(2, 24)

    def arguments() -> dict[str, object]:
        trainee = make(sparsity=0.5, teacher=True, warmup_fraction=0.3, mask_update_interval=1, total_steps=6)
        return {"model": trainee, "train": (x, y), "val": (x[:4], y[:4]), "config": None, "batch_size": 8}

    assert_resume(arguments, stops=[4])
