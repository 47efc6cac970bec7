"""Copies of prepared models: deepcopy, pickle, torch.save, state dicts, other processes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from pqk_ext.preparation import PreparedModel

from ..networks import batch
from .stages import CONFIG, STAGES, assert_same_state, at, optimizer_of, train


def saved_and_loaded(model: PreparedModel) -> PreparedModel:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: PreparedModel = torch.load(file, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[PreparedModel], PreparedModel]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
    "a copy of a copy": lambda model: copy.deepcopy(pickle.loads(pickle.dumps(model))),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_copy_trains_on_like_the_original_and_apart_from_it(stage: str, way: str) -> None:
    model = at(stage)
    model.compile(backend="aot_eager")  # is not copied: a copy runs eagerly until it is compiled itself
    copied = COPIES[way](model)
    model._compiled_run = None
    assert copied._compiled_run is None
    assert copied.pqk._model is copied
    assert copied._integer.model is copied
    assert copied._integer.handle != model._integer.handle
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in model.parameters()}
    optimizers = optimizer_of(model), optimizer_of(copied)
    for step in range(STAGES[stage], STAGES[stage] + 3):
        losses = [train(m, o, step) for m, o in zip((model, copied), optimizers, strict=True)]
        assert torch.equal(*losses)
    assert_same_state(copied, model, rtol=0, atol=0)
    x, _ = batch(1)
    assert torch.equal(copied.eval()(x), model.eval()(x))
    with torch.no_grad():
        copied.conv2.weight.mul_(1.5)
    assert not torch.equal(copied(x), model(x))


def test_a_copy_of_an_evaluated_model_evaluates() -> None:
    model = at("phase 2").eval()
    x, _ = batch(1)
    expected = model(x)
    for copied in COPIES.values():
        assert torch.equal(copied(model)(x), expected)


@pytest.mark.parametrize("stage", STAGES)
def test_state_dicts_load_with_weights_only(stage: str) -> None:
    model = at(stage)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = at("warm-up")
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.pqk.global_step == STAGES[stage]
    optimizers = optimizer_of(model), optimizer_of(fresh)
    for step in range(STAGES[stage], CONFIG.total_steps):
        losses = [train(m, o, step) for m, o in zip((model, fresh), optimizers, strict=True)]
        assert torch.equal(*losses)
    assert_same_state(fresh, model, rtol=0, atol=0)


def _in_another_process(model: PreparedModel, x: Tensor, answers: multiprocessing.SimpleQueue) -> None:
    logits = model.eval()(x).tolist()
    model.train()
    loss = train(model, optimizer_of(model), STAGES["phase 2"])
    answers.put((logits, float(loss), model.pqk.global_step))


def test_a_spawned_process_gets_a_model_that_evaluates_and_trains() -> None:
    model = at("phase 2")
    x, _ = batch(1)
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_in_another_process, args=(copy.deepcopy(model), x, answers))
    process.start()
    logits, loss, step = answers.get()
    process.join()
    assert process.exitcode == 0
    assert torch.equal(torch.tensor(logits), model.eval()(x))
    assert loss == float(model.train().pqk.loss(*batch(STAGES["phase 2"])).detach())
    assert step == STAGES["phase 2"] + 1
