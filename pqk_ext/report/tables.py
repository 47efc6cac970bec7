"""The numbers of a report as plain tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pqk_ext.report.files import ExportedFile
from pqk_ext.report.run import Run

__all__ = ["Cell", "Table", "activations", "files", "layers", "metrics", "teacher"]

_MOST_LINES = 400


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a table shows, and what it is sorted by."""

    text: str
    key: float | str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; columns whose cells are numbers are set to the right.

    Attributes:
        title: heading.
        columns: (name, explanation) of each.
        rows: cells, as many as columns.
        note: a line below, or nothing.
    """

    title: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    @property
    def explained(self) -> list[tuple[str, str]]:
        """The columns that need an explanation."""
        return [(name, text) for name, text in self.columns if text]


def _text(value: Any) -> Cell:
    return Cell(str(value), str(value))


def _number(value: float | None, form: str = "{:.4g}", none: str = "-") -> Cell:
    return Cell(none, -1e300) if value is None else Cell(form.format(value), float(value))


def _share(value: float | None) -> Cell:
    return _number(value, "{:.1%}")


def _decibels(value: float | None) -> Cell:
    return Cell("no loss", 1e9) if value is None else _number(value, "{:.1f}")


_LAYER_COLUMNS = (
    ("#", "position in the network"),
    ("layer", "path of the module"),
    ("shape", "of the weight"),
    ("bits", "of a weight code"),
    ("SQNR dB", "quantized against float kept weights; 6 dB are about one bit"),
    ("pruned", "share of the weights that the mask sets to zero"),
    ("rounded to 0", "share of the weights that are kept but become code 0"),
    ("dead channels", "output channels whose weights are all 0"),
    ("clipped", "share of the kept weights outside the range of the codes"),
    ("least", "kept weight"),
    ("largest", "kept weight"),
    ("step size", "median over the channels"),
    ("drift", "step size / that at the start of quantization, median over the channels"),
    ("drift range", "least to largest over the channels"),
    ("codes used", "share of the codes that occur"),
    ("entropy", "of the kept weights' codes, bits"),
)


def layers(diagnosis: dict[str, Any]) -> Table:
    """The weights of each layer."""
    rows = []
    for number, layer in enumerate(diagnosis["layers"], 1):
        drifts = layer["drift_min"], layer["drift_max"]
        rows.append(
            [
                _number(number, "{}"),
                _text(layer["name"]),
                Cell("x".join(map(str, layer["shape"])), float(_product(layer["shape"]))),
                _number(layer["bits"], "{}"),
                _decibels(layer["sqnr_db"]),
                _share(layer["sparsity"]),
                _share(layer["rounded_to_zero"]),
                Cell(f"{layer['dead_channels']} of {layer['shape'][0]}", float(layer["dead_channels"])),
                _share(layer["clipped_low"] + layer["clipped_high"]),
                _number(layer["min"]),
                _number(layer["max"]),
                _number(layer["scale_median"]),
                _number(layer["drift"], "{:.3g}"),
                Cell("-", 0.0) if None in drifts else Cell(f"{drifts[0]:.2g} to {drifts[1]:.2g}", drifts[1]),
                _share(layer["used_codes"]),
                _number(layer["entropy_bits"], "{:.2f}"),
            ]
        )
    return Table(f"Weights after step {diagnosis['step']}", _LAYER_COLUMNS, rows)


def _product(shape: Sequence[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


_ACTIVATION_COLUMNS = (
    ("quantizer", "its key in model.pqk_quantizers"),
    ("block", "operation and layer"),
    ("bits", "of a code"),
    ("SQNR dB", "output against its own input: what this quantizer alone loses"),
    ("accumulated dB", "against the same network in float: what all quantization up to here loses"),
    ("least", "input over the batch"),
    ("largest", "input over the batch"),
    ("range", "what the codes can stand for"),
    ("clipped below", "share of the input"),
    ("clipped above", "share of the input"),
    ("scale", "step size"),
    ("zero point", "code of 0"),
    ("drift", "step size / that at the start of quantization"),
    ("constant channels", "one value for all samples and positions"),
    ("of these 0", "channels that are 0 everywhere"),
    ("codes used", "share of the codes that occur"),
    ("entropy", "of the codes, bits"),
)


def activations(diagnosis: dict[str, Any]) -> Table:
    """The quantizers of activations."""
    rows = []
    for q in diagnosis["activations"]:
        rows.append(
            [
                _text(q["name"]),
                _text(f"{q['op']} {q['layer'] or ''}".strip()),
                _number(q["bits"], "{}"),
                _decibels(q["sqnr_db"]),
                _decibels(q["accumulated_sqnr_db"]),
                _number(q["min"]),
                _number(q["max"]),
                Cell(f"{q['range_min']:.3g} to {q['range_max']:.3g}", q["range_max"] - q["range_min"]),
                _share(q["clipped_low"]),
                _share(q["clipped_high"]),
                _number(q["scale"]),
                _number(q["zero_point"], "{}"),
                _number(q["drift"], "{:.3g}"),
                Cell(f"{q['constant_channels']} of {q['channels']}", float(q["constant_channels"])),
                _number(q["zero_channels"], "{}"),
                _share(q["used_codes"]),
                _number(q["entropy_bits"], "{:.2f}"),
            ]
        )
    title = f"Activations after step {diagnosis['step']}, over {diagnosis['samples']} validation samples"
    return Table(title, _ACTIVATION_COLUMNS, rows)


def teacher(run: Run) -> Table:
    """Student and teacher at each diagnosis of phase 2."""
    columns = (
        ("step", ""),
        ("same class", "share of the samples"),
        ("KL", "T² KL(teacher || student)"),
        ("T", "temperature"),
        ("student right", "share of the samples"),
        ("teacher right", "share of the samples"),
    )
    rows = [
        [
            _number(line["step"], "{}"),
            _share(both["same_class"]),
            _number(both["kl"]),
            _number(both["temperature"]),
            _share(both["student_accuracy"]),
            _share(both["teacher_accuracy"]),
        ]
        for line in run.diagnoses
        if (both := line["agreement"])
    ]
    return Table("Student and teacher", columns, rows)


def metrics(run: Run) -> Table:
    """The lines of ``metrics.jsonl``; of a long run, evenly chosen ones."""
    names = list(dict.fromkeys(name for line in run.metrics for name in line if name != "step"))
    count = len(run.metrics)
    chosen = run.metrics
    if count > _MOST_LINES:
        chosen = [run.metrics[round(i * (count - 1) / (_MOST_LINES - 1))] for i in range(_MOST_LINES)]
    rows = []
    for line in chosen:
        values = [line.get(name) for name in names]
        cells = [_number(v) if isinstance(v, int | float) or v is None else _text(v) for v in values]
        rows.append([_number(line["step"], "{}"), *cells])
    note = f"{len(chosen)} of {count} lines; all are in metrics.jsonl." if count > len(chosen) else ""
    return Table("Metrics", [("step", ""), *((name, "") for name in names)], rows, note)


def files(found: Sequence[ExportedFile]) -> Table:
    """Exported files."""
    columns = [
        ("file", ""),
        ("bytes", ""),
        *((f"{purpose}, bytes", "") for purpose in (found[0].purposes if found else ())),
        ("weights", "zeros included"),
        ("zeros", "share of the weights"),
        ("x less than float32", "weights as dense float32 / file"),
        ("x less than int8", "weights as dense int8 / file"),
        ("µs a sample", "batch 1, one thread, least of 25 rounds, this machine"),
        ("accuracy", "on the validation data of the run"),
        ("SHA-256", ""),
    ]
    rows = [
        [
            _text(file.path.name),
            _number(file.total_bytes, "{}"),
            *(_number(size, "{}") for size in file.purposes.values()),
            _number(file.weights, "{}"),
            _share(file.sparsity),
            _number(file.float_bytes / file.total_bytes, "{:.1f}"),
            _number(file.int8_bytes / file.total_bytes, "{:.1f}"),
            _number(file.latency_us, "{:.1f}"),
            _number(file.accuracy, "{:.2%}"),
            _text(file.sha256),
        ]
        for file in found
    ]
    return Table("Exported files", columns, rows)
