"""Prepared networks that begin with the same layers."""

from __future__ import annotations

from collections.abc import Sequence

from pqk_ext.nn import PQKLayer
from pqk_ext.preparation.blocks import Block
from pqk_ext.preparation.model import PreparedModel

__all__ = ["share_beginning"]


def share_beginning(models: Sequence[PreparedModel], stage: str) -> int:
    """Gives all networks the first one's layers before ``stage``: one weight, mask, step size and batch norm for all.

    What is shared is from then on ranked layer by layer, whatever the config's ranking, so that every network reaches
    its sparsity, and by the first network's controller alone. A file of any of the networks holds all that it needs; a
    copy of one has its own.

    Args:
        models: prepared with one config; they may differ from ``stage`` on.
        stage: path of the module with which they cease to be shared, such as ``"layer1"``.

    Returns:
        How many blocks of each plan are shared, the input's among them.

    Raises:
        ValueError: fewer than two networks, other configs or steps done, a stage that there is not, networks that
            differ before it, or nothing there to be shared.
    """
    if len(models) < 2:
        raise ValueError(f"models: expected two or more, got {len(models)}")
    first, count = models[0], _blocks_before(models[0], stage)
    for index, model in enumerate(models[1:], 1):
        if model.pqk.config != first.pqk.config or model.pqk.global_step != first.pqk.global_step:
            raise ValueError(f"models: number {index} has another config, or has done other steps, than the first")
        if _blocks_before(model, stage) != count or _comparable(model, count) != _comparable(first, count):
            raise ValueError(f"models: number {index} differs from the first before {stage!r}")
    paths = dict.fromkeys(path for block in first.plan[:count] for path in (block.module, block.batch_norm) if path)
    layers = [layer for path in paths if isinstance(layer := first.get_submodule(path), PQKLayer)]
    if not layers:
        raise ValueError(f"stage: no layer comes before {stage!r}, so that nothing can be shared")
    for layer in layers:
        layer.own_sparsity = first.pqk.config.sparsity if layer.own_sparsity is None else layer.own_sparsity
    for model in models[1:]:
        for path in paths:
            model.set_submodule(path, first.get_submodule(path))
        for quantizer in _quantizers(first, count):
            model.pqk_quantizers[quantizer] = first.pqk_quantizers[quantizer]
        model.pqk.ranked_elsewhere = tuple(layers)
        model.pqk.weights_replaced()
        model.train(model.training)  # evaluation looks for its tensors anew
    return count


def _blocks_before(model: PreparedModel, stage: str) -> int:
    for index, block in enumerate(model.plan):
        if block.module is not None and (block.module == stage or block.module.startswith(f"{stage}.")):
            return index
    raise ValueError(f"stage: no layer of the network lies in {stage!r}")


def _quantizers(model: PreparedModel, count: int) -> list[str]:
    return [block.quantizer for block in model.plan[:count] if block.quantizer is not None]


def _comparable(model: PreparedModel, count: int) -> tuple[tuple[Block, ...], list[tuple[int, ...]]]:
    weights = [m for block in model.plan[:count] if block.module and (m := model.get_submodule(block.module))]
    return model.plan[:count], [tuple(m.weight.shape) for m in weights if isinstance(m, PQKLayer)]
