"""Own loops in two processes, under torch's DistributedDataParallel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pqk_ext.config import PQKConfig
from pqk_ext.deploy import calibrate
from pqk_ext.distributed import Objective, check_in_sync, gathered, shard, synchronize
from pqk_ext.preparation import PreparedModel, prepare
from pqk_ext.training import ProcessesDifferError

Start = Callable[[Callable[[], Any]], BaseProcess]
Both = Callable[[Callable[[int], Any]], None]
Problem = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]

# Warm-up to step 3, phase 2 from step 12.
CONFIG = PQKConfig(
    sparsity=0.7, weight_bits=4, total_steps=24, warmup_fraction=0.25, mask_update_interval=2, kd_warmup_fraction=0.1
)

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")


@pytest.fixture
def both(tmp_path: Path, child: Start) -> Both:
    """Runs a function of the rank in two processes of one group, to its end."""

    def run(function: Callable[[int], Any]) -> None:
        meeting = tmp_path / f"meeting{len(list(tmp_path.glob('meeting*')))}"

        def member(rank: int) -> None:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
            function(rank)
            dist.destroy_process_group()

        processes = [child(lambda rank=rank: member(rank)) for rank in range(2)]  # type: ignore[misc]
        for process in processes:
            process.join(60)
            process.kill()
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]

    return run


def network(batch_norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 6, 3, padding=1, bias=not batch_norm), *([nn.BatchNorm2d(6)] if batch_norm else [])]
    return nn.Sequential(*first, nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))


def prepared(batch_norm: bool, config: PQKConfig, x: Tensor) -> PreparedModel:
    model = prepare(network(batch_norm), config, example_inputs=x[:2])
    if config.float_steps == 0:
        calibrate(model, x[:2])  # else the processes' first batches would give the ranges
    return model


def train(
    problem: Problem,
    config: PQKConfig = CONFIG,
    *,
    rank: int = 0,
    size: int = 1,
    batch_norm: bool = True,
    accumulate: int = 1,
    check: bool = False,
    **wrapper: Any,
) -> nn.Module:
    """The loop of a user: batches of 32, of which each process takes its part."""
    (x, y), _ = problem
    model = prepared(batch_norm, config, x)
    objective: nn.Module = Objective(model)
    if size > 1:
        objective = DistributedDataParallel(objective, **{"find_unused_parameters": True, **wrapper})
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.1, weight_decay=1e-3), lr=0.1, momentum=0.9)
    model.train()
    for step in range(config.total_steps):
        at = step % 8 * 32
        part = slice(at + rank * 32 // size, at + (rank + 1) * 32 // size)
        pieces = list(zip(x[part].chunk(accumulate), y[part].chunk(accumulate), strict=True))
        for index, (inputs, labels) in enumerate(pieces):
            if size > 1 and index < len(pieces) - 1:
                with objective.no_sync():  # type: ignore[operator]
                    (objective(inputs, labels) / accumulate).backward()
            else:
                (objective(inputs, labels) / accumulate).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
        if check and model.pqk.quantizing:
            check_in_sync(nn.ParameterList(weights(model)))
    synchronize(model)
    return model


def weights(model: nn.Module) -> list[Tensor]:
    return [p for name, p in model.named_parameters() if "quantizers" not in name]


def digest(model: nn.Module) -> str:
    whole = hashlib.sha256()
    for value in model.state_dict().values():
        whole.update(value.numpy().tobytes())
    return whole.hexdigest()


@pytest.mark.parametrize(
    ("change", "wrapper", "accumulate"),
    [
        ({}, {}, 2),
        ({}, {"forward_sync_buffers": False, "gradient_as_bucket_view": True, "bucket_cap_mb": 0.001}, 1),
        ({"teacher_start": 0.3}, {}, 1),
    ],
    ids=str,
)
def test_both_processes_hold_the_same_bits_in_all_phases(
    tmp_path: Path, both: Both, problem: Problem, change: dict[str, Any], wrapper: dict[str, Any], accumulate: int
) -> None:
    config = PQKConfig.from_dict(CONFIG.to_dict() | change)

    def run(rank: int) -> None:
        model = train(problem, config, rank=rank, size=2, accumulate=accumulate, check=True, **wrapper)
        check_in_sync(model)
        assert model.pqk.phase == 2
        assert model.pqk.sparsity == pytest.approx(0.7, abs=0.01)
        (tmp_path / f"{rank}").write_text(digest(model))

    both(run)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()


def test_two_processes_compute_what_one_does(both: Both, problem: Problem) -> None:
    """Without batch norm, and with the ranges of a calibration, the mean of the parts is the whole."""
    config = PQKConfig.from_dict(CONFIG.to_dict() | {"warmup_fraction": 0.0})
    alone = train(problem, config, batch_norm=False)

    def run(rank: int) -> None:
        model = train(problem, config, rank=rank, size=2, batch_norm=False)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)

    both(run)


def test_warm_up_ranges_are_those_of_process_0(both: Both, problem: Problem) -> None:
    def run(rank: int) -> None:
        x, y = problem[0]
        model = prepare(network(), CONFIG, example_inputs=x[:2])
        objective = DistributedDataParallel(Objective(model), find_unused_parameters=True)
        optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.1), lr=0.1)
        scales = [quantizer.scale for quantizer in model.pqk.quantizers()]
        for step in range(CONFIG.warmup_steps + 1):
            if step == CONFIG.warmup_steps:
                mine = [scale.item() for scale in scales]
            loss = objective((1 + rank) * x[:32], y[:32])
            if step == CONFIG.warmup_steps:
                check_in_sync(nn.ParameterList(scales))
                assert ([scale.item() for scale in scales] == mine) == (rank == 0)
            loss.backward()
            optimizer.step()
            model.pqk.step()
            optimizer.zero_grad()

    both(run)


def test_ranges_of_a_quantized_first_step_are_those_of_process_0(both: Both, problem: Problem) -> None:
    (x, y), _ = problem
    config = PQKConfig.from_dict(CONFIG.to_dict() | {"warmup_fraction": 0.0})
    expected = prepare(network(), config, example_inputs=x[:2])
    calibrate(expected, x[:32])

    def run(rank: int) -> None:
        model = prepare(network(), config, example_inputs=x[:2])
        objective = DistributedDataParallel(Objective(model), find_unused_parameters=True)
        for step in range(2):  # of one optimizer step
            objective((1 + rank + 2 * step) * x[:32], y[:32]).backward()
        found = zip(model.pqk.quantizers(), expected.pqk.quantizers(), strict=True)
        assert all(torch.equal(a.scale, b.scale) and torch.equal(a.high, b.high) for a, b in found)

    both(run)


def test_what_differs_is_named_in_every_process(both: Both) -> None:
    def run(rank: int) -> None:
        model = prepare(network(), CONFIG, example_inputs=torch.zeros(2, 1, 6, 6))
        check_in_sync(model)
        mask = model.pqk.prunable_layers()[0].weight_mask
        if rank == 1:
            mask.view(-1)[0] = False
        with pytest.raises(ProcessesDifferError, match=r"weight_mask in process 1 differ from process 0"):
            check_in_sync(model)
        synchronize(model)
        check_in_sync(model)

    both(run)


def test_alone_there_is_nothing_to_compare(problem: Problem) -> None:
    model = train(problem)
    check_in_sync(model)
    with pytest.raises(TypeError, match="model: expected a prepared model"):
        Objective(nn.Linear(1, 1))


def _train_divided(
    problem: Problem, config: PQKConfig, rank: int, batch_norm: bool, optimizer_class: Any, lr: float = 0.01
) -> nn.Module:
    (x, y), _ = problem
    model = prepared(batch_norm, config, x)
    objective = shard(model)
    optimizer = optimizer_class(model.pqk.parameter_groups(lr=lr, weight_decay=1e-3))
    for step in range(config.total_steps):
        at = step % 8 * 32 + rank * 16
        objective(x[at : at + 16], y[at : at + 16]).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_divided_parameters_train_as_whole_ones(both: Both, problem: Problem, optimizer_class: Any) -> None:
    """FSDP2: parts of parameters in each process, and the same masks, phases and weights as in one process."""
    config = PQKConfig.from_dict(CONFIG.to_dict() | {"warmup_fraction": 0.0})
    (x, y), _ = problem
    alone = prepared(False, config, x)
    optimizer = optimizer_class(alone.pqk.parameter_groups(lr=0.01, weight_decay=1e-3))
    for step in range(config.total_steps):
        at = step % 8 * 32
        alone.pqk.loss(x[at : at + 32], y[at : at + 32]).backward()
        optimizer.step()
        alone.pqk.step()
        optimizer.zero_grad()

    def run(rank: int) -> None:
        model = _train_divided(problem, config, rank, False, optimizer_class)
        parts = [p for p in model.parameters() if isinstance(p, DTensor)]
        assert sum(p.to_local().numel() for p in parts) < 0.6 * sum(p.numel() for p in parts)
        check_in_sync(model)
        with gathered(model):
            check_in_sync(model)
            assert model.pqk.sparsity == pytest.approx(0.7, abs=0.01)
            masks = zip(model.pqk.layers(), alone.pqk.layers(), strict=True)
            same = sum(int((a.weight_mask == b.weight_mask).sum()) for a, b in masks)
            assert same >= 0.98 * sum(layer.weight.numel() for layer in alone.pqk.layers())
            if optimizer_class is torch.optim.SGD:  # AdamW divides by gradients near 0
                for name, value in alone.state_dict().items():
                    torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)

    both(run)


@pytest.mark.parametrize("teacher_start", [1.0, 0.3])
def test_divided_parameters_through_warm_up_and_batch_norm(
    tmp_path: Path, both: Both, problem: Problem, teacher_start: float
) -> None:
    config = PQKConfig.from_dict(CONFIG.to_dict() | {"teacher_start": teacher_start})

    def run(rank: int) -> None:
        model = _train_divided(problem, config, rank, True, torch.optim.AdamW, lr=0.02)
        synchronize(model)
        with gathered(model):
            check_in_sync(model)
            assert all(layer.weight_scale.min() > 0 for layer in model.pqk.layers())
            x, y = problem[0]
            accuracy = (model.eval()(x).argmax(1) == y).float().mean().item()
        (tmp_path / f"accuracy{rank}").write_text(str(accuracy))

    both(run)
    accuracy = float((tmp_path / "accuracy0").read_text())
    assert accuracy > 0.6
    assert accuracy == float((tmp_path / "accuracy1").read_text())


def test_what_cannot_be_divided_is_refused(both: Both) -> None:
    def run(rank: int) -> None:
        config = PQKConfig.from_dict(CONFIG.to_dict() | {"step_size": "freeze"})
        model = prepare(network(), config, example_inputs=torch.zeros(2, 1, 6, 6))
        with pytest.raises(ValueError, match="step_size='freeze'"):
            shard(model)

    both(run)
    with pytest.raises(RuntimeError, match="shard needs an initialized process group"):
        shard(prepare(network(), CONFIG, example_inputs=torch.zeros(2, 1, 6, 6)))
