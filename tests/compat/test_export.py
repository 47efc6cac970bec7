"""torch.export: the student for further training, the integer network for deployment by other means."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor

from pqk_ext.preparation import PreparedModel

from ..networks import batch
from .stages import at


def exported(model: PreparedModel, strict: bool = False) -> torch.export.ExportedProgram:
    dynamic = ({0: torch.export.Dim("samples", min=2, max=4096)},)
    return torch.export.export(model, (batch(0)[0],), dynamic_shapes=dynamic, strict=strict)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32)


@pytest.mark.parametrize("strict", [False, True])
def test_evaluation_exports_to_the_same_bits(strict: bool) -> None:
    model = at("phase 2").eval()
    program = exported(model, strict)
    assert not [n for n in program.graph.nodes if str(n.target).startswith("pqk.")]
    for size in (2, 16, 33):
        x, _ = batch(size, size)
        assert torch.equal(bits(program.module()(x)), bits(model(x)))
    with pytest.raises(RuntimeError, match="input must not contain NaN"):
        program.module()(torch.full((2, 3, 8, 8), torch.nan))


def test_an_exported_evaluation_survives_a_file_and_needs_no_pqk_op() -> None:
    model = at("phase 1").eval()
    file = io.BytesIO()
    torch.export.save(exported(model), file)
    file.seek(0)
    x, _ = batch(9)
    assert torch.equal(torch.export.load(file).module()(x), model(x))


def test_evaluation_is_exported_as_the_parameters_are_now() -> None:
    model, other = at("phase 2").eval(), at("phase 1").eval()
    x, _ = batch(9)
    with torch.no_grad():
        model.conv1.weight.mul_(1.25)
    assert torch.equal(exported(model).module()(x), model(x))
    model.load_state_dict(other.state_dict())
    assert torch.equal(exported(model).module()(x), other(x))
    model.load_state_dict(copy.deepcopy(at("phase 2").state_dict()), assign=True)
    assert torch.equal(exported(model).module()(x), at("phase 2").eval()(x))


def test_a_copy_says_that_eval_comes_first() -> None:
    model = copy.deepcopy(at("phase 2").eval())
    with pytest.raises(RuntimeError, match=r"call model.eval\(\) before torch.export.export"):
        exported(model)
    x, _ = batch(9)
    assert torch.equal(exported(model.eval()).module()(x), model(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("stage", ["warm-up", "phase 1"])
def test_training_exports_and_trains_on(stage: str, strict: bool) -> None:
    model = at(stage)
    program = exported(model, strict).module()
    x, y = batch(4, 12)
    losses = []
    for network in (program, model):
        loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1])
    of_program = {n: p.grad for n, p in program.named_parameters() if p.grad is not None}
    of_model = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert of_model.keys() <= of_program.keys()
    torch.testing.assert_close({n: of_program[n] for n in of_model}, of_model)
    state = model.state_dict()
    moved = program.state_dict()
    assert {name for name in state if name.endswith("running_mean") and ".teacher." not in name} <= moved.keys()
    torch.testing.assert_close(moved, {name: state[name] for name in moved})
