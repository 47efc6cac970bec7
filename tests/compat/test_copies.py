"""Copies of prepared models: deepcopy, pickle, torch.save, state dicts, other processes."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

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


ANOTHER_PROCESS = """
import json, pickle, sys
with open(sys.argv[1], "rb") as file:
    model, x, batch = pickle.load(file)
logits = model.eval()(x).tolist()
loss = model.train().pqk.loss(*batch)
loss.backward()
model.pqk.step()
print(json.dumps([logits, float(loss.detach()), model.pqk.global_step]))
"""


def test_another_process_gets_a_model_that_evaluates_and_trains(tmp_path: Path) -> None:
    """Started anew, as by multiprocessing's spawn: all that it knows is in the pickle."""
    model = at("phase 2")
    x, _ = batch(1)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps((model, x, batch(STAGES["phase 2"]))))
    command = [sys.executable, "-c", ANOTHER_PROCESS, str(tmp_path / "model.pickle")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    logits, loss, step = json.loads(done.stdout)
    assert torch.equal(torch.tensor(logits), model.eval()(x))
    assert loss == float(model.train().pqk.loss(*batch(STAGES["phase 2"])).detach())
    assert step == STAGES["phase 2"] + 1
