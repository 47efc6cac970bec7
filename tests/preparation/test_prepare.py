"""What prepare traces, fuses and refuses."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pqk_ext
from pqk_ext.config import PQKConfig
from pqk_ext.preparation import UnsupportedOperator, prepare

from ..networks import SmallNet, batch, enliven

CONFIG = PQKConfig(total_steps=100)


def ops_of(model: nn.Module) -> list[str]:
    prepared = prepare(model, CONFIG, example_inputs=torch.randn(2, 3, 8, 8))
    return [block.op for block in prepared.plan]


class Net(nn.Module):
    """Layers given by name and a forward given as a function of the module."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def conv(inputs: int = 3, outputs: int = 4, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def test_conv_norm_add_relu_are_one_block() -> None:
    prepared = prepare(SmallNet(), CONFIG, example_inputs=batch(0)[0])
    assert [(block.op, block.inputs, block.activation) for block in prepared.plan] == [
        ("input", (), None),
        ("conv2d", (0,), "relu"),
        ("conv2d", (1, 1), "relu"),
        ("max_pool2d", (2,), None),
        ("flatten", (3,), None),
        ("dropout", (4,), None),
        ("linear", (5,), None),
    ]


def test_a_value_with_two_readers_is_not_fused_away() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        c = m.a(x)
        return m.head(torch.flatten(F.relu(c) + c, 1))

    net = Net(forward, a=conv(), head=nn.Linear(256, 2))
    assert ops_of(net) == ["input", "conv2d", "affine", "add", "flatten", "linear"]


def test_concatenation_for_a_convolution_gets_one_scale() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(torch.flatten(m.c(torch.cat([m.a(x), m.b(x)], 1)), 1))

    net = Net(forward, a=conv(), b=conv(), c=conv(8), head=nn.Linear(256, 2))
    assert ops_of(net) == ["input", "conv2d", "conv2d", "concat", "affine", "conv2d", "flatten", "linear"]


def test_zero_padding_goes_into_the_convolution() -> None:
    net = Net(
        lambda m, x: m.head(torch.flatten(m.a(m.pad(x)), 1)),
        pad=nn.ZeroPad2d((1, 2, 0, 3)),
        a=nn.Conv2d(3, 4, 3, padding=1),
        head=nn.Linear(4 * 11 * 11, 2),
    )
    prepared = prepare(net, CONFIG, example_inputs=torch.randn(2, 3, 8, 8))
    assert [block.op for block in prepared.plan] == ["input", "conv2d", "flatten", "linear"]
    assert prepared.plan[1].attributes["padding"] == [1, 2, 4, 3]


def test_names_parameters_and_float_weights_are_kept() -> None:
    model = SmallNet()
    prepared = prepare(model, CONFIG, example_inputs=batch(0)[0])
    names = dict(prepared.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(names[name], parameter), name
        assert names[name] is not parameter
    assert not prepared.load_state_dict(model.state_dict(), strict=False).unexpected_keys


def test_the_original_model_is_untouched() -> None:
    model = SmallNet()
    before = copy.deepcopy(model.state_dict())
    prepare(model, CONFIG, example_inputs=batch(0)[0])
    assert model.training
    assert type(model.conv1) is nn.Conv2d
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_float_role_computes_the_original_network() -> None:
    x, _ = batch(0)
    model = enliven(SmallNet(), x)
    prepared = prepare(model, CONFIG, example_inputs=x).eval()
    with torch.no_grad():
        torch.testing.assert_close(prepared.run(x, pqk_ext.nn.Role.FLOAT), model(x))


def test_evaluation_is_close_to_the_float_network() -> None:
    x, _ = batch(0, 64)
    model = enliven(SmallNet(), x)
    prepared = prepare(model, CONFIG, example_inputs=x).eval()
    reference = model(x).detach()
    assert (prepared(x) - reference).abs().max() < 0.1 * reference.abs().max()


def test_evaluation_equals_fake_quantization_up_to_float_rounding() -> None:
    x, _ = batch(0, 64)
    prepared = prepare(enliven(SmallNet(), x), CONFIG, example_inputs=x).eval()
    with torch.no_grad():
        simulated = prepared.run(x, pqk_ext.nn.Role.STUDENT)
    # Codes on a rounding boundary may fall to the other side; a step of one code moves a logit by about a scale.
    assert (prepared(x) - simulated).abs().mean() < 0.01 * simulated.abs().max()


def test_evaluation_follows_changed_weights() -> None:
    x, _ = batch(0)
    prepared = prepare(enliven(SmallNet(), x), CONFIG, example_inputs=x).eval()
    before = prepared(x)
    with torch.no_grad():
        prepared.fc.weight.mul_(0.5)
    assert not torch.equal(prepared(x), before)


def test_deepcopy_and_pickle() -> None:
    x, _ = batch(0)
    prepared = prepare(enliven(SmallNet(), x), CONFIG, example_inputs=x).eval()
    for again in (pickle.loads(pickle.dumps(prepared)), copy.deepcopy(prepared)):
        assert torch.equal(again(x), prepared(x))
        assert again.pqk._model is again


def test_exclude_keeps_a_layer_dense() -> None:
    prepared = prepare(SmallNet(), CONFIG, example_inputs=batch(0)[0], exclude=["conv1"])
    assert not prepared.conv1.prunable
    assert prepared.conv2.prunable


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Net(lambda m, x: m.a(x) if x.sum() > 0 else x, a=conv()), "cannot be traced.*control flow"),
        (Net(lambda m, x: m.a(x) * 2.0, a=conv()), "node 'mul'.*operator mul is not supported"),
        (Net(lambda m, x: m.a(x), a=conv(padding_mode="reflect")), "node 'a'.*padding_mode must be 'zeros'"),
        (Net(lambda m, x: m.b(m.a(x)), a=conv(), b=nn.InstanceNorm2d(4)), "InstanceNorm2d are not supported"),
        (Net(lambda m, x: m.a(x).mean(1), a=conv()), "mean is supported over the two image dimensions"),
        (Net(lambda m, x: torch.relu(x)), "no convolution or linear layer"),
        (Net(lambda m, x: (m.a(x), x), a=conv()), "one output tensor is expected, got tuple"),
    ],
    ids=["branch", "mul", "padding_mode", "instance_norm", "mean", "empty", "tuple"],
)
def test_what_the_engine_lacks_is_named(net: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedOperator, match=message):
        prepare(net, CONFIG, example_inputs=torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            Net(lambda m, x: m.a(x), a=nn.MaxPool2d(2)),
            "node 'a'.*MaxPool2d reads a 4-d tensor with its batch, got a 3-d",
        ),
        (Net(lambda m, x: nn.functional.max_pool2d(x, 2)), "max_pool2d reads a 4-d tensor with its batch, got a 3-d"),
        (Net(lambda m, x: m.a(x), a=nn.Linear(8, 2)), r"a linear layer reads \(N, features\), got a 3-d tensor"),
        (Net(lambda m, x: m.a(x), a=nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular")), "padding_mode must be"),
        (Net(lambda m, x: m.a(x).mean(1), a=nn.Conv1d(3, 4, 3)), "length of a sequence, got dim=1"),
        (Net(lambda m, x: m.a(x).unsqueeze(2), a=nn.Conv1d(3, 4, 3)), "operator unsqueeze is not supported"),
        (Net(lambda m, x: m.a(x).transpose(1, 2), a=nn.Conv1d(3, 4, 3)), "operator transpose is not supported"),
        (Net(lambda m, x: m.a(x)[:, :, ::2][0], a=nn.Conv1d(3, 4, 3)), "only slices along channels and positions"),
    ],
)
def test_what_the_engine_lacks_for_sequences_is_named(net: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedOperator, match=message):
        prepare(net, CONFIG, example_inputs=torch.randn(2, 3, 8))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"example_inputs": torch.zeros(2, 3, 8, 8, dtype=torch.float64)},
            TypeError,
            "example_inputs must be a float32",
        ),
        ({"example_inputs": [1.0]}, TypeError, "example_inputs must be a float32 tensor, got list"),
        ({"example_inputs": torch.zeros(0, 3, 8, 8)}, ValueError, "at least one sample"),
        ({"config": {"sparsity": 0.5}}, TypeError, "config must be a PQKConfig, got dict"),
        ({"exclude": ["conv9"]}, ValueError, r"exclude: \['conv9'\] are not layers"),
        ({"example_inputs": torch.full((2, 3, 8, 8), torch.nan)}, ValueError, "finite"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"config": CONFIG, "example_inputs": batch(0)[0], **change}
    with pytest.raises(error, match=message):
        prepare(SmallNet(), **arguments)
