"""What in a run deserves a look: limits that are passed, in words and with what may help."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from pqk_ext.report.files import ExportedFile
from pqk_ext.report.run import Run

__all__ = ["LEAST_ACTIVATION_SQNR", "LEAST_WEIGHT_SQNR", "Finding", "findings"]

LEAST_WEIGHT_SQNR = 10.0  # dB: the error is a third of the weights
LEAST_ACTIVATION_SQNR = 12.0
_LEAST_LOGITS_SQNR = 8.0
_MOST_CLIPPED = 0.05  # of activations
_MOST_WEIGHTS_CLIPPED = 0.2  # learned step sizes give up some of the largest weights, and do well by it
_MOST_DEAD = 0.25
_LARGEST_DRIFT = 4.0
_LARGEST_LOSS_RISE = 1.5
_ACCURACY_LOST = 0.02
_TEACHER_AHEAD = 0.05
_SPARSITY_MISSED = 0.02


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that deserves a look.

    Attributes:
        severe: the result is probably not what was wanted.
        where: a layer, a quantizer or the run.
        text: what it is, and what may help.
    """

    severe: bool
    where: str
    text: str


def findings(run: Run, files: Sequence[ExportedFile] = ()) -> list[Finding]:
    """All findings, severe ones first, else in the order of the network."""
    found = [*_of_the_run(run), *_of_files(run, files)]
    if run.diagnoses:
        last = run.diagnoses[-1]
        if last["quantizing"]:
            found += [*_of_the_logits(last)]
            for layer in last["layers"]:
                found += [*_of_a_layer(layer)]
            for quantizer in last["activations"]:
                found += [*_of_a_quantizer(quantizer)]
    return sorted(found, key=lambda finding: not finding.severe)


def _of_the_run(run: Run) -> Iterator[Finding]:
    for text in run.damaged:
        yield Finding(True, "run", f"Damaged: {text}")
    for note in run.notes:
        yield Finding(False, "run", note)
    if run.checkpoint_step is None:
        yield Finding(False, "run", "There is no checkpoint yet: no weights to look at.")
    steps, losses = _since_sparse(run, "val_loss")
    if losses and losses[-1] > _LARGEST_LOSS_RISE * min(losses):
        at = steps[losses.index(min(losses))]
        yield Finding(
            False,
            "run",
            f"The validation loss rose from {min(losses):.3g} at step {at} to {losses[-1]:.3g}: too long a run, too "
            "high a learning rate, or too much was pruned at once.",
        )
    _, accuracies = run.curve("val_accuracy")
    if run.best and accuracies and accuracies[-1] < run.best["accuracy"] - _ACCURACY_LOST:
        yield Finding(
            False,
            "run",
            f"The last accuracy is {accuracies[-1]:.1%}, the best was {run.best['accuracy']:.1%} at step "
            f"{run.best['step']}. The best weights are the ones that are exported.",
        )
    _, sparsities = run.curve("sparsity")
    wanted = (run.config or {}).get("sparsity", 0.0)
    if run.finished and sparsities and sparsities[-1] < wanted - _SPARSITY_MISSED:
        yield Finding(
            True,
            "run",
            f"The sparsity is {sparsities[-1]:.1%}, {wanted:.1%} was asked for: min_keep_per_channel and "
            "min_keep_fraction hold more weights than that leaves.",
        )


def _of_files(run: Run, files: Sequence[ExportedFile]) -> Iterator[Finding]:
    for file in files:
        if run.best and file.accuracy is not None and round(file.accuracy - run.best["accuracy"], 9) != 0:
            yield Finding(
                False,
                file.path.name,
                f"It is right on {file.accuracy:.2%} of the validation data, the best weights on "
                f"{run.best['accuracy']:.2%}: it was exported before these, or from another run.",
            )


def _since_sparse(run: Run, name: str) -> tuple[list[int], list[float]]:
    """A curve without the part in which the network still became sparser, and so worse."""
    steps, values = run.curve(name)
    begin = run.sparse_step or 0
    kept = [(step, value) for step, value in zip(steps, values, strict=True) if step >= begin]
    return [step for step, _ in kept], [value for _, value in kept]


def _of_the_logits(line: dict[str, Any]) -> Iterator[Finding]:
    sqnr = line["logits_sqnr_db"]
    if sqnr is not None and sqnr < _LEAST_LOGITS_SQNR:
        yield Finding(
            False,
            "logits",
            f"Quantization changes the logits much: {sqnr:.1f} dB (below {_LEAST_LOGITS_SQNR:g}). Look for the block "
            "at which the accumulated SQNR falls: it needs more bits, or its step sizes ran away. Training makes up "
            "for a part of it.",
        )
    both = line["agreement"]
    if both and both["student_accuracy"] is not None and both["teacher_accuracy"] is not None:
        ahead = both["teacher_accuracy"] - both["student_accuracy"]
        if ahead > _TEACHER_AHEAD:
            yield Finding(
                False,
                "student",
                f"The teacher is right {ahead:.0%} more often: a longer phase 2 or less sparsity may help the student.",
            )


def _of_a_layer(layer: dict[str, Any]) -> Iterator[Finding]:
    name, channels = layer["name"], layer["shape"][0]
    if layer["dead_channels"] == channels:
        yield Finding(True, name, "All its weights are 0: it passes nothing on. Keep more of it (min_keep_fraction).")
        return
    if layer["dead_channels"] > _MOST_DEAD * channels:
        yield Finding(
            False, name, f"{layer['dead_channels']} of {channels} output channels have no weight other than 0."
        )
    if layer["sqnr_db"] is not None and layer["sqnr_db"] < LEAST_WEIGHT_SQNR:
        yield Finding(
            True,
            name,
            f"{layer['bits']}-bit weights are at {layer['sqnr_db']:.1f} dB (below {LEAST_WEIGHT_SQNR:g}): the layer "
            "may need more bits.",
        )
    clipped = layer["clipped_low"] + layer["clipped_high"]
    if clipped > _MOST_WEIGHTS_CLIPPED:
        yield Finding(False, name, f"{clipped:.1%} of the kept weights lie outside the range of the codes.")
    least, largest = layer["drift_min"], layer["drift_max"]
    if least is not None and (largest > _LARGEST_DRIFT or least < 1 / _LARGEST_DRIFT):
        yield Finding(
            False,
            name,
            f"Step sizes ran away: {least:.2g} to {largest:.2g} times those at the start. A smaller "
            "step_size_lr_factor holds them.",
        )


def _of_a_quantizer(quantizer: dict[str, Any]) -> Iterator[Finding]:
    where = f"activations of {quantizer['layer'] or quantizer['op']} ({quantizer['name']})"
    if quantizer["constant_channels"] > _MOST_DEAD * quantizer["channels"]:
        yield Finding(
            False,
            where,
            f"{quantizer['constant_channels']} of {quantizer['channels']} channels have one value for all samples.",
        )
    if quantizer["sqnr_db"] is not None and quantizer["sqnr_db"] < LEAST_ACTIVATION_SQNR:
        yield Finding(
            True, where, f"This quantizer alone leaves {quantizer['sqnr_db']:.1f} dB (below {LEAST_ACTIVATION_SQNR:g})."
        )
    clipped = quantizer["clipped_low"] + quantizer["clipped_high"]
    if clipped > _MOST_CLIPPED:
        yield Finding(
            False,
            where,
            f"{clipped:.1%} of the values lie outside [{quantizer['range_min']:.3g}, "
            f"{quantizer['range_max']:.3g}] and are clipped.",
        )
    drift = quantizer["drift"]
    if drift is not None and not 1 / _LARGEST_DRIFT <= drift <= _LARGEST_DRIFT:
        yield Finding(False, where, f"The step size ran away: {drift:.2g} times that at the start.")
