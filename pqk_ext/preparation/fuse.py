"""From traced calls to blocks: which operations one integer operation will compute together.

A convolution takes the batch norm, the residual addition and the ReLU that follow it, as long as nobody else reads
the values between; its accumulator then goes into the sum without being rounded to codes first. Every other value
gets codes where it is produced, so that all its readers see the same integers.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import fx, nn

from pqk_ext.preparation.blocks import Block, Plan
from pqk_ext.preparation.tracing import Call, UnsupportedOperator, normalize, sample_shape, shape_of

__all__ = ["build_plan"]

_KEEPS_CODES = ("max_pool2d", "flatten", "slice", "pad", "concat", "dropout")
_POOLS = ("avg_pool2d", "adaptive_avg_pool2d")
_ACTIVATIONS = ("relu", "relu6")


class _Builder:
    """Walks the calls in order. A block stays pending, open for more to be fused, until somebody needs its value."""

    def __init__(self, graph: fx.Graph, model: nn.Module) -> None:
        self.blocks: list[Block] = []
        self.values: dict[fx.Node, int] = {}  # nodes whose block is complete
        self.pending: dict[fx.Node, Block] = {}
        self.paddings: dict[fx.Node, Call] = {}  # spatial padding, not yet emitted: convolutions take it in
        self.alias: dict[fx.Node, fx.Node] = {}
        self.mixed: set[int] = set()  # values whose channels have different scales
        self.uniform_copy: dict[int, int] = {}
        self.calls: dict[fx.Node, Call] = {}
        self.uses: Counter[fx.Node] = Counter()
        for node in graph.nodes:
            if node.op in ("call_module", "call_function", "call_method") and "tensor_meta" in node.meta:
                if not _is_used(node):
                    continue
                call = normalize(node, model)
                inputs = tuple(self._origin(i) for i in call.inputs)
                self.calls[node] = Call(call.kind, inputs, call.attributes, call.module)
                if call.kind == "alias":
                    self.alias[node] = inputs[0]
                else:
                    self.uses.update(inputs)

    def _origin(self, node: fx.Node) -> fx.Node:
        return self.alias.get(node, node)

    def _emit(self, block: Block, quantize: bool) -> int:
        index = len(self.blocks)
        self.blocks.append(block.with_(quantizer=f"q{index}") if quantize else block)
        return index

    def value(self, node: fx.Node, uniform: bool = True) -> int:
        """Index of the node's value, codes of one scale unless ``uniform`` is False; completes a pending block."""
        node = self._origin(node)
        if node in self.pending:
            self.values[node] = self._emit(self.pending.pop(node), quantize=True)
        if node in self.paddings:
            self._keep_codes(node, self.paddings.pop(node))
        index = self.values[node]
        if not uniform or index not in self.mixed:
            return index
        if index not in self.uniform_copy:
            copy = Block("affine", f"{self.blocks[index].name}_requantize", (index,), self.blocks[index].shape)
            self.uniform_copy[index] = self._emit(copy, quantize=True)
        return self.uniform_copy[index]

    def _open(self, node: fx.Node, *ops: str) -> Block | None:
        """The pending block of ``node`` if nobody else reads it and it is one of ``ops``."""
        block = self.pending.get(node)
        if block is None or self.uses[node] != 1 or (ops and block.op not in ops):
            return None
        return block

    def visit(self, node: fx.Node, call: Call) -> None:
        if call.kind == "alias":
            return
        if call.kind in _ACTIVATIONS:
            self._activation(node, call)
        elif call.kind == "batch_norm":
            self._batch_norm(node, call)
        elif call.kind == "add":
            self._add(node, call)
        elif call.kind == "mean":
            self._mean(node, call)
        elif call.kind == "pad" and call.attributes["before"][0] == call.attributes["after"][0] == 0:
            self.paddings[node] = call
        elif call.kind in _KEEPS_CODES:
            self._keep_codes(node, call)
        elif call.kind == "softmax":
            self._softmax(node, call)
        elif call.kind in ("conv2d", "linear", "lookup", *_POOLS):
            self._open_block(node, call)
        else:
            raise UnsupportedOperator(f"node {node.name!r}: {call.kind} is not supported")

    def _open_block(self, node: fx.Node, call: Call) -> None:
        attributes = dict(call.attributes)
        source, pre_padding = call.inputs[0], None
        if call.kind == "conv2d" and "input_dilation" not in attributes and source in self.paddings:
            padding = self.paddings[source]
            (_, top, left), (_, bottom, right) = padding.attributes["before"], padding.attributes["after"]
            pre_padding = (top, left, bottom, right)
            attributes["padding"] = [a + b for a, b in zip(attributes["padding"], pre_padding, strict=True)]
            source = padding.inputs[0]
        self.pending[node] = Block(
            call.kind,
            node.name,
            (self.value(source),),
            shape_of(node),
            module=call.module,
            activation=attributes.pop("function", None),
            attributes=attributes,
            pre_padding=pre_padding,
        )

    def _activation(self, node: fx.Node, call: Call) -> None:
        (source,) = call.inputs
        block = self._open(source, "conv2d", "linear", "add", "affine", *_POOLS)
        if block is not None and block.activation is None:
            del self.pending[source]
            self.pending[node] = block.with_(activation=call.kind)
            return
        input = self.value(source, uniform=False)
        self.pending[node] = Block("affine", node.name, (input,), shape_of(node), activation=call.kind)

    def _batch_norm(self, node: fx.Node, call: Call) -> None:
        (source,) = call.inputs
        block = self._open(source, "conv2d", "linear")
        if block and block.batch_norm is None and block.activation is None and len(block.inputs) == 1:
            del self.pending[source]
            self.pending[node] = block.with_(batch_norm=call.module)
            return
        input = self.value(source, uniform=False)
        self.pending[node] = Block("affine", node.name, (input,), shape_of(node), batch_norm=call.module)

    def _add(self, node: fx.Node, call: Call) -> None:
        for main, other in (call.inputs, call.inputs[::-1]):
            block = self._open(main, "conv2d", "linear")
            if block and block.activation is None and len(block.inputs) == 1 and main is not other:
                del self.pending[main]
                residual = self.value(other)
                self.pending[node] = block.with_(name=block.name, inputs=(*block.inputs, residual))
                return
        inputs = tuple(self.value(i) for i in call.inputs)
        self.pending[node] = Block("add", node.name, inputs, shape_of(node))

    def _mean(self, node: fx.Node, call: Call) -> None:
        attributes = dict(call.attributes)
        keepdim = attributes.pop("keepdim")
        (source,) = call.inputs
        channels = shape_of(source)[0]
        pooled = Block("avg_pool2d", node.name, (self.value(source),), (channels, 1, 1), attributes=attributes)
        if keepdim:
            self.pending[node] = pooled
            return
        index = self._emit(pooled, quantize=True)
        self.values[node] = self._emit(Block("flatten", f"{node.name}_flatten", (index,), (channels,)), quantize=False)

    def _keep_codes(self, node: fx.Node, call: Call) -> None:
        accepts_mixed = call.kind in ("concat", "max_pool2d", "dropout")
        inputs = tuple(self.value(i, uniform=not accepts_mixed) for i in call.inputs)
        attributes: dict[str, Any] = dict(call.attributes)
        block = Block(call.kind, node.name, inputs, shape_of(node), module=call.module, attributes=attributes)
        index = self._emit(block, quantize=False)
        self.values[node] = index
        if call.kind == "concat" or (accepts_mixed and inputs[0] in self.mixed):
            self.mixed.add(index)

    def _softmax(self, node: fx.Node, call: Call) -> None:
        logits = self._float_value(call.inputs[0])
        self.values[node] = self._emit(Block("softmax", node.name, (logits,), shape_of(node)), quantize=False)

    def _float_value(self, node: fx.Node) -> int:
        """Index of the node's value in float32: straight from the accumulators where they are still open."""
        node = self._origin(node)
        block = self.pending.get(node)
        if block and block.op in ("conv2d", "linear") and block.activation is None and len(block.inputs) == 1:
            del self.pending[node]
            self.values[node] = self._emit(block.with_(float_output=True), quantize=False)
            return self.values[node]
        index = self.value(node)
        if self.blocks[index].float_output or self.blocks[index].op == "softmax":
            return index
        dequantize = Block("dequantize", f"{node.name}_dequantize", (index,), self.blocks[index].shape)
        return self._emit(dequantize, quantize=False)


def _is_used(node: fx.Node) -> bool:
    return bool(node.users) or node.op == "output"


def build_plan(graph: fx.Graph, model: nn.Module) -> Plan:
    """The blocks of a traced model, in the order they are computed.

    Raises:
        UnsupportedOperator: something the integer engine cannot compute, or not exactly one input and one output.
    """
    builder = _Builder(graph, model)
    for node in graph.nodes:
        if node.op == "placeholder":
            if not _is_used(node):
                continue
            if builder.blocks:
                raise UnsupportedOperator(f"a model with one input is expected, found a second one: {node.name!r}")
            builder.values[node] = builder._emit(Block("input", node.name, (), sample_shape(node)), quantize=True)
        elif node in builder.calls:
            builder.visit(node, builder.calls[node])
        elif node.op == "output":
            (result,) = node.args
            if not isinstance(result, fx.Node):
                raise UnsupportedOperator(f"a model with one output tensor is expected, got {type(result).__name__}")
            builder.uses[builder._origin(result)] += 1
            last = builder._float_value(result)
            if last != len(builder.blocks) - 1:
                raise UnsupportedOperator("the output must be the last value computed")
        elif node.op == "get_attr" and _is_used(node):
            raise UnsupportedOperator(f"node {node.name!r}: constants and bare parameters ({node.target}) in forward")
    return tuple(builder.blocks)
