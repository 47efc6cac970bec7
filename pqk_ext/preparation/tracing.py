"""From a module to a list of calls that the integer engine knows, by torch.fx."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from pqk_ext.preparation.blocks import image_shape

__all__ = ["Call", "UnsupportedOperator", "check_example_inputs", "normalize", "trace"]


class UnsupportedOperator(ValueError):
    """A model that cannot be prepared; the message names the node, its module and the construct."""


@dataclass(frozen=True)
class Call:
    """A traced node in the engine's terms: kind, tensor inputs, attributes, module path."""

    kind: str
    inputs: tuple[fx.Node, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    module: str | None = None


class _Tracer(fx.Tracer):
    def __init__(self, leaf_modules: Sequence[type[nn.Module]]) -> None:
        super().__init__()
        self._leaf_types = tuple(leaf_modules)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaf_types) or super().is_leaf_module(m, module_qualified_name)


def check_example_inputs(example_inputs: Tensor) -> None:
    """Raises TypeError or ValueError unless it is a float32 batch of at least one sample."""
    if not isinstance(example_inputs, Tensor) or example_inputs.dtype != torch.float32:
        got = example_inputs.dtype if isinstance(example_inputs, Tensor) else type(example_inputs).__name__
        raise TypeError(f"example_inputs must be a float32 tensor, got {got}")
    if example_inputs.dim() < 2 or example_inputs.shape[0] == 0:
        raise ValueError(f"example_inputs must be a batch of at least one sample, got shape {example_inputs.shape}")
    if example_inputs.is_meta:
        raise ValueError("example_inputs must hold values to take ranges from, got a tensor on the meta device")


def trace(model: nn.Module, example_inputs: Tensor, leaf_modules: Sequence[type[nn.Module]] = ()) -> fx.Graph:
    """Traces ``model`` and records every value's shape in ``node.meta["tensor_meta"]``.

    Raises:
        UnsupportedOperator: the forward cannot be traced (for example a branch on data).
    """
    training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", DeprecationWarning)
            graph = _Tracer(leaf_modules).trace(model)
            ShapeProp(fx.GraphModule(model, graph)).propagate(example_inputs)
    except (torch.fx.proxy.TraceError, TypeError, NotImplementedError) as error:
        raise UnsupportedOperator(
            f"{type(model).__name__}.forward cannot be traced: {error}. Name submodules that hold the construct in "
            "leaf_modules, or rewrite the line without control flow on tensor values"
        ) from error
    finally:
        for name, module in model.named_modules():
            module.training = training[name]
    return graph


def sample_shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's value without the batch dimension."""
    return tuple(node.meta["tensor_meta"].shape[1:])


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The same, a sequence ``(C, L)`` as an image ``(C, 1, L)``: the engine has no others."""
    return image_shape(sample_shape(node))


def _is_sequence(node: fx.Node) -> bool:
    return len(sample_shape(node)) == 2


def _pair(value: Any, height: int | None = None) -> list[int]:
    """One number for each image dimension; ``height`` is the first one's where ``value`` is of a sequence."""
    numbers = [int(value)] if isinstance(value, int) else [int(v) for v in value]
    return [numbers[0], numbers[-1]] if height is None else [height, numbers[-1]]


def _arguments(node: fx.Node, names: str) -> dict[str, Any]:
    """Positional and keyword arguments by name, in the order ``names`` gives."""
    return {**dict(zip(names.split(), node.args, strict=False)), **node.kwargs}


def _require_rank(input: fx.Node, dimensions: int, what: str) -> None:
    """Torch takes an input without batch dimension for one sample, which a forward pass never means."""
    if len(sample_shape(input)) != dimensions + 1:
        got = len(sample_shape(input)) + 1
        raise UnsupportedOperator(f"{what} reads a {dimensions + 2}-d tensor with its batch, got a {got}-d one")


def _conv_attributes(module: nn.Conv2d | nn.Conv1d) -> dict[str, Any]:
    one = 1 if isinstance(module, nn.Conv1d) else None
    kernel, stride, dilation = (_pair(v, one) for v in (module.kernel_size, module.stride, module.dilation))
    if module.padding_mode != "zeros":
        raise UnsupportedOperator(f"padding_mode must be 'zeros', got {module.padding_mode!r}")
    if module.padding == "valid":
        padding = [0, 0, 0, 0]
    elif module.padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = [t // 2 for t in total]
        padding = [*before, *(t - b for t, b in zip(total, before, strict=True))]
    else:
        padding = _pair(module.padding, None if one is None else 0) * 2
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": module.groups}


def _transposed_attributes(module: nn.ConvTranspose2d | nn.ConvTranspose1d) -> dict[str, Any]:
    """Of the convolution that it is on an input with ``stride - 1`` zeros between positions.

    Where the module cuts off more than its kernel reaches over, padding is negative.
    """
    one, none = (1, 0) if isinstance(module, nn.ConvTranspose1d) else (None, None)
    kernel, stride, dilation = (_pair(v, one) for v in (module.kernel_size, module.stride, module.dilation))
    cut, more = (_pair(v, none) for v in (module.padding, module.output_padding))
    before = [d * (k - 1) - c for d, k, c in zip(dilation, kernel, cut, strict=True)]
    after = [b + m for b, m in zip(before, more, strict=True)]
    return {
        "stride": [1, 1],
        "padding": [*before, *after],
        "dilation": dilation,
        "groups": module.groups,
        "input_dilation": stride,
    }


def _pool_padding(size: list[int], attributes: dict[str, Any], ceil_mode: bool) -> list[int]:
    """Explicit top, left, bottom, right padding, such that rounding the output size down gives torch's size."""
    result = [int(v) for v in attributes["before"]] * 2
    if not ceil_mode:
        return result
    for axis in range(2):
        kernel, stride, before = (int(attributes[n][axis]) for n in ("kernel", "stride", "before"))
        span = attributes["dilation"][axis] * (kernel - 1) + 1
        steps = -(-(size[axis] + 2 * before - span) // stride)
        if steps * stride >= size[axis] + before:  # torch drops windows that start in the padding
            steps -= 1
        result[2 + axis] = max(before, steps * stride + span - size[axis] - before)
    return result


def _pool_call(kind: str, input: fx.Node, raw: dict[str, Any]) -> Call:
    one, none = (1, 0) if _is_sequence(input) else (None, None)
    kernel = _pair(raw["kernel_size"], one)
    stride = raw.get("stride")
    attributes = {
        "kernel": kernel,
        "stride": kernel if stride is None or stride == [] else _pair(stride, one),
        "before": _pair(raw.get("padding", 0), none),
        "dilation": _pair(raw.get("dilation", 1), one),
    }
    ceil_mode = bool(raw.get("ceil_mode", False))
    if kind == "avg_pool2d":
        if ceil_mode:
            raise UnsupportedOperator("average pooling with ceil_mode=True is not supported")
        if raw.get("divisor_override") is not None:
            raise UnsupportedOperator("average pooling with divisor_override is not supported")
    padding = _pool_padding(list(shape_of(input)[1:]), attributes, ceil_mode)
    result: dict[str, Any] = {"kernel": attributes["kernel"], "stride": attributes["stride"], "padding": padding}
    if kind == "max_pool2d":
        if raw.get("return_indices"):
            raise UnsupportedOperator("max pooling with return_indices=True is not supported")
        result["dilation"] = attributes["dilation"]
    else:
        result["count_include_pad"] = int(raw.get("count_include_pad", True))
    return Call(kind, (input,), result)


def _adaptive_call(kind: str, input: fx.Node, output_size: Any) -> Call:
    size = shape_of(input)[1:]
    target = [output_size] if output_size is None or isinstance(output_size, int) else list(output_size)
    target = [1, target[0]] if _is_sequence(input) else [target[0], target[-1]]
    goal = [s if t is None else int(t) for s, t in zip(size, target, strict=True)]
    if all(s % g == 0 for s, g in zip(size, goal, strict=True)):
        window = [s // g for s, g in zip(size, goal, strict=True)]
        return _pool_call(kind, input, {"kernel_size": window, "stride": window})
    if kind == "max_pool2d":
        raise UnsupportedOperator(f"adaptive max pooling from {size} to {goal} needs sizes that divide")
    return Call("adaptive_avg_pool2d", (input,), {"output_size": goal})


def _mean_call(node: fx.Node, raw: dict[str, Any]) -> Call:
    dims = raw.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    rank = len(sample_shape(raw["input"])) + 1
    if rank < 3 or dims is None or sorted(d % rank for d in dims) != list(range(2, rank)):
        raise UnsupportedOperator(
            f"mean is supported over the two image dimensions or the length of a sequence, got dim={raw.get('dim')}"
        )
    pooled = _adaptive_call("avg_pool2d", raw["input"], 1)
    return Call("mean", pooled.inputs, {**pooled.attributes, "keepdim": bool(raw.get("keepdim", False))})


def _flatten_call(node: fx.Node, input: fx.Node) -> Call:
    before, after = sample_shape(input), sample_shape(node)
    if after == before:
        return Call("alias", (input,))
    if len(after) != 1:
        raise UnsupportedOperator(f"only flattening to (N, features) is supported, got {before} -> {after}")
    return Call("flatten", (input,))


def _pad_call(input: fx.Node, raw: dict[str, Any]) -> Call:
    amounts = [raw["pad"]] * 2 if isinstance(raw["pad"], int) else list(raw["pad"])
    value = raw.get("value")
    if raw.get("mode", "constant") != "constant" or (value is not None and value != 0):
        raise UnsupportedOperator("only padding with the constant 0 is supported")
    if _is_sequence(input):
        amounts[2:2] = [0, 0]
    amounts += [0] * (6 - len(amounts))
    if len(amounts) > 6 or any(a < 0 for a in amounts) or len(shape_of(input)) != 3:
        raise UnsupportedOperator(f"padding {raw['pad']} of a {len(sample_shape(input)) + 1}-d tensor is not supported")
    left, right, top, bottom, front, back = amounts
    return Call("pad", (input,), {"before": [front, top, left], "after": [back, bottom, right]})


def _slice_call(node: fx.Node, input: fx.Node, index: Any) -> Call:
    shape = shape_of(input)
    items = list(index) if isinstance(index, tuple) else [index]
    items += [slice(None)] * (len(sample_shape(input)) + 1 - len(items))
    if _is_sequence(input):
        items.insert(2, slice(None))
    if len(shape) != 3 or any(not isinstance(item, slice) for item in items) or items[0] != slice(None):
        raise UnsupportedOperator("only slices along channels and positions of a 4-d or 3-d tensor are supported")
    triples = [item.indices(size) for item, size in zip(items[1:], shape, strict=True)]
    if any(step < 1 for _, _, step in triples):
        raise UnsupportedOperator("slices with a negative step are not supported")
    starts, stops, steps = ([t[i] for t in triples] for i in range(3))
    return Call("slice", (input,), {"start": starts, "stop": stops, "step": steps})


def _concat_call(raw: dict[str, Any]) -> Call:
    tensors = raw["tensors"]
    rank = len(sample_shape(tensors[0])) + 1
    if raw.get("dim", 0) % rank != 1:
        raise UnsupportedOperator(f"concatenation is supported along channels (dim=1), got dim={raw.get('dim', 0)}")
    return Call("concat", tuple(tensors))


def _add_call(node: fx.Node) -> Call:
    raw = _arguments(node, "input other")
    a, b = raw["input"], raw["other"]
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)) or shape_of(a) != shape_of(b):
        raise UnsupportedOperator("addition is supported between two tensors of the same shape")
    if raw.get("alpha", 1) != 1:
        raise UnsupportedOperator("addition with alpha is not supported")
    return Call("add", (a, b))


def _softmax_call(node: fx.Node, input: fx.Node, dim: Any) -> Call:
    if len(shape_of(input)) != 1 or dim not in (1, -1):
        raise UnsupportedOperator("softmax is supported over the features (dim=1) of a (N, features) tensor")
    return Call("softmax", (input,))


_TABLES: dict[type[nn.Module], str] = {
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Tanh: "tanh",
    nn.GELU: "gelu",
    nn.ELU: "elu",
    nn.LeakyReLU: "leaky_relu",
    nn.Mish: "mish",
    nn.Softplus: "softplus",
}


_SEQUENCE_MODULES = (
    *(nn.Conv1d, nn.ConvTranspose1d, nn.MaxPool1d, nn.AvgPool1d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.ZeroPad1d),
)
_IMAGE_MODULES = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d),
)


def _module_call(node: fx.Node, module: nn.Module) -> Call:
    path = str(node.target)
    input = node.args[0] if len(node.args) == 1 and not node.kwargs else None
    if not isinstance(input, fx.Node):
        raise UnsupportedOperator(f"modules are supported with one input and nothing else, got {node.format_node()}")
    for types, dimensions in ((_SEQUENCE_MODULES, 1), (_IMAGE_MODULES, 2)):
        if isinstance(module, types):
            _require_rank(input, dimensions, type(module).__name__)
    if isinstance(module, nn.Conv2d | nn.Conv1d):
        return Call("conv2d", (input,), _conv_attributes(module), path)
    if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose1d):
        return Call("conv2d", (input,), _transposed_attributes(module), path)
    if isinstance(module, nn.Linear):
        if len(shape_of(input)) != 1:
            rank = len(sample_shape(input)) + 1
            raise UnsupportedOperator(f"a linear layer reads (N, features), got a {rank}-d tensor")
        return Call("linear", (input,), {}, path)
    if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
        return Call("batch_norm", (input,), {}, path)
    if isinstance(module, nn.ReLU6) or (isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0, 6)):
        return Call("relu6", (input,))
    if isinstance(module, nn.ReLU):
        return Call("relu", (input,))
    for table_type, name in _TABLES.items():
        if isinstance(module, table_type):
            return Call("lookup", (input,), {"function": name}, path)
    if isinstance(module, nn.MaxPool2d | nn.MaxPool1d | nn.AvgPool2d | nn.AvgPool1d):
        kind = "max_pool2d" if isinstance(module, nn.MaxPool2d | nn.MaxPool1d) else "avg_pool2d"
        return _pool_call(kind, input, {k: v for k, v in vars(module).items() if not k.startswith("_")})
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool1d):
        return _adaptive_call("avg_pool2d", input, module.output_size)
    if isinstance(module, nn.AdaptiveMaxPool2d | nn.AdaptiveMaxPool1d):
        return _adaptive_call("max_pool2d", input, module.output_size)
    if isinstance(module, nn.Flatten):
        return _flatten_call(node, input)
    if isinstance(module, nn.Identity):
        return Call("alias", (input,))
    if isinstance(module, nn.Dropout | nn.Dropout2d | nn.Dropout1d):
        return Call("dropout", (input,), {}, path)
    if isinstance(module, nn.ZeroPad2d | nn.ZeroPad1d):
        return _pad_call(input, {"pad": module.padding})
    if isinstance(module, nn.Softmax):
        return _softmax_call(node, input, module.dim)
    raise UnsupportedOperator(f"modules of type {type(module).__name__} are not supported")


def _lookup(name: str) -> Callable[[fx.Node], Call]:
    return lambda node: Call("lookup", (node.args[0],), {"function": name})  # type: ignore[arg-type]


def _unary(kind: str) -> Callable[[fx.Node], Call]:
    return lambda node: Call(kind, (node.args[0] if node.args else node.kwargs["input"],))  # type: ignore[arg-type]


_POOL_NAMES = {
    "max_pool2d": "input kernel_size stride padding dilation ceil_mode return_indices",
    "avg_pool2d": "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
}


def _pool(kind: str, dimensions: int = 2) -> Callable[[fx.Node], Call]:
    def call(node: fx.Node) -> Call:
        raw = _arguments(node, _POOL_NAMES[kind])
        _require_rank(raw["input"], dimensions, str(getattr(node.target, "__name__", kind)))
        return _pool_call(kind, raw["input"], raw)

    return call


def _adaptive(kind: str, dimensions: int = 2) -> Callable[[fx.Node], Call]:
    def call(node: fx.Node) -> Call:
        raw = _arguments(node, "input output_size")
        _require_rank(raw["input"], dimensions, f"adaptive_{kind}")
        return _adaptive_call(kind, raw["input"], raw["output_size"])

    return call


def _mean(node: fx.Node) -> Call:
    return _mean_call(node, _arguments(node, "input dim keepdim"))


def _flatten(node: fx.Node) -> Call:
    return _flatten_call(node, node.args[0])  # type: ignore[arg-type]


def _softmax(node: fx.Node) -> Call:
    raw = _arguments(node, "input dim")
    return _softmax_call(node, raw["input"], raw.get("dim"))


_FUNCTIONS: dict[Any, Callable[[fx.Node], Call]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), _unary("relu")),
    F.relu6: _unary("relu6"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid"), _lookup("sigmoid")),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh"), _lookup("tanh")),
    F.silu: _lookup("silu"),
    F.hardswish: _lookup("hardswish"),
    F.hardsigmoid: _lookup("hardsigmoid"),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _add_call),
    torch.cat: lambda node: _concat_call(_arguments(node, "tensors dim")),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _pool("max_pool2d")),
    F.avg_pool2d: _pool("avg_pool2d"),
    F.adaptive_avg_pool2d: _adaptive("avg_pool2d"),
    F.adaptive_max_pool2d: _adaptive("max_pool2d"),
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), _pool("max_pool2d", 1)),
    F.avg_pool1d: _pool("avg_pool2d", 1),
    **dict.fromkeys((F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d), _adaptive("avg_pool2d", 1)),
    F.adaptive_max_pool1d: _adaptive("max_pool2d", 1),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.flatten, torch.reshape, "flatten", "view", "reshape", torch.squeeze, "squeeze"), _flatten),
    F.pad: lambda node: _pad_call(node.args[0], _arguments(node, "input pad mode value")),  # type: ignore[arg-type]
    **dict.fromkeys((F.softmax, torch.softmax, "softmax"), _softmax),
    **dict.fromkeys(("contiguous", "clone"), _unary("alias")),
    operator.getitem: lambda node: _slice_call(node, node.args[0], node.args[1]),  # type: ignore[arg-type]
    F.dropout: lambda node: Call("dropout", (node.args[0],), {"p": _arguments(node, "input p").get("p", 0.5)}),  # type: ignore[arg-type]
}


def normalize(node: fx.Node, model: nn.Module) -> Call:
    """The engine's view of a traced node.

    Raises:
        UnsupportedOperator: an operator, or a form of it, that the engine does not have; the message names the
            node, the module it stands in and the construct.
    """
    try:
        if node.op == "call_module":
            return _module_call(node, model.get_submodule(str(node.target)))
        if node.op in ("call_function", "call_method"):
            convert = _FUNCTIONS.get(node.target)
            if convert is not None:
                return convert(node)
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
            raise UnsupportedOperator(f"operator {name} is not supported")
        raise UnsupportedOperator(f"{node.op} of {node.target} is not supported: only computed tensors may be used")
    except UnsupportedOperator as error:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        module = f" in module {stack[-1][0]!r} ({stack[-1][1]})" if stack else ""
        raise UnsupportedOperator(f"node {node.name!r}{module}: {error}") from None
