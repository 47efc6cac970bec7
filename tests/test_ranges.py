"""Where the ranges of activations come from: calibration, float steps, or the first batch of a quantized training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pqk_ext.config import PQKConfig
from pqk_ext.deploy import calibrate
from pqk_ext.preparation import PreparedModel, prepare

from .networks import SmallNet, batch

QUANTIZED = PQKConfig(sparsity=0.5, total_steps=16, mask_update_interval=2, warmup_fraction=0.0)
FLOAT = PQKConfig(sparsity=0.5, total_steps=16, mask_update_interval=2, warmup_fraction=0.25)
TRACED = 0.01 * batch(0)[0][:1]  # says little of the data


def prepared(config: PQKConfig) -> PreparedModel:
    torch.manual_seed(0)
    return prepare(SmallNet(), config, example_inputs=TRACED)


def ranges(model: PreparedModel) -> list[tuple[float, float, int]]:
    return [(float(q.low), float(q.high), int(q.batches)) for q in model.pqk.quantizers()]


def statistics(model: nn.Module) -> list[Tensor]:
    return [tensor.clone() for name, tensor in model.named_buffers() if "running" in name or "num_batches" in name]


def calibrated(config: PQKConfig, *seeds: int) -> PreparedModel:
    model = prepared(config)
    calibrate(model, [batch(seed)[0] for seed in seeds])
    return model


def test_training_that_begins_quantized_takes_its_ranges_from_the_first_batch() -> None:
    model, expected = prepared(QUANTIZED), calibrated(QUANTIZED, 5)
    assert ranges(model) != ranges(expected)
    for seed in (5, 6):  # the second of a step's batches is not looked at
        model.pqk.loss(*batch(seed)).backward()
        assert ranges(model) == ranges(expected)
    assert all(torch.equal(a, b) for a, b in zip(model.pqk.step_sizes(), expected.pqk.step_sizes(), strict=True))
    assert all(module.training for module in model.modules())


def test_the_first_batch_enters_running_statistics_once() -> None:
    model, other = prepared(QUANTIZED), calibrated(QUANTIZED, 5)
    losses = []
    for each in (model, other):
        torch.manual_seed(3)  # of the dropout
        losses.append(each.pqk.loss(*batch(5)))
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(statistics(model), statistics(other), strict=True))


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_what_was_calibrated_stays(seeds: tuple[int, ...]) -> None:
    model = calibrated(QUANTIZED, *seeds)
    before = ranges(model)
    model.pqk.loss(*batch(5)).backward()
    assert ranges(model) == before


def test_what_was_trained_stays_when_it_is_loaded() -> None:
    source = calibrated(QUANTIZED, 1)
    model = prepared(QUANTIZED)
    model.load_state_dict(source.state_dict())
    model.pqk.loss(*batch(5)).backward()
    assert ranges(model) == ranges(source)


def test_the_first_float_batch_replaces_the_range_of_the_example() -> None:
    models = [prepared(FLOAT), prepare(SmallNet(), FLOAT, example_inputs=100 * TRACED)]
    models[1].load_state_dict({k: v for k, v in models[0].state_dict().items() if "low" not in k}, strict=False)
    for model in models:
        model.pqk.loss(*batch(5)).backward()
    assert [row[2] for row in ranges(models[0])] == [1] * len(models[0].pqk.quantizers())
    assert torch.allclose(torch.tensor(ranges(models[0])), torch.tensor(ranges(models[1])), rtol=1e-5)


def test_a_submodule_in_evaluation_mode_stays_so() -> None:
    model = prepared(QUANTIZED)
    frozen = next(m for m in model.modules() if "BatchNorm" in type(m).__name__)
    frozen.eval()
    model.pqk.loss(*batch(5)).backward()
    calibrate(model, batch(1)[0])
    assert not frozen.training
    assert model.training
    assert sum(not m.training for m in model.modules()) == sum(not m.training for m in frozen.modules())


def test_compiled_training_looks_at_the_first_batch_too() -> None:
    eager, model = prepared(QUANTIZED), prepared(QUANTIZED)
    step = torch.compile(model.pqk.loss, backend="eager")
    eager.pqk.loss(*batch(5)).backward()
    step(*batch(5)).backward()
    assert ranges(model) == ranges(eager)
