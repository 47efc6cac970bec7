"""torch.func and forward-mode differentiation of the ops and of prepared models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from pqk_ext import ops
from pqk_ext.nn import Role
from pqk_ext.preparation import PreparedModel

from ..networks import batch
from .stages import at

X, Y = batch(3, 6)


def loss_of(model: PreparedModel, role: Role = Role.STUDENT) -> Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]:
    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (x, role)), y)

    return loss


def parameters_of(model: PreparedModel) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def eager_gradients(model: PreparedModel, x: Tensor, y: Tensor, role: Role = Role.STUDENT) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(F.cross_entropy(model(x, role), y), parameters, allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for name, p, g in zip(names, parameters, found, strict=True)}


@pytest.mark.parametrize("role", Role)
def test_grad_of_functional_call_is_that_of_backward(role: Role) -> None:
    model = at("phase 2").eval()
    actual = grad(loss_of(model, role))(parameters_of(model), X, Y)
    torch.testing.assert_close(actual, eager_gradients(model, X, Y, role))


def test_grad_of_the_whole_loss() -> None:
    model, reference = at("phase 2"), at("phase 2")
    for module in (*model.modules(), *reference.modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # torch.func refuses to move running statistics
    reference.pqk.loss(X, Y).backward()

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return self.model.pqk.loss(X, Y)

    state = {f"model.{n}": t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}
    trainable = {n: state.pop(n) for n in [f"model.{n}" for n, _ in model.named_parameters()]}
    actual = grad(lambda p: functional_call(Loss(), {**state, **p}))(trainable)
    for name, parameter in reference.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(actual[f"model.{name}"], expected)


def test_gradients_of_single_samples() -> None:
    model = at("phase 2").eval()  # batch norm by running statistics: else samples are not apart
    loss = loss_of(model)
    actual = vmap(grad(lambda p, x, y: loss(p, x[None], y[None])), in_dims=(None, 0, 0))(parameters_of(model), X, Y)
    for i in range(len(X)):
        expected = eager_gradients(model, X[i : i + 1], Y[i : i + 1])
        torch.testing.assert_close({name: g[i] for name, g in actual.items()}, expected, rtol=1e-4, atol=1e-5)


def test_an_ensemble_of_parameters() -> None:
    model = at("phase 2").eval()
    parameters = parameters_of(model)
    stacked = {name: torch.stack([p, 1.1 * p]) for name, p in parameters.items()}
    actual = vmap(lambda p: functional_call(model, p, (X, Role.STUDENT)))(stacked)
    for i in range(2):
        member = {name: p[i] for name, p in stacked.items()}
        torch.testing.assert_close(actual[i], functional_call(model, member, (X, Role.STUDENT)))


def test_forward_and_reverse_mode_agree() -> None:
    model = at("phase 2").eval()

    def logits(x: Tensor) -> Tensor:
        return functional_call(model, parameters_of(model), (x, Role.STUDENT))

    tangent, cotangent = torch.randn(X.shape), torch.randn(len(X), 5)
    output, forward = jvp(logits, (X,), (tangent,))
    torch.testing.assert_close(output, model(X, Role.STUDENT).detach())
    _, pull = vjp(logits, X)
    torch.testing.assert_close((forward * cotangent).sum(), (pull(cotangent)[0] * tangent).sum(), rtol=1e-3, atol=1e-3)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.unpack_dual(model(forward_ad.make_dual(X, tangent), Role.STUDENT))
    torch.testing.assert_close(dual.tangent, forward)


def test_evaluation_of_other_parameters_and_its_refusal_to_be_differentiated() -> None:
    model = at("phase 2").eval()
    parameters = parameters_of(model)
    for factor in (1.0, 1.3, 1.7):
        changed = {**parameters, "conv2.weight": factor * parameters["conv2.weight"]}
        called = functional_call(model, changed, (X,))
        del changed
        other = at("phase 2").eval()
        with torch.no_grad():
            other.conv2.weight.mul_(factor)
        assert torch.equal(called, other(X))
    with pytest.raises(RuntimeError, match=r"which function transforms cannot follow; .* model\(x, Role.STUDENT\)"):
        grad(lambda x: model(x).sum())(X)


def quantizer(input: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return ops.fake_quantize(
        input, scale, zero_point, quant_min=-7, quant_max=7, axis=0, mask=input.detach() > -0.9, grad_scale=0.3
    )


def test_the_quantizer_has_the_same_bits_and_derivatives_under_transforms() -> None:
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(4, 50, generator=generator)
    input[0, :3] = torch.tensor([torch.nan, torch.inf, -0.0])
    scale, zero_point = torch.rand(4, generator=generator) * 0.2 + 0.02, torch.tensor([0.0, 1.0, -2.0, 3.4])
    weight = torch.randn(input.shape, generator=generator)
    leaves = [t.clone().requires_grad_() for t in (input, scale, zero_point)]
    output = quantizer(*leaves)
    expected = torch.autograd.grad(output, leaves, weight)
    same, pull = vjp(quantizer, input, scale, zero_point)
    torch.testing.assert_close(same, output.detach(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(pull(weight), expected)
    tangents = tuple(torch.randn(t.shape, generator=generator) for t in (input, scale, zero_point))
    _, forward = jvp(quantizer, (input, scale, zero_point), tangents)
    both = sum((g * t).double().sum() for g, t in zip(expected, tangents, strict=True))
    torch.testing.assert_close((forward * weight).double().nansum(), both)


MASK = torch.rand(3, 2, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5
SCALE = torch.tensor([0.31, 0.52])
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "masked_conv2d": (lambda w: ops.masked_conv2d(torch.ones(1, 2, 4, 4), w, MASK, None, 2, 1).tanh(), (3, 2, 3, 3)),
    "masked_linear": (lambda w: ops.masked_linear(torch.ones(2, 4), w, MASK.flatten()[:12].view(3, 4)).tanh(), (3, 4)),
    "masked_weight": (lambda w: ops.masked_weight(w, MASK).tanh(), (3, 2, 3, 3)),
    "soft_histogram": (
        lambda w: ops.soft_histogram(w, torch.tensor([0.31, 0.52]), quant_max=3).float().sqrt(),
        (2, 40),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_trainable_ops_transform(name: str) -> None:
    function, shape = FUNCTIONS[name]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.functional.jacobian(function, weight)
    torch.testing.assert_close(jacrev(function)(weight), expected)
    torch.testing.assert_close(jacfwd(function)(weight), expected)
    assert torch.isfinite(hessian(lambda w: function(w).sum())(weight)).all()


def test_differentiating_twice_in_eager_mode_is_refused_and_by_transforms_is_right() -> None:
    input = torch.randn(5, generator=torch.Generator().manual_seed(1))
    scale, zero_point = torch.tensor([0.1]), torch.zeros(1, dtype=torch.int32)

    def cube(x: Tensor, s: Tensor = scale) -> Tensor:
        return (ops.fake_quantize(x, s, zero_point, quant_min=-127, quant_max=127) ** 3).sum()

    values = ops.fake_quantize(input, scale, zero_point, quant_min=-127, quant_max=127)
    torch.testing.assert_close(hessian(cube)(input), torch.diag(6 * values))
    for learned in (False, True):
        leaf, own = input.clone().requires_grad_(), scale.clone().requires_grad_(learned)
        (first,) = torch.autograd.grad(cube(leaf, own), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()
