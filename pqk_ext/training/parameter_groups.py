"""Parameter groups for torch optimizers: which rate and which decay each parameter of a prepared model gets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from pqk_ext.nn import ActivationQuantizer, PQKLayer

__all__ = ["Overrides", "parameter_groups"]

Options = Mapping[str, Any]
Overrides = Mapping[str, Options] | Callable[[str, nn.Parameter], Options | None]

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    *,
    decay_norm_and_bias: bool = True,
    overrides: Overrides | None = None,
    step_size_lr_factor: float = 0.01,
) -> list[dict[str, Any]]:
    """Every parameter of ``model`` in exactly one group; parameters of equal options share a group.

    Without the optional arguments there are two groups: the weights, and the step sizes of the quantizers with a small
    rate and no decay. Frozen parameters are listed too, so that the groups of a checkpoint fit; optimizers skip them.

    Args:
        model: a prepared model, or a module around one (whose other parameters count as weights).
        lr: learning rate of the weights.
        weight_decay: of the weights; step sizes have none, whatever else is said.
        decay_norm_and_bias: False takes normalization layers and biases out of the decay.
        overrides: options for some parameters, over those above: regular expression -> options, where the first that
            matches a whole name counts, or a function of name and parameter that gives options or None. Any option of
            the optimizer will do. An ``lr`` means that of weights: step sizes take ``step_size_lr_factor`` times it.
        step_size_lr_factor: learning rate of step sizes, as a multiple of the weights'.

    Returns:
        A list of dicts with ``params``, ``lr``, ``weight_decay``, and what ``overrides`` added.

    Raises:
        ValueError: a regular expression that is not one, or that matches no parameter.
    """
    find = _finder(model, overrides)
    scales = {id(scale) for scale in _step_sizes(model)}
    exempt = set() if decay_norm_and_bias else {id(p) for p in _norms_and_biases(model)}
    groups: list[dict[str, Any]] = []
    kinds: list[tuple[int, dict[str, Any]]] = []  # of each group: 1 for step sizes, and its options
    for name, parameter in model.named_parameters():
        options = {"lr": lr, "weight_decay": 0.0 if id(parameter) in exempt else weight_decay, **find(name, parameter)}
        is_scale = id(parameter) in scales
        if is_scale:
            options |= {"lr": options["lr"] * step_size_lr_factor, "weight_decay": 0.0}
        kind = (int(is_scale), options)
        if kind not in kinds:
            kinds.append(kind)
            groups.append({"params": [], **options})
        groups[kinds.index(kind)]["params"].append(parameter)
    # Weights first: schedules and logs look at the first group.
    order = sorted(range(len(groups)), key=lambda index: kinds[index][0])
    return [groups[index] for index in order]


def _step_sizes(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, PQKLayer):
            yield module.weight_scale
        elif isinstance(module, ActivationQuantizer):
            yield module.scale


def _norms_and_biases(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, _NORMS) or name == "bias":
                yield parameter


def _finder(model: nn.Module, overrides: Overrides | None) -> Callable[[str, nn.Parameter], Options]:
    if overrides is None:
        return lambda name, parameter: {}
    if not isinstance(overrides, Mapping):
        function = overrides
        return lambda name, parameter: function(name, parameter) or {}
    patterns = []
    names = [name for name, _ in model.named_parameters()]
    for text, options in overrides.items():
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise ValueError(f"overrides: {text!r} is no regular expression: {error}") from None
        if not any(pattern.fullmatch(name) for name in names):
            near = difflib.get_close_matches(text, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(f"overrides: {text!r} matches no whole name of a parameter, such as {', '.join(near)}")
        patterns.append((pattern, options))
    return lambda name, parameter: next((o for pattern, o in patterns if pattern.fullmatch(name)), {})
