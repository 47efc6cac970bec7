"""Pruned, shared, coded: networks of few different weights, stored by the code of their values."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from pqk_ext.codebook import METHODS as CODEBOOKS
from pqk_ext.codebook import share_weights, shared_layers, unshare_weights
from pqk_ext.codebook._registry import LARGEST
from pqk_ext.config import PQKConfig
from pqk_ext.deploy import quantize_post_training
from pqk_ext.fields import Checked, choice, integer, names, number
from pqk_ext.methods._layouts import file_layouts, published_layouts, shares
from pqk_ext.methods._registry import method
from pqk_ext.methods.run import Run
from pqk_ext.nn import PQKLayer
from pqk_ext.preparation import PreparedModel
from pqk_ext.quant import SMALLEST_SCALE

__all__ = ["ShamSettings", "integer_network", "sham"]

_FILES = ("float", "int8")
_CALIBRATION = 512  # samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShamSettings(Checked):
    """What only this method has. How far and which layers are pruned say ``pqk.sparsity``, ``ranking``, ``prune_...``.

    Attributes:
        codebook: how weights are shared: a name in ``codebook.METHODS`` (``kmeans``, ``probabilistic``, ``uniform``,
            ``entropy``: CWS, PWS, UQ, ECSQ of the survey), or ``none``.
        k: most shared values of a codebook, 0 apart.
        scope: whose weights have one codebook: ``layer``, ``kind`` (all convolutions, and all linear layers: the
            survey's prefix u) or ``network``.
        float_share: share of the steps that train the float network first; with a pretrained one it may be 0.
        prune_share: share of the steps that prune and retrain. What remains trains the shared values.
        prune_lr: learning rate while pruning.
        share_lr: learning rate of the shared values.
        files: ``float`` (float values and activations), ``int8`` (values rounded to codes of one scale a layer,
            activations quantized after training), or both.
    """

    codebook: str = choice("kmeans", *sorted(set(CODEBOOKS) - {"kmeans"}), "none")
    k: int = integer(32, 2, LARGEST - 1)
    scope: str = choice("layer", "kind", "network")
    float_share: float = number(0.1, 0, 1)
    prune_share: float = number(0.65, 0, 1)
    prune_lr: float = number(0.002, 0, open_low=True)
    share_lr: float = number(0.0005, 0, open_low=True)
    files: tuple[str, ...] = names(_FILES, least=1)

    def check_together(self) -> None:
        """The shares of the steps, and which files there can be."""
        if self.float_share + self.prune_share > 1:
            raise ValueError(f"prune_share: expected at most 1 - float_share, got {self.prune_share!r}")
        if set(self.files) - set(_FILES):
            raise ValueError(f"files: expected some of {', '.join(_FILES)}, got {self.files!r}")
        if self.codebook == "none" and "float" in self.files:
            raise ValueError("files: expected int8 alone without a codebook (float files need one), got float")


@method(ShamSettings)
def sham(run: Run) -> dict[str, nn.Module]:
    """Prune, share weights, store the codes: HAM and sHAM.

    Marino, Ghidoli, Frasca and Malchiodi, "Compression strategies and space-conscious representations for deep neural
    networks" (ICPR 2020), and the same with Petrini, "Deep neural networks compression: a comparative survey and choice
    recommendations" (Neurocomputing 520, 2023). Their "Pr-X": prune the smallest weights of each layer, retrain,
    replace the survivors by at most k values (X), retrain these with the summed gradient of the weights that share
    them, and store a Huffman code of every entry (HAM) or indices and codes of the non-zeros (sHAM).

    Certain: the order, per-layer percentiles, the codebooks, summed gradients, both layouts. Ours: all layers are
    shared, convolutions too (ICPR did linear layers alone), pruning is gradual, and the file holds not their layouts
    but our codecs, whichever is shortest for each layer; ``facts`` gives the bytes of theirs beside ours. Int8 files
    are ours: the centroids rounded to a grid of one scale a layer, so that equal weights have equal codes.

    Pitfalls handled: quantiles of survivors only (theirs counted the zeros, which left few values); shared values
    that really accumulate over batches in unified codebooks; masks that no centroid moves; 0.0 and -0.0 one symbol;
    codes fitted to the final values; and their tables, which count the coded stream twice (``storage_bounds``).

    Returns:
        ``float`` and ``int8``, as ``settings.files`` says.
    """
    settings = run.settings
    network = run.network()
    float_steps, prune_steps, share_steps = _split(run)
    if float_steps:
        run.fit("float", network, steps=float_steps)
    run.facts["float_validation"] = run.accuracy(network)
    if prune_steps:
        # Phase 1 alone, all of it in float.
        prunable = run.prepare(network, steps=prune_steps, phase1_fraction=1.0, float_fraction=1.0, teacher=False)
        pruned = run.fit("pruned", prunable, steps=prune_steps, lr=settings.prune_lr, draw=1)
        network.load_state_dict(pruned.float_state_dict())
        run.facts |= {"pruned_validation": run.accuracy(network), "pruned_sparsity": pruned.pqk.sparsity}
    calibration = run.data.train[0][:: max(1, len(run.data.train[0]) // _CALIBRATION)]
    if settings.codebook == "none":
        return {"int8": quantize_post_training(network, example_inputs=calibration[:1], calibration=calibration)}
    generator = torch.Generator().manual_seed(run.seed)
    shared = share_weights(network, settings.k, settings.codebook, scope=settings.scope, generator=generator)
    run.facts["shared_validation"] = run.accuracy(shared.eval())
    if share_steps:
        # A decay would pull a value as often as there are steps, whatever the number of weights that share it.
        run.fit("shared", shared, steps=share_steps, lr=settings.share_lr, weight_decay=0.0, draw=2)
    networks: dict[str, nn.Module] = {"float": shared, "int8": integer_network(shared, calibration)}
    run.facts |= _storage(networks, calibration[:1])
    return {name: networks[name] for name in settings.files}


def _split(run: Run) -> tuple[int, int, int]:
    """Steps of each stage; those of a stage that is left out go to the one before."""
    settings, steps = run.settings, run.recipe.training.steps
    share = 0 if settings.codebook == "none" else steps - round(steps * (settings.float_share + settings.prune_share))
    prune = steps - share - round(steps * settings.float_share)
    if run.recipe.config().sparsity == 0 or prune == 0:
        return steps - share, 0, share
    return steps - share - prune, prune, share


def integer_network(shared: nn.Module, calibration: Tensor) -> PreparedModel:
    """An int8 network of one with shared weights: weights that were equal in a layer have equal codes.

    For that a layer has one scale, where post-training quantization gives each channel its own; pruned weights stay 0.

    Args:
        shared: what ``share_weights`` returned; it is not changed.
        calibration: a float32 batch, to choose the ranges of activations from.
    """
    # Without a warm-up, during which a network that is evaluated takes its scales from the weights anew.
    config = PQKConfig(sparsity=0.0, warmup_fraction=0.0, teacher=False)
    prepared = quantize_post_training(
        unshare_weights(shared), example_inputs=calibration[:1], calibration=calibration, config=config
    )
    for name in shared_layers(shared):
        layer = prepared.get_submodule(name)
        assert isinstance(layer, PQKLayer)
        with torch.no_grad():
            scale = (layer.weight.abs().max() / layer.weight_quant_max).clamp_min(SMALLEST_SCALE)
            layer.weight_scale.copy_(scale.expand_as(layer.weight_scale))
            layer.weight_mask.copy_(layer.weight != 0)
    return prepared.eval()


def _storage(networks: dict[str, nn.Module], example_inputs: Tensor) -> dict[str, Any]:
    """Bytes of each layer in the published layouts and in our files."""
    shared, integer = networks["float"], networks["int8"]
    assert isinstance(integer, PreparedModel)
    node_of = {block.module: block.name for block in integer.plan if block.module is not None}
    files = {name: file_layouts(network, example_inputs) for name, network in networks.items()}
    layers = []
    for name in shared_layers(shared):
        weight = shared.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        layers.append({"name": name, **published_layouts(weight), **{f: files[f][node_of[name]] for f in files}})
    dense = 4 * sum(layer["weights"] for layer in layers)
    ours = {f"{name}_file": sum(layer[name]["bytes"] for layer in layers) / dense for name in files}
    return {"layers": layers, "shares_of_float32": shares(layers) | ours}
