"""State dicts: from prepared to prepared model, plain float weights in, plain float weights out."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from pqk_ext.config import PQKConfig
from pqk_ext.deploy.exporter import calibrate
from pqk_ext.nn import Role
from pqk_ext.preparation import PreparedModel, prepare

from ..networks import SmallNet, batch, enliven

CONFIG = PQKConfig(sparsity=0.6, total_steps=16, mask_update_interval=2, warmup_fraction=0.4)
X = batch(7)[0]


def fresh(seed: int, config: PQKConfig = CONFIG) -> PreparedModel:
    torch.manual_seed(seed)
    return prepare(SmallNet(), config, example_inputs=torch.randn(4, 3, 8, 8))


def train(model: PreparedModel, start: int, stop: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = optimizer or torch.optim.SGD(model.pqk.parameter_groups(0.05), momentum=0.9)
    for step in range(start, stop):
        model.pqk.loss(*batch(step)).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("steps", [2, 6, 12], ids=["warm-up", "phase-1", "phase-2"])
@pytest.mark.parametrize("evaluating", [False, True])
def test_a_fresh_model_of_another_init_takes_everything_over(steps: int, evaluating: bool) -> None:
    model = fresh(0)
    train(model, 0, steps)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = fresh(1).train(not evaluating)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert other.pqk.global_step == steps
    assert other.pqk.phase == model.pqk.phase
    assert other.pqk.sparsity == model.pqk.sparsity
    if evaluating:
        model.eval()  # which in the warm-up sets the step sizes from the weights
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    if not evaluating:
        other.eval()
    assert torch.equal(other(X), model.eval()(X))


def test_inside_other_modules() -> None:
    model = fresh(0)
    train(model, 0, 12)
    outer, other = nn.Sequential(model), nn.Sequential(fresh(1))
    other.load_state_dict(outer.state_dict())
    assert torch.equal(other.eval()(X), outer.eval()(X))


def test_frozen_step_sizes_follow_the_phase_of_the_state() -> None:
    config = PQKConfig(**{**CONFIG.to_dict(), "step_size": "freeze"})
    early, late = fresh(0, config), fresh(0, config)
    train(late, 0, 12)
    state = copy.deepcopy(late.state_dict())
    assert not late.conv1.weight_scale.requires_grad
    late.load_state_dict(early.state_dict())
    assert late.conv1.weight_scale.requires_grad
    early.load_state_dict(state)
    assert not early.conv1.weight_scale.requires_grad


def test_a_state_of_other_bits_is_refused() -> None:
    state = fresh(0).state_dict()
    four = fresh(0, PQKConfig(**{**CONFIG.to_dict(), "weight_bits": 4, "act_bits": 5}))
    with pytest.raises(RuntimeError, match="conv2: codes up to 7 here, up to 127 in the state dict") as error:
        four.load_state_dict(state)
    assert "activations of x: codes up to 31 here, up to 255" in str(error.value)
    with pytest.raises(RuntimeError, match=r"0\.conv2: codes up to 7"):
        nn.Sequential(four).load_state_dict({f"0.{name}": value for name, value in state.items()})


def test_wrong_states_name_what_is_wrong() -> None:
    model = fresh(0)
    with pytest.raises(RuntimeError, match=r"no pqk\.step_count.*load_float_weights"):
        model.load_state_dict(SmallNet().state_dict())
    state = model.state_dict()
    del state["conv1.weight_mask"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "conv1.weight_mask"') as error:
        model.load_state_dict(state)
    assert "load_float_weights" not in str(error.value)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "extra"'):
        model.load_state_dict({**model.state_dict(), "extra": torch.zeros(1)})


# --- plain float weights ------------------------------------------------------------------------------------------


def trained_float() -> nn.Module:
    torch.manual_seed(3)
    return enliven(SmallNet(), batch(5, 64)[0])


def test_float_weights_give_what_preparing_them_would() -> None:
    """For the same data the only differences are where the weights came from, and that a calibration counts."""
    source, x = trained_float(), batch(5, 64)[0]
    model = fresh(0)
    model.load_float_weights(source.state_dict(), calibration=x)
    torch.manual_seed(0)
    expected = prepare(source, CONFIG, example_inputs=x)
    for name, tensor in expected.state_dict().items():
        wanted = torch.ones_like(tensor) if name.endswith(".batches") else tensor
        assert torch.equal(model.state_dict()[name], wanted), name
    assert model.training
    assert torch.equal(model.eval()(X), expected.eval()(X))
    assert torch.equal(model.run(X, Role.TEACHER), source.eval()(X))


def test_float_weights_in_mid_training_keep_masks_and_step() -> None:
    source, model = trained_float(), fresh(0)
    train(model, 0, 6)
    masks = [layer.weight_mask.clone() for layer in model.pqk.layers()]
    old_scale = model.conv2.weight_scale.detach().clone()
    model.load_float_weights(source.state_dict(), calibration=batch(5)[0])
    assert model.pqk.global_step == 6
    assert not torch.equal(model.conv2.weight_scale, old_scale)
    for layer, mask in zip(model.pqk.layers(), masks, strict=True):
        assert torch.equal(layer.weight_mask, mask)
        scale = (layer.weight.detach() * mask).abs().flatten(1).amax(1) / layer.weight_quant_max
        assert bool((layer.weight_scale.detach() <= 1.01 * scale).all())
    # Unimportant weights are held at their new values, not at those of before.
    train(model, 6, 7)
    assert torch.equal(model.conv2.weight.detach()[~masks[1]], source.conv2.weight.detach()[~masks[1]])


def test_wrong_float_weights_change_nothing() -> None:
    model, state = fresh(0), SmallNet().state_dict()
    before = copy.deepcopy(model.state_dict())
    wrong = [
        ({k: v for k, v in state.items() if k != "fc.bias"}, r"Missing key\(s\): fc\.bias\."),
        ({**state, "head.weight": torch.zeros(1)}, r"Unexpected key\(s\): head\.weight\."),
        ({f"module.{k}": v for k, v in state.items()}, "All begin with 'module.'"),
        ({**state, "fc.weight": torch.zeros(5, 3)}, r"fc\.weight: expected shape \(5, 128\), got \(5, 3\)"),
        (model.state_dict(), "load_state_dict takes it"),
    ]
    for bad, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            model.load_float_weights(bad, calibration=X)
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_some_float_weights() -> None:
    model, state = fresh(0), trained_float().state_dict()
    old = model.fc.weight.detach().clone()
    backbone = {name: value for name, value in state.items() if not name.startswith("fc")}
    model.load_float_weights({**backbone, "other": torch.zeros(1)}, calibration=X, strict=False)
    assert torch.equal(model.fc.weight, old)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


def compare(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
        assert state[name].dtype == tensor.dtype


def test_float_state_goes_back_into_the_original() -> None:
    source = trained_float()
    model = prepare(source, CONFIG, example_inputs=X)
    compare(model.float_state_dict(), source.state_dict())
    train(model, 0, 12)
    plain = SmallNet()
    plain.load_state_dict(model.float_state_dict(pruned=False), strict=True)
    assert torch.equal(plain.eval()(X), model.eval().run(X, Role.FLOAT))
    pruned = model.float_state_dict()
    assert torch.equal(pruned["conv2.weight"] != 0, model.conv2.weight_mask)
    assert torch.equal(pruned["conv2.weight"], model.conv2.weight.detach() * model.conv2.weight_mask)
    # The pruned float network is what the integers approximate.
    plain.load_state_dict(pruned, strict=True)
    calibrate(model, X)
    with torch.no_grad():
        error = (plain.eval()(X) - model(X)).abs().max() / model(X).abs().max()
    assert float(error) < 0.1


def test_a_network_with_tensors_of_its_own_and_names_that_clash() -> None:
    class Own(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("version", torch.tensor(3))
            self.unused = nn.Parameter(torch.ones(2))

    source = Own()
    model = prepare(source, CONFIG, example_inputs=X)
    compare(model.float_state_dict(), source.state_dict())

    clash = nn.Sequential()
    clash.add_module("plan", SmallNet())
    with pytest.raises(ValueError, match="submodule 'plan', a name that prepared models use"):
        prepare(clash, CONFIG, example_inputs=X)
