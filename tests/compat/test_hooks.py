"""Activation checkpointing, hooks on submodules, parametrizations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from pqk_ext.config import PQKConfig
from pqk_ext.nn import Role
from pqk_ext.preparation import prepare

from ..networks import SmallNet, batch
from .stages import CONFIG, at, gradients


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("role", Role)
def test_activation_checkpointing_gives_the_same_gradients(role: Role, reentrant: bool) -> None:
    plain, checkpointed = at("phase 2"), at("phase 2")
    for model in (plain, checkpointed):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0  # recomputation moves running statistics twice, as with any network
    x, y = batch(2)
    x.requires_grad_(reentrant)
    nn.functional.cross_entropy(plain(x, role), y).backward()
    logits = checkpoint(checkpointed, x, role, use_reentrant=reentrant)
    nn.functional.cross_entropy(logits, y).backward()
    torch.testing.assert_close(gradients(checkpointed), gradients(plain), rtol=0, atol=0)


def test_forward_hooks_see_features_by_name_and_may_replace_them() -> None:
    model, reference = at("phase 1"), at("phase 1")
    seen: dict[str, Tensor] = {}
    names = ["conv1", "bn1", "bn2", "fc", "pqk_quantizers.q1"]
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name in names
    ]
    x, y = batch(2)
    model.pqk.loss(x, y).backward()
    assert list(seen) == ["conv1", "bn1", "pqk_quantizers.q1", "bn2", "fc"]
    assert seen["bn1"].shape == (16, 8, 8, 8)
    assert len(seen["pqk_quantizers.q1"].unique()) <= 256
    reference.pqk.loss(x, y).backward()
    torch.testing.assert_close(gradients(model), gradients(reference), rtol=1e-4, atol=1e-5)
    for handle in handles:
        handle.remove()
    model.fc.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    assert not model(x).any()


def test_backward_hooks_see_gradients() -> None:
    model = at("phase 1")
    seen: list[Tensor] = []
    model.bn2.register_full_backward_hook(lambda _, __, grad_output: seen.append(grad_output[0]))
    model.pqk.loss(*batch(2)).backward()
    (gradient,) = seen
    assert gradient.shape == (16, 8, 8, 8)
    assert gradient.any()


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_parametrized_weights_are_refused_by_name(wrap: object) -> None:
    network = SmallNet()
    wrap(network.conv2)
    with pytest.raises(ValueError, match="model: conv2 computes its weight by a parametrization"):
        prepare(network, CONFIG, example_inputs=batch(0)[0])


def test_a_prepared_model_inside_another_module_compiles_and_trains() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = prepare(SmallNet(), PQKConfig(sparsity=0.5), example_inputs=batch(0)[0])
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.scale

    model = Around()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, y = batch(2)
    nn.functional.cross_entropy(compiled(x), y).backward()
    assert model.scale.grad is not None
    assert model.inner.conv1.weight.grad.any()
    model.eval()
    assert torch.equal(compiled(x), model.inner(x) * model.scale)
