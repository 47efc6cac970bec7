"""`export`: a prepared or plain trained network becomes one ``.pqk`` file."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from pqk_ext.codebook import shared_layers
from pqk_ext.config import PQKConfig
from pqk_ext.deploy.lower import lower
from pqk_ext.deploy.lower_float import lower_float
from pqk_ext.preparation import PreparedModel, prepare
from pqk_ext.ranges import observe
from pqk_ext.runtime.format import SPEED_TOLERANCE, write
from pqk_ext.runtime.graph import Graph
from pqk_ext.wrappers import unwrap

__all__ = ["calibrate", "export", "quantize_post_training"]

Batches = Tensor | Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]]


def _inputs(batches: Batches) -> Iterable[Tensor]:
    if isinstance(batches, Tensor):
        yield batches
        return
    for batch in batches:
        yield batch if isinstance(batch, Tensor) else batch[0]


def calibrate(model: PreparedModel, calibration: Batches) -> None:
    """Sets every activation scale and zero point from real data, and every weight scale from the weights.

    Args:
        model: a prepared model; its phase is left alone.
        calibration: one float32 batch, or batches (a DataLoader will do: the first entry of a tuple is the input).

    Raises:
        ValueError: no batch, or values that are not finite.
    """
    for quantizer in model.pqk.quantizers():
        quantizer.reset()
    count = 0
    for batch in _inputs(calibration):
        observe(model, batch)
        count += 1
    if count == 0:
        raise ValueError("calibration must give at least one batch, got none")
    for layer in model.pqk.layers():
        layer.initialize_scale()


def quantize_post_training(
    model: nn.Module, *, example_inputs: Tensor, calibration: Batches, config: PQKConfig | None = None
) -> PreparedModel:
    """An integer network from a trained float one, without training.

    Args:
        model: trained float model; it is copied, not changed.
        example_inputs: float32 batch that gives the shapes.
        calibration: data to choose the activation ranges from, as for :func:`calibrate`; a few hundred samples.
        config: bits of weights and activations; 8 by default. Nothing is pruned.

    Returns:
        The prepared model, in evaluation mode.
    """
    if config is None:
        config = PQKConfig(sparsity=0.0, teacher=False)
    # calibration may be an iterator, which the copy inside prepare must not consume.
    prepared = prepare(model, config, example_inputs=example_inputs)
    calibrate(prepared, calibration)
    return prepared.eval()


def _warn_if_unfinished(model: PreparedModel) -> None:
    controller = model.pqk
    wanted, got = controller.final_sparsity, controller.sparsity
    if controller.prunable_layers() and got < wanted - 0.005 and controller.global_step > 0:
        warnings.warn(
            f"exporting at step {controller.global_step} of {controller.config.total_steps}: sparsity is {got:.3f}, "
            f"the configuration asks for {wanted:.3f}",
            stacklevel=3,
        )


def _lower_shared(model: nn.Module, example_inputs: Tensor | None, calibration: Batches | None) -> Graph:
    if calibration is not None:
        raise ValueError("calibration has no use for a model with shared weights, whose activations stay float")
    if example_inputs is None:
        raise ValueError("example_inputs is needed to export a model with shared weights")
    return lower_float(model, example_inputs)


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: Tensor | None = None,
    calibration: Batches | None = None,
    codec: str | None = None,
    speed_tolerance: float = SPEED_TOLERANCE,
) -> None:
    """Writes the network as one ``.pqk`` file, which :func:`pqk_ext.runtime.load` runs without torch.

    The file computes the same bits as ``model.eval()(x)`` of a prepared model. A plain trained float model is
    quantized after training, with ranges from ``calibration``. A model that :func:`pqk_ext.share_weights` returned is
    stored as it is, as codes into float codebooks: the file computes with floats, close to ``model.eval()(x)``
    (:func:`pqk_ext.deploy.assert_close`).

    Args:
        model: what :func:`pqk_ext.prepare` returned or a module around it (such as an average of its weights), what
            :func:`pqk_ext.share_weights` returned, or a plain float model.
        path: file to write; replaced in one step, or left as it was if anything fails.
        example_inputs: float32 batch; needed for a plain model. For a prepared one its shape is checked.
        calibration: for a plain model: one batch, batches, or a DataLoader. Not for one with shared weights.
        codec: one of :data:`pqk_ext.runtime.format.CODECS` for every weight, or None for the best for each.
        speed_tolerance: how much longer than the shortest a weight's codes may be, as a share, if they are decoded
            faster; 0 gives the smallest file.

    Raises:
        ValueError: a plain model without ``example_inputs`` or ``calibration``, parameters that are not finite,
            unknown ``codec``, negative ``speed_tolerance``,
            example inputs of another shape, or a layer with more than 256 different weights beside shared ones.
        UnsupportedOperator: the model holds something the engine cannot compute.
        OSError: the file cannot be written.
    """
    target = Path(path)
    if shared_layers(model):
        graph = _lower_shared(model, example_inputs, calibration)
        write(graph, target, codec=codec, speed_tolerance=speed_tolerance)
        return
    if any(isinstance(module, PreparedModel) for module in model.modules()):
        model = unwrap(model)
    if not isinstance(model, PreparedModel):
        if example_inputs is None or calibration is None:
            missing = "example_inputs" if example_inputs is None else "calibration"
            raise ValueError(f"{missing} is needed to export a plain float model (one that prepare did not make)")
        model = quantize_post_training(model, example_inputs=example_inputs, calibration=calibration)
    else:
        model.pqk.synchronize()
        if calibration is not None:
            model = copy.deepcopy(model)
            calibrate(model, calibration)
        expected = model.plan[0].shape
        if example_inputs is not None and tuple(example_inputs.shape[1:]) != expected:
            raise ValueError(f"example_inputs must have shape (N, *{expected}), got {tuple(example_inputs.shape)}")
        if not model.pqk.quantizing:
            model = copy.deepcopy(model).eval()
        _warn_if_unfinished(model)
    write(lower(model), target, codec=codec, speed_tolerance=speed_tolerance)
