"""`share_weights`: the layers of a plain model get few values for many weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pqk_ext.codebook._registry import LARGEST, METHODS, Codebook, check_k
from pqk_ext.codebook._shared_weight import SharedWeight
from pqk_ext.nn.channels import by_channel, from_channels
from pqk_ext.prune import compute_masks

__all__ = ["SharedLayer", "share_weights", "shared_layers", "unshare_weights"]

_Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.Linear
_Fit: TypeAlias = Callable[[Tensor, int, torch.Generator | None], Codebook]


class SharedLayer(NamedTuple):
    """The shared weights of one layer as they stand.

    Attributes:
        centroids: the parameter ``(K,)``, one object in all layers that share it.
        codes: int32, of the weight's shape: 0 for a weight fixed at 0, else 1 + index of its centroid.
    """

    centroids: nn.Parameter
    codes: Tensor

    def values_and_counts(self) -> tuple[Tensor, Tensor]:
        """The different values among the weights, ascending, and how many weights have each."""
        table = torch.cat([self.centroids.new_zeros(1), self.centroids.detach()]) + 0.0  # -0.0 is 0.0
        values, counts = table[self.codes.flatten()].unique(return_counts=True)
        return values, counts

    @property
    def distinct(self) -> int:
        """Number of different values among the weights, 0 included."""
        return len(self.values_and_counts()[0])

    @property
    def entropy(self) -> float:
        """Bits a weight that an ideal code of the values needs."""
        counts = self.values_and_counts()[1].double()
        shares = counts / counts.sum()
        return abs(float((shares * shares.log2()).sum()))

    @property
    def sparsity(self) -> float:
        """Share of weights that are 0."""
        values, counts = self.values_and_counts()
        return float(counts[values == 0].sum()) / max(1, self.codes.numel())


def shared_layers(model: nn.Module) -> dict[str, SharedLayer]:
    """The layers with shared weights, by name; empty for a model without."""
    found = {}
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module, "weight"):
            continue
        steps: Any = module.parametrizations.weight
        codes = [step.codes for step in steps if isinstance(step, SharedWeight)]
        if codes:
            found[name] = SharedLayer(steps.original, codes[0])
    return found


def share_weights(
    model: nn.Module,
    k: int = 32,
    method: str | _Fit = "kmeans",
    *,
    scope: str = "layer",
    keep_zeros: bool = True,
    layers: Sequence[str] | None = None,
    sparsity: float = 0.0,
    ranking: str = "global",
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Replaces the weights of convolutions and linear layers by at most k shared values, which go on training.

    Weight sharing of Han, Mao and Dally, "Deep Compression" (2016), with the methods of Marino, Petrini, Malchiodi and
    Frasca (2023). The result is a plain model that trains with any loop and optimizer; what trains of a weight is its
    centroids (see :class:`SharedWeight`). :func:`pqk_ext.export` stores it as codes and codebooks, and the
    activations stay float: nothing is to be calibrated::

        model = pqk_ext.share_weights(trained, k=32, sparsity=0.9)
        ...                                     # any training
        pqk_ext.export(model, "net.pqk", example_inputs=x)

    Args:
        model: a plain float model, trained, perhaps pruned (weights that are exactly 0). It is copied, not changed.
        k: largest number of shared values, 2..256, besides the 0 of ``keep_zeros`` (then no more than 255).
        method: a name in :data:`pqk_ext.codebook.METHODS` (``kmeans``, ``probabilistic``, ``uniform``, ``entropy``), or
            a function like them: ``functools.partial(pqk_ext.codebook.entropy, rate_weight=1e-4)``.
        scope: whose weights have one codebook: ``"layer"`` (each has its own), ``"kind"`` (all convolutions, and all
            linear layers; "unified" in the survey) or ``"network"``.
        keep_zeros: weights that are 0 take no part in the fit and stay exactly 0 through all training, as does what the
            method itself rounds to 0. If False, they are values like others.
        layers: names of the layers to share; by default every convolution (1-d, 2-d or transposed) and Linear.
        sparsity: share of the weights of these layers to prune first, by :func:`pqk_ext.prune.compute_masks`.
        ranking: of that pruning, ``"global"`` or ``"per_layer"``.
        generator: of methods that draw random numbers.

    Returns:
        The copy, in the mode (training or evaluation) of ``model``.

    Raises:
        TypeError: ``model`` is not a plain module.
        ValueError: an argument outside its range, a layer that cannot be shared, or weights that are not finite; it
            is named.
    """
    check_k(k)
    fit = _method(method)
    if scope not in ("layer", "kind", "network"):
        raise ValueError(f"scope: expected 'layer', 'kind' or 'network', got {scope!r}")
    _check_plain(model)
    result = copy.deepcopy(model)
    chosen = _chosen(result, layers)
    with torch.no_grad():
        for layer, mask in zip(
            chosen.values(),
            compute_masks([by_channel(layer, layer.weight) for layer in chosen.values()], sparsity, ranking=ranking),
            strict=True,
        ):
            layer.weight.mul_(from_channels(layer, mask))
    for group in _groups(chosen, scope):
        _share_group(group, k, fit, keep_zeros, generator)
    return result


def unshare_weights(model: nn.Module) -> nn.Module:
    """A copy whose shared weights are ordinary parameters of the same values, for :func:`pqk_ext.prepare` for example.

    Use this, not ``torch.nn.utils.parametrize.remove_parametrizations``, which writes the weight into the centroids,
    though other layers may share them, and changes the class of the layer, which copies of the model share.

    Args:
        model: what :func:`share_weights` returned; it is not changed.

    Raises:
        ValueError: a layer has other parametrizations besides; names it.
    """
    result = copy.deepcopy(model)
    for name, shared in shared_layers(result).items():
        layer: Any = result.get_submodule(name)
        if len(layer.parametrizations) > 1 or len(layer.parametrizations.weight) > 1:
            raise ValueError(f"model: {name} has other parametrizations besides its shared weight")
        weight = layer.weight.detach().clone()
        del layer.parametrizations
        layer.__class__ = type(layer).__bases__[0]
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=shared.centroids.requires_grad))
    return result


def _method(method: str | _Fit) -> _Fit:
    if callable(method):
        return method
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, or a function, got {method!r}")
    return METHODS[method]


def _check_plain(model: nn.Module) -> None:
    from pqk_ext.preparation import PreparedModel  # which imports much that is not needed here

    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    if isinstance(model, PreparedModel):
        raise TypeError("model: expected a plain float model, got one that prepare made; its weights are codes already")


def _chosen(model: nn.Module, layers: Sequence[str] | None) -> dict[str, _Layer]:
    """The layers to share, by name, checked."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, _Layer)}
    if isinstance(layers, str):
        raise ValueError(f"layers: expected a list of names, got the string {layers!r}")
    names = list(found) if layers is None else list(dict.fromkeys(layers))
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(f"layers: no convolution or linear layer {unknown}; there are {', '.join(found) or 'none'}")
    if not names:
        raise ValueError("layers: expected at least one convolution or linear layer to share, got none")
    owner: dict[int, str] = {}
    for name in names:
        if parametrize.is_parametrized(found[name], "weight"):
            raise ValueError(f"layers: the weight of {name} is parametrized already")
        weight = found[name].weight
        if id(weight) in owner:
            raise ValueError(
                f"layers: {owner[id(weight)]} and {name} have one weight parameter; share one of them only"
            )
        owner[id(weight)] = name
        if not bool(weight.isfinite().all()):
            raise ValueError(f"layers: the weight of {name} is not finite")
    return {name: found[name] for name in names}


def _groups(chosen: dict[str, _Layer], scope: str) -> list[list[_Layer]]:
    """Layers that get one codebook together."""
    layers = list(chosen.values())
    if scope == "layer":
        return [[layer] for layer in layers]
    if scope == "network":
        return [layers]
    linear: list[_Layer] = [layer for layer in layers if isinstance(layer, nn.Linear)]
    convolutions: list[_Layer] = [layer for layer in layers if not isinstance(layer, nn.Linear)]
    return [kind for kind in (convolutions, linear) if kind]


def _share_group(layers: list[_Layer], k: int, fit: _Fit, keep_zeros: bool, generator: torch.Generator | None) -> None:
    values = torch.cat([layer.weight.detach().flatten() for layer in layers])
    free = values != 0 if keep_zeros else torch.ones_like(values, dtype=torch.bool)
    if k == LARGEST and not bool(free.all()):
        raise ValueError(f"k: expected at most {LARGEST - 1}, since 0 is one value more, got {k}")
    found = fit(values[free], k, generator)
    centroids = found.centroids.to(values)
    codes = torch.zeros(len(values), dtype=torch.int32, device=values.device)
    codes[free] = found.codes.to(values.device, torch.int32) + 1
    if keep_zeros and bool((centroids == 0).any()):
        zero = int((centroids == 0).nonzero()[0])
        codes[codes == zero + 1] = 0
        codes -= (codes > zero).int()
        centroids = centroids[centroids != 0]
    weights = torch.cat([centroids.new_zeros(1), centroids])[codes]
    common = None
    for layer in layers:
        own = codes[: layer.weight.numel()].view(layer.weight.shape)
        codes, weight, weights = codes[own.numel() :], weights[: own.numel()], weights[own.numel() :]
        parametrization = _register(layer, own, weight, len(centroids))
        if len(layers) == 1:
            continue
        if common is None:
            trained = any(other.weight.requires_grad for other in layers)
            common = nn.Parameter(centroids, requires_grad=trained)
        parametrization.common = True
        layer.parametrizations.weight.original = common  # type: ignore[union-attr]


def _register(layer: _Layer, codes: Tensor, weight: Tensor, count: int) -> SharedWeight:
    """The weight, already that of the codes, becomes a parametrization."""
    parametrization = SharedWeight(codes.contiguous(), count)
    with torch.no_grad():
        layer.weight.copy_(weight.view(layer.weight.shape))
    parametrize.register_parametrization(layer, "weight", parametrization)
    return parametrization
