"""Every overload of the namespace ``pqk``, those that only backward passes call included, through ``opcheck``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pqk_ext import ops
from pqk_ext.ops._spec import SPECS

from ..compat.stages import at
from ..networks import batch

# Answers about shapes or the process: no tensor goes in or out, so nothing is there to trace.
WITHOUT_TENSORS = {"pqk::isa_in_use", "pqk::masked_conv2d_skips"}

TRAINABLE = {"fake_quantize", "masked_conv2d", "masked_linear", "masked_weight", "norm_activation", "soft_histogram"}

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


class Recorder(TorchDispatchMode):
    """Keeps the arguments of every ``pqk`` operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "pqk":
            self.calls.append(tree_map(own_copy, (function, args, kwargs)))
        return function(*args, **kwargs)


def own_copy(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone()


def with_gradients(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], learns: int) -> None:
    """Runs forward and, if one of the first ``learns`` floating arguments takes part, backward."""
    leaves = []
    for arg in args:
        is_leaf = isinstance(arg, Tensor) and arg.is_floating_point() and learns > 0
        learns -= is_leaf
        leaves.append(arg.detach().clone().requires_grad_() if is_leaf else arg)
    output = function(*leaves, **kwargs)
    first = output[0] if isinstance(output, tuple) else output
    assert first.requires_grad == any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
    if first.requires_grad:
        first.backward(torch.ones_like(first))


def uses() -> Iterator[Callable[[], None]]:
    """What makes every operator run."""
    for spec in SPECS.values():
        for args, kwargs in itertools.islice(spec.samples(), 3):
            for learns in (0, 1, 9) if spec.name in TRAINABLE else (0,):
                yield lambda f=spec.function, a=args, k=kwargs, n=learns: with_gradients(f, a, k, n)
    x = torch.randn(2, 4, 6, 6)
    parameters = torch.tensor([0.1]), torch.zeros(1, dtype=torch.int32)
    yield lambda: ops.fake_quantize(x, *parameters, quant_min=0, quant_max=255, out=torch.empty_like(x))
    weight = torch.randn(8, 4, 3, 3)
    arguments = (x, weight, weight > 0.5, None, 1, 1, 1, 1, "sparse")
    yield lambda: with_gradients(ops.masked_conv2d, arguments, {}, 2)
    flat = (torch.randn(5, 12), torch.randn(7, 12), torch.randn(7, 12) > 0.5, None, "sparse")
    yield lambda: with_gradients(ops.masked_linear, flat, {}, 2)
    model = at("warm-up")
    yield lambda: model.pqk_quantizers["q1"].observe(x)
    evaluation, state = model._integer, [*model.parameters(), *model.buffers()]
    yield lambda: torch.ops.pqk.integer_evaluation(batch(1)[0], [t.detach() for t in state], evaluation.handle)
    model.prevents_collection = evaluation  # the operator finds what lives


@pytest.fixture(scope="module")
def calls() -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = {}
    for use in uses():
        with Recorder() as recorder:
            use()
        for call in recorder.calls:
            found.setdefault(call[0]._name, []).append(call)
    return found


def all_names() -> list[str]:
    return sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("pqk::"))


def test_every_operator_is_met(calls: dict[str, list[Call]]) -> None:
    assert set(all_names()) - WITHOUT_TENSORS == calls.keys() - WITHOUT_TENSORS


@pytest.mark.parametrize("name", sorted(set(all_names()) - WITHOUT_TENSORS))
def test_operator(name: str, calls: dict[str, list[Call]]) -> None:
    samples = calls[name]
    for overload, args, kwargs in samples[:: max(1, len(samples) // 3)]:
        torch.library.opcheck(overload, args, kwargs)
