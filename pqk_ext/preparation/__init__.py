"""`prepare`: an existing model becomes one that trains pruned and quantized, taught by its own pruned-away weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pqk_ext.config import PQKConfig
from pqk_ext.nn import LAYER_TYPES, ActivationQuantizer, PQKBatchNorm1d, PQKBatchNorm2d, Role
from pqk_ext.phases import PQKController
from pqk_ext.preparation.blocks import Block, Plan
from pqk_ext.preparation.fuse import build_plan
from pqk_ext.preparation.model import PreparedModel
from pqk_ext.preparation.states import add_state_checks
from pqk_ext.preparation.taps import Tap, find_taps, stage_outputs
from pqk_ext.preparation.tracing import UnsupportedOperator, check_example_inputs, trace
from pqk_ext.ranges import observe

__all__ = [
    "Block",
    "Plan",
    "PreparedModel",
    "Tap",
    "UnsupportedOperator",
    "find_taps",
    "prepare",
    "stage_outputs",
]


def _replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Under every name that it has."""
    source = root.get_submodule(path)
    for name in [name for name, other in root.named_modules(remove_duplicate=False) if other is source]:
        parent, _, leaf = name.rpartition(".")
        setattr(root.get_submodule(parent), leaf, module)


def _weighted_blocks(plan: Plan) -> list[Block]:
    return [block for block in plan if block.op in ("conv2d", "linear")]


def _is_prunable(source: nn.Module, path: str, config: PQKConfig, exclude: Sequence[str], is_head: bool) -> bool:
    own = config.for_layer(path).sparsity
    if path in exclude or own is not None:
        return path not in exclude and own != 0
    if isinstance(source, nn.Linear) or is_head:
        return config.prune_linear
    return config.prune_depthwise or getattr(source, "groups", 1) == 1


def _swap_layers(root: nn.Module, plan: Plan, config: PQKConfig, exclude: Sequence[str]) -> None:
    blocks = _weighted_blocks(plan)
    paths = [str(block.module) for block in blocks]
    unknown = set(exclude) - set(paths)
    if unknown:
        raise ValueError(f"exclude: {sorted(unknown)} are not layers of the model; its layers are {paths}")
    for pattern in config.layers:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise ValueError(f"layers: {pattern!r} matches no layer of the model; its layers are {paths}")
    for tied in _by_weight(root, paths):
        _swap_tied(root, [(blocks[i], i == 0) for i in tied], config, exclude)


def _by_weight(root: nn.Module, paths: list[str]) -> list[list[int]]:
    """Indices of the calls that use one weight: nearly always one call each."""
    groups: dict[int, list[int]] = {}
    for index, path in enumerate(paths):
        groups.setdefault(id(root.get_submodule(path).weight), []).append(index)
    return list(groups.values())


def _swap_tied(root: nn.Module, calls: list[tuple[Block, bool]], config: PQKConfig, exclude: Sequence[str]) -> None:
    """Replaces the layers of one weight, and lets them share its step sizes as well.

    Args:
        calls: blocks that use the weight, and whether each is the first of the network.
    """
    uses: dict[str, set[tuple[type[nn.Module], int, float | None]]] = {}
    prunable, heads = True, set()
    for block, is_first in calls:
        path = str(block.module)
        source, own = root.get_submodule(path), config.for_layer(path)
        default_bits = config.first_layer_bits if is_first else config.weight_bits
        bits = own.weight_bits or (config.last_layer_bits if block.float_output else default_bits)
        uses.setdefault(path, set()).add((type(source), bits, own.sparsity))
        prunable &= _is_prunable(source, path, config, exclude, block.float_output)
        if block.float_output:
            heads.add(path)
    kinds = set().union(*uses.values())
    if len(kinds) > 1:
        found = "; ".join(f"{t.__name__} of {b} bits, sparsity {s}" for t, b, s in sorted(kinds, key=str))
        raise UnsupportedOperator(f"{sorted(uses)}: one weight cannot be that of different layers: {found}")
    ((_, bits, sparsity),) = kinds
    scale: nn.Parameter | None = None
    for path in uses:
        source = root.get_submodule(path)
        kind = next(kind for module_type, kind in LAYER_TYPES.items() if isinstance(source, module_type))
        layer = kind(source, bits, prunable, config)
        layer.own_sparsity = sparsity
        if config.ranking == "fixed" and prunable:
            layer.weight_mask.copy_(layer.weight.detach() != 0)
            layer.initialize_scale()
        layer.weight_scale = scale = scale if scale is not None else layer.weight_scale
        if path in heads and config.teacher:
            layer.give_teacher_own_copy(source)
        _replace_module(root, path, layer)


def _swap_batch_norms(root: nn.Module, plan: Plan, config: PQKConfig) -> None:
    separate = config.teacher and config.batch_norm == "separate"
    for path in dict.fromkeys(block.batch_norm for block in plan if block.batch_norm):
        source = root.get_submodule(path)
        if isinstance(source, nn.BatchNorm2d):
            _replace_module(root, path, PQKBatchNorm2d(source, separate))
        elif isinstance(source, nn.BatchNorm1d):
            _replace_module(root, path, PQKBatchNorm1d(source, separate))


def _act_bits(block: Block, config: PQKConfig) -> int:
    return config.for_layer(block.module or "").act_bits or config.act_bits


def prepare(
    model: nn.Module,
    config: PQKConfig,
    *,
    example_inputs: Tensor,
    leaf_modules: Sequence[type[nn.Module]] = (),
    exclude: Sequence[str] = (),
) -> PreparedModel:
    """Makes ``model`` trainable with PQK (Kim, Chang and Kwak, Interspeech 2021).

    The result has the same modules and parameter names, so optimizer, loop and checkpoints stay yours::

        model = pqk_ext.prepare(model, pqk_ext.PQKConfig(sparsity=0.9), example_inputs=x)
        for x, y in loader:
            loss = model.pqk.loss(x, y)
            loss.backward(); optimizer.step(); model.pqk.step(); optimizer.zero_grad()

    Args:
        model: the network, trained or not; it is copied, not changed. One input and one output tensor.
        config: sparsity, bits, schedule and the switches of the method.
        example_inputs: a float32 batch; gives the shapes and the first activation ranges.
        leaf_modules: module types that tracing treats as one operation (subclasses of supported ones).
        exclude: names of convolution or linear layers whose weights are not pruned.

    Returns:
        The prepared model, in training mode.

    Raises:
        UnsupportedOperator: the model holds something the integer engine cannot compute; names node and module.
        TypeError, ValueError: an argument of the wrong type or value; names it.
    """
    check_example_inputs(example_inputs)
    if isinstance(model, PreparedModel):
        raise TypeError("model is prepared already")
    if not isinstance(config, PQKConfig):
        raise TypeError(f"config must be a PQKConfig, got {type(config).__name__}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(f"model: {name} is on the meta device; prepare a model that has its weights")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise TypeError(f"model: {name} must be float32, got {tensor.dtype}")
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise ValueError(
                f"model: {name or 'it'} computes its weight by a parametrization, which prepare would lose; remove it "
                "first (shared weights: pqk_ext.codebook.unshare_weights)"
            )
    root = copy.deepcopy(model)
    plan = build_plan(trace(root, example_inputs, leaf_modules), root)
    if not _weighted_blocks(plan):
        raise UnsupportedOperator("the model has no convolution or linear layer")
    _swap_layers(root, plan, config, exclude)
    _swap_batch_norms(root, plan, config)
    quantizers = {b.quantizer: ActivationQuantizer(_act_bits(b, config), b.never_negative) for b in plan if b.quantizer}
    prepared = PreparedModel(root, plan, quantizers).to(example_inputs.device)
    prepared.pqk = PQKController(prepared, config)
    add_state_checks(prepared)
    prepared.float_names = tuple(model.state_dict())
    observe(prepared, example_inputs, Role.FLOAT)
    for quantizer in prepared.pqk.quantizers():
        quantizer.reset()  # keeps its range until training or calibration gives another
    return prepared.train()
