"""Forward passes that look inside a prepared model, and leave it as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pqk_ext.nn import ActivationQuantizer, PQKLayer, Role
from pqk_ext.preparation import Block, PreparedModel

__all__ = ["Step", "important_weights", "logits", "named_layers", "quantized_weights", "undisturbed", "walk"]


class Step(NamedTuple):
    """What one block of the plan computed.

    Attributes:
        block: the block.
        value: its value before its quantizer.
        output: what later blocks read: ``value`` again where no quantizer acts.
    """

    block: Block
    value: Tensor
    output: Tensor


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within it every module is in evaluation mode, and gradients are off; afterwards all is as before.

    Running statistics do not move, dropout passes everything, and the states of the random generators are put back.
    The flags are set one by one: ``model.eval()`` of a prepared model would do more.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)), torch.no_grad():
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def walk(
    model: PreparedModel,
    input: Tensor,
    role: Role,
    *,
    weights: Mapping[str, Tensor] | None = None,
    quantize: Container[str] | None = None,
) -> Iterator[Step]:
    """Computes the blocks of the plan one by one; use it inside :func:`undisturbed`.

    With ``Role.FLOAT`` any mixture of float and quantized parts can be had: :func:`quantized_weights` of some layers as
    ``weights``, and the names of some quantizers as ``quantize``. Values are dropped after their last use.

    Args:
        model: a prepared model.
        input: a batch.
        role: which weights, batch norms and head.
        weights: other weights, by the layer's path; for ``Role.FLOAT``, in which a layer uses its weight as it is.
        quantize: keys of the quantizers that act; None: all of the student, none of other roles.

    Yields:
        A :class:`Step` a block; the last one's ``output`` are the logits.

    Raises:
        KeyError: ``weights`` names what is no layer of the model.
    """
    replaced = dict(weights or {})
    unknown = sorted(replaced.keys() - {block.module for block in model.plan if block.op in _WEIGHTED})
    if unknown:
        raise KeyError(f"weights: {unknown} are not layers of the model")
    last_use = {source: number for number, block in enumerate(model.plan) for source in block.inputs}
    values: dict[int, Tensor] = {}
    for number, block in enumerate(model.plan):
        inputs = [values[source] for source in block.inputs]
        weight = replaced.get(block.module) if block.module is not None else None
        if block.op == "input":
            value = input
        elif weight is None:
            value = model.compute(block, inputs, role)
        else:
            parameter = {f"model.{block.module}.weight": weight}
            value = functional_call(_OneBlock(model), parameter, (block, inputs, role))
        output = value
        if block.quantizer is not None and (role is Role.STUDENT if quantize is None else block.quantizer in quantize):
            quantizer = model.pqk_quantizers[block.quantizer]
            assert isinstance(quantizer, ActivationQuantizer)
            output = quantizer(value)
        values[number] = output
        for source in {*block.inputs}:
            if last_use[source] == number:
                del values[source]
        yield Step(block, value, output)


_WEIGHTED = ("conv2d", "linear")


class _OneBlock(nn.Module):
    """A block as a module, so that ``functional_call`` can give it another weight."""

    def __init__(self, model: PreparedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, block: Block, inputs: list[Tensor], role: Role) -> Tensor:
        return self.model.compute(block, inputs, role)


def logits(
    model: PreparedModel,
    input: Tensor,
    role: Role,
    *,
    weights: Mapping[str, Tensor] | None = None,
    quantize: Container[str] | None = None,
) -> Tensor:
    """The last output of :func:`walk`, which see."""
    output = input
    for step in walk(model, input, role, weights=weights, quantize=quantize):
        output = step.output
    return output


def named_layers(model: PreparedModel) -> dict[str, PQKLayer]:
    """The convolution and linear layers by path, in the order of the plan."""
    return {str(block.module): model.layer_of(block) for block in model.plan if block.op in _WEIGHTED}


def important_weights(model: PreparedModel) -> dict[str, Tensor]:
    """For each layer its float weights, exactly 0 where pruned: what quantization is measured against."""
    return {
        name: torch.where(layer.weight_mask, layer.weight.detach(), torch.zeros_like(layer.weight))
        for name, layer in named_layers(model).items()
    }


def quantized_weights(model: PreparedModel) -> dict[str, Tensor]:
    """For each layer the student's weights: masked and fake-quantized."""
    with torch.no_grad():
        return {name: layer.student_weight().detach() for name, layer in named_layers(model).items()}
