"""The prepared network: the user's module tree with PQK layers in it, run block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.nn import ActivationQuantizer, NetworkOutput, PQKLayer, Role
from pqk_ext.nn.batch_norm import RoleBatchNorm
from pqk_ext.nn.epilogue import ACTIVATIONS, epilogue
from pqk_ext.nn.input_scale import learns_scale_alone, with_scale_gradient
from pqk_ext.nn.layout import fast_layout, strided
from pqk_ext.phases import PQKController
from pqk_ext.preparation.blocks import Block, Plan
from pqk_ext.preparation.states import check_is_prepared, float_state_dict, load_float_weights
from pqk_ext.preparation.taps import Tap

__all__ = ["PreparedModel"]

_LOOKUPS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}
_OWN_NAMES = ("float_names", "plan", "pqk", "pqk_quantizers")


class PreparedModel(nn.Module):
    """A network that trains pruned and quantized; made by :func:`pqk_ext.prepare`.

    Its modules and parameters keep the names of the original model. In training mode ``model(x)`` computes the
    student with fake quantization (or, before it begins, the float network); in evaluation mode it computes
    exactly the integers that the exported file will compute, and gives no gradients.

    Attributes:
        pqk: the controller of the phases: ``model.pqk.loss(x, y)``, ``model.pqk.step()``.
        plan: the blocks that training, evaluation and export share.
        quantizers: activation quantizers by block.
        float_names: the names in the original model's state dict.
    """

    def __init__(self, root: nn.Module, plan: Plan, quantizers: dict[str, ActivationQuantizer]) -> None:
        from pqk_ext.deploy.evaluation import IntegerEvaluation  # deploy imports this package

        super().__init__()
        # Not named_children: a module under two names keeps both.
        for name, child in root._modules.items():
            if hasattr(self, name) or name in _OWN_NAMES:
                raise ValueError(f"the model calls a submodule {name!r}, a name that prepared models use themselves")
            self.add_module(name, child)
        for name, parameter in root._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in root._buffers.items():
            self.register_buffer(name, buffer, name not in root._non_persistent_buffers_set)
        self.float_names: tuple[str, ...] = ()
        self.plan = plan
        self.pqk_quantizers = nn.ModuleDict(quantizers)
        self._integer = IntegerEvaluation(self)
        self._compiled_run: Callable[[Tensor, Role, bool, tuple[Tap, ...]], NetworkOutput] | None = None
        self.register_load_state_dict_post_hook(_after_load)  # type: ignore[no-untyped-call]

    pqk: PQKController
    _first_values: tuple[Tensor, ...] = ()

    def train(self, mode: bool = True) -> PreparedModel:
        """Switches between training and integer evaluation."""
        super().train(mode)
        self.pqk.synchronize()
        self._integer.forget()
        self._integer.remember_tensors()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PreparedModel:
        dtype = fn(torch.empty(0)).dtype
        if dtype != torch.float32:
            raise TypeError(
                f"a prepared model stays in float32, got {dtype}: train it under torch.autocast for convolutions in "
                "bfloat16 or float16"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._integer.forget()
        self._integer.remember_tensors()
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch, from the state of a prepared model; plain float weights: :meth:`load_float_weights`."""
        if strict:
            check_is_prepared(state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def float_state_dict(self, *, pruned: bool = True) -> dict[str, Tensor]:
        """The student's float weights, biases and batch norms, under the names of the original model.

        Args:
            pruned: zeros where the masks say so; False gives also the weights that only the teacher uses.
        """
        return float_state_dict(self, pruned=pruned)

    def load_float_weights(self, state_dict: Mapping[str, Tensor], *, calibration: Any, strict: bool = True) -> None:
        """Replaces weights, biases and batch norms by those of a plain model, and sets all step sizes anew.

        Masks and step count stay; the teacher's own batch norms and head start from the new values too. (The state of
        a prepared model goes through ``load_state_dict``, as usual.)

        Args:
            state_dict: of the original model, or of one with the same names and shapes.
            calibration: data to choose activation ranges from: one float32 batch, batches, or a ``DataLoader``.
            strict: whether the names must be exactly those of the original model; False skips others.

        Raises:
            RuntimeError: missing or unexpected names, or a tensor of another shape; the model is then as it was.
            ValueError: no calibration batch, or values that are not finite.
        """
        load_float_weights(self, state_dict, calibration=calibration, strict=strict)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_compiled_run": None}

    def compile(self, **options: Any) -> None:
        """Compiles training in place: from now on ``model.pqk.loss`` and ``model(x)`` run compiled.

        What is compiled is :meth:`run`, once for each role that the phases use; nothing is compiled again when masks,
        step sizes or the schedule move. Evaluation stays as it is: integers, exact.

        Args:
            options: of ``torch.compile``; ``fullgraph=True`` unless given.
        """
        self._compiled_run = torch.compile(self._run, **{"fullgraph": True, **options})

    def forward(self, input: Tensor, role: Role | None = None) -> Tensor:
        """Logits for a batch.

        Args:
            input: batch in the shape of the example inputs.
            role: what to compute, differentiably. By default the student (before quantization the float network) in
                training mode, and the integer network, without gradients, in evaluation mode.
        """
        if role is not None:
            return self.run(input, role)
        if self.training:
            return self.run(input, self.pqk.student_role)
        return self._integer(input)

    @overload
    def run(self, input: Tensor, role: Role, observe: bool = False) -> Tensor: ...
    @overload
    def run(self, input: Tensor, role: Role, observe: bool = False, *, taps: Sequence[Tap]) -> NetworkOutput: ...

    def run(
        self, input: Tensor, role: Role, observe: bool = False, *, taps: Sequence[Tap] | None = None
    ) -> Tensor | NetworkOutput:
        """One differentiable forward pass in a role.

        Args:
            input: batch in the shape of the example inputs.
            role: which weights, batch norms and head to use.
            observe: let every activation quantizer follow the range of its tensor.
            taps: values to give besides the logits (:func:`pqk_ext.preparation.find_taps`).

        Returns:
            The logits; with ``taps`` a :class:`NetworkOutput` of logits and features, in the order of the taps. The
            student's features are fake-quantized, as its next layer sees them.
        """
        if self.training:
            input = fast_layout(input)
        compiled = None if observe or self._first_values or torch.compiler.is_compiling() else self._compiled_run
        output = (compiled or self._run)(input, role, observe, tuple(taps or ()))
        return output if taps is not None else output.logits

    def _run(self, input: Tensor, role: Role, observe: bool, taps: tuple[Tap, ...]) -> NetworkOutput:
        values = list(self._first_values) if role is not Role.TEACHER else []
        early: dict[int, Tensor] = {tap.block: input for tap in taps if tap.before_activation}
        raw = input if role is Role.STUDENT and not observe and self._learns_scale_alone(input) else None
        for index, block in enumerate(self.plan[len(values) :], len(values)):
            inputs = [values[i] for i in block.inputs]
            quantizer = self._quantizer(block)
            at_once = quantizer if role is Role.STUDENT and not observe and inputs and index not in early else None
            first = raw if 0 in block.inputs else None
            if index in early and inputs and block.activation in ACTIVATIONS:
                early[index] = self.compute(block.with_(activation=None), inputs, role, None, first)
                value = ACTIVATIONS[block.activation](early[index])
            elif inputs:
                value = self.compute(block, inputs, role, at_once, first)
                early |= {index: value} if index in early else {}
            else:
                value = input
            if quantizer is not None and at_once is None:
                if observe:
                    quantizer.observe(value)
                if role is Role.STUDENT:
                    # The gradient of the input's step size may come from the first layer instead.
                    with torch.set_grad_enabled(torch.is_grad_enabled() and (raw is None or index > 0)):
                        value = quantizer(value)
            values.append(value)
        features = tuple(early[tap.block] if tap.before_activation else values[tap.block] for tap in taps)
        return NetworkOutput(values[-1], features)

    @contextmanager
    def begins_with(self, values: Sequence[Tensor]) -> Iterator[None]:
        """Within it the network takes the values of its first blocks from here, and computes only what follows.

        For networks that share their first layers (:func:`pqk_ext.preparation.sharing.share_beginning`): those are
        computed once, in one of them. The teacher's runs, whose weights are others, still compute everything.

        Args:
            values: of the first blocks of the plan, as taps give them; their gradients go where they come from.
        """
        self._first_values = tuple(values)
        try:
            yield
        finally:
            self._first_values = ()

    def _learns_scale_alone(self, input: Tensor) -> bool:
        quantizer = self._quantizer(self.plan[0])
        readers = [block for block in self.plan if 0 in block.inputs]
        linear = all(block.op in ("conv2d", "linear") and block.inputs[1:] != (0,) for block in readers)
        return quantizer is not None and linear and learns_scale_alone(quantizer, input)

    def compute(
        self,
        block: Block,
        inputs: list[Tensor],
        role: Role,
        quantizer: ActivationQuantizer | None = None,
        raw: Tensor | None = None,
    ) -> Tensor:
        """Value of a block in a role, given those it reads.

        Args:
            block: of the plan.
            inputs: values of the blocks that it reads.
            role: which weights, batch norms and head to use.
            quantizer: fake-quantizes the value, if given.
            raw: the network's input before its quantizer, if ``inputs[0]`` is after it and this layer is to bring the
                gradient of that quantizer's scale.
        """
        x = inputs[0]
        if block.op in ("conv2d", "linear"):
            x = self.layer_of(block)(_padded(block, x), role)
            if raw is not None:
                input_quantizer = self._quantizer(self.plan[0])
                assert input_quantizer is not None
                x = with_scale_gradient(x, raw, input_quantizer, self._linear_function(block))
        elif block.op == "dropout":
            x = self._dropout(block, x)
        elif block.op == "lookup":
            x = self.lookup_function(block)(x)
        elif block.op in _IMAGE_OPS and x.dim() == 3:  # a sequence is an image of height 1
            x = _IMAGE_OPS[block.op](block, x.unsqueeze(2)).squeeze(2)
        elif block.op in _IMAGE_OPS:
            x = _IMAGE_OPS[block.op](block, x)
        elif block.op not in ("add", "affine"):
            x = _SHAPE_OPS[block.op](block, inputs)
        residual = inputs[1] if len(inputs) == 2 and block.op in ("conv2d", "linear", "add") else None
        activation = None if block.op == "lookup" else block.activation
        return epilogue(x, residual, self._batch_norm(block), activation, quantizer, role)

    def layer_of(self, block: Block) -> PQKLayer:
        """The convolution or linear layer of a block."""
        module = self.get_submodule(block.module or "")
        assert isinstance(module, PQKLayer)
        return module

    def _linear_function(self, block: Block) -> Callable[[Tensor], Tensor]:
        """The student's layer of a block without its bias, as a function of constant weights."""
        layer = self.layer_of(block)
        weight = layer.student_weight().detach()
        if isinstance(layer, nn.Linear):
            return lambda x: F.linear(x, weight)
        convolution = layer._conv_forward
        assert callable(convolution)
        return lambda x: convolution(_padded(block, x), weight, None)

    def lookup_function(self, block: Block) -> Callable[[Tensor], Tensor]:
        """The element-wise function of a lookup block."""
        return self.get_submodule(block.module) if block.module else _LOOKUPS[block.activation or ""]

    def _batch_norm(self, block: Block) -> RoleBatchNorm | None:
        if block.batch_norm is None:
            return None
        norm = self.get_submodule(block.batch_norm)
        assert isinstance(norm, RoleBatchNorm)
        return norm

    def _quantizer(self, block: Block) -> ActivationQuantizer | None:
        if block.quantizer is None:
            return None
        quantizer = self.pqk_quantizers[block.quantizer]
        assert isinstance(quantizer, ActivationQuantizer)
        return quantizer

    def _dropout(self, block: Block, x: Tensor) -> Tensor:
        if block.module is None:
            return F.dropout(x, block.attributes["p"], self.training)
        output: Tensor = self.get_submodule(block.module)(x)
        return output


def _after_load(module: nn.Module, _: object) -> None:
    assert isinstance(module, PreparedModel)
    module._integer.forget()
    module._integer.remember_tensors()


def _padded(block: Block, x: Tensor) -> Tensor:
    """With the zeros that a padding module puts before a convolution."""
    return F.pad(x, _pad_amounts(block.pre_padding)[: 2 * (x.dim() - 2)]) if block.pre_padding else x


def _pad_amounts(padding: Sequence[int]) -> list[int]:
    top, left, bottom, right = padding
    return [left, right, top, bottom]


def _max_pool(block: Block, x: Tensor) -> Tensor:
    a = block.attributes
    if any(a["padding"]):
        x = F.pad(x, _pad_amounts(a["padding"]), value=-torch.inf)
    return F.max_pool2d(x, a["kernel"], a["stride"], 0, a["dilation"])


def _avg_pool(block: Block, x: Tensor) -> Tensor:
    a = block.attributes
    return F.avg_pool2d(x, a["kernel"], a["stride"], a["padding"][:2], False, bool(a["count_include_pad"]))


def _slice(block: Block, x: Tensor) -> Tensor:
    a = block.attributes
    index = [slice(*triple) for triple in zip(a["start"], a["stop"], a["step"], strict=True)]
    return strided(x, (slice(None), *index))


def _pad(block: Block, x: Tensor) -> Tensor:
    (front, top, left), (back, bottom, right) = block.attributes["before"], block.attributes["after"]
    return F.pad(x, [left, right, top, bottom, front, back])


_IMAGE_OPS: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": lambda block, x: F.adaptive_avg_pool2d(x, block.attributes["output_size"]),
    "slice": _slice,
    "pad": _pad,
}
_SHAPE_OPS: dict[str, Callable[[Block, list[Tensor]], Tensor]] = {
    "concat": lambda block, inputs: torch.cat(inputs, 1),
    "flatten": lambda block, inputs: inputs[0].flatten(1),
    "dequantize": lambda block, inputs: inputs[0],
    "softmax": lambda block, inputs: F.softmax(inputs[0], 1),
}
