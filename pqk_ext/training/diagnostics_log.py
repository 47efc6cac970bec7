"""``diagnostics.jsonl``: what goes on inside a prepared model while it trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pqk_ext.diagnostics import Diagnosis, diagnose, named_layers, step_sizes, weight_codes
from pqk_ext.training.data import Batch, Batches
from pqk_ext.training.metrics import JsonLines, MetricsLog

__all__ = ["DiagnosticsLog"]

_SAMPLES = 64
_LAYER_CURVES = ("sqnr_db", "sparsity", "rounded_to_zero", "dead_channels", "drift", "entropy_bits")
_ACTIVATION_CURVES = ("sqnr_db", "accumulated_sqnr_db", "clipped_high", "constant_channels", "drift", "entropy_bits")


class DiagnosticsLog:
    """Diagnoses a model on samples spread over the validation data; process 0 alone has one.

    Nothing of the training changes by it. Like ``metrics.jsonl`` the file is cut back to what belongs to the state
    resumed from, so that stopped and uninterrupted runs write the same bytes.

    Args:
        run_dir: directory of the run.
        model: the prepared model.
        data: the validation data.
        state: what ``state`` gave for the checkpoint resumed from; None for a new run, or where there was no log.
    """

    def __init__(self, run_dir: Path, model: Any, data: Batches, state: dict[str, Any] | None) -> None:
        self._model, self._data = model, data
        self._lines = JsonLines(run_dir / "diagnostics.jsonl", state["bytes"] if state else 0)
        self._start: dict[str, Tensor] | None = state["start"] if state else None
        self._batch: Batch | None = None
        # A run that is met in its middle has begun with step sizes that nobody knows now.
        self._late = state is None and model.pqk.global_step > model.pqk.config.float_steps
        self.after_step()

    def after_step(self) -> None:
        """To be called after each training step: remembers the step sizes with which quantization begins."""
        if self._start is None and not self._late and self._model.pqk.quantizing:
            self._start = step_sizes(self._model)

    def write(self, metrics: MetricsLog) -> None:
        """Diagnoses the model now: a line here, curves and histograms in TensorBoard."""
        if self._batch is None:
            self._batch = self._data.samples(_SAMPLES)
        device = next(self._model.parameters()).device
        x, y = (part.to(device) for part in self._batch)
        found = diagnose(self._model, x, y, start=self._start)
        self._lines.write(found.to_dict())
        metrics.draw(found.step, _curves(found), self._histograms)

    @torch.no_grad()
    def _histograms(self) -> dict[str, Tensor]:
        """Kept weights and their codes, by layer."""
        histograms = {}
        for name, layer in named_layers(self._model).items():
            histograms[f"weights/{name}"] = layer.weight[layer.weight_mask].float()
            histograms[f"codes/{name}"] = weight_codes(layer)[layer.weight_mask]
        return {name: values for name, values in histograms.items() if values.numel()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold; makes the lines durable."""
        return {"bytes": self._lines.sync(), "start": self._start}

    def close(self) -> None:
        self._lines.close()


def _curves(found: Diagnosis) -> dict[str, Any]:
    """TensorBoard's curves: one card a figure and layer."""
    curves: dict[str, Any] = {
        "logits/sqnr_db": found.logits_sqnr_db,
        "logits/dense_sqnr_db": found.dense_logits_sqnr_db,
    }
    if found.agreement is not None:
        curves |= {f"teacher/{name}": value for name, value in dataclasses.asdict(found.agreement).items()}
    for layer in found.layers:
        curves |= {f"weights_{name}/{layer.name}": getattr(layer, name) for name in _LAYER_CURVES}
    for quantizer in found.activations:
        name = f"{quantizer.name} {quantizer.layer or quantizer.op}"
        curves |= {f"activations_{figure}/{name}": getattr(quantizer, figure) for figure in _ACTIVATION_CURVES}
    return curves
