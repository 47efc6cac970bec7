"""A run as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pqk_ext import __version__
from pqk_ext.report import pictures, tables
from pqk_ext.report.files import ExportedFile
from pqk_ext.report.files import pictures as file_pictures
from pqk_ext.report.findings import LEAST_ACTIVATION_SQNR, LEAST_WEIGHT_SQNR, Finding, findings
from pqk_ext.report.histograms import MOST_LAYERS, histograms
from pqk_ext.report.repeat import command, settings_yaml
from pqk_ext.report.run import Run
from pqk_ext.report.svg import Picture
from pqk_ext.report.tables import Table

__all__ = ["Page", "Section", "Tile", "make_page", "to_html"]

# All that the page does by itself: sorts a table by a column, and opens what is folded before it is printed.
_SCRIPT = """
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  head.parentElement.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[column].dataset.key, numbers = head.classList.contains("n");
  const order = (a, b) => numbers ? key(a) - key(b) : key(a).localeCompare(key(b));
  body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
}));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => part.open = true));
"""


@dataclasses.dataclass(frozen=True)
class Tile:
    """A figure that stands large at the top."""

    name: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Pictures and tables of one subject; ``small``: pictures in more columns; ``open``: tables not folded."""

    id: str
    title: str
    intro: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    small: bool = False
    open: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that a report shows."""

    name: str
    state: str
    finished: bool
    subtitle: str
    tiles: Sequence[Tile]
    findings: Sequence[Finding]
    sections: Sequence[Section]
    command: str
    yaml: str
    facts: Sequence[dict[str, Any]]
    version: str

    @property
    def picture_count(self) -> int:
        return sum(len(section.pictures) for section in self.sections)


def make_page(run: Run, files: Sequence[ExportedFile]) -> Page:
    """The contents of the report."""
    total = f" of {run.total_steps}" if run.total_steps else ""
    sections = [
        _training(run),
        _weights(run),
        _activations(run),
        _teacher(run),
        _exported(files),
        _histograms(run),
    ]
    return Page(
        name=run.name,
        state="finished" if run.finished else f"not finished: step {run.step}{total}",
        finished=run.finished,
        subtitle=_subtitle(run),
        tiles=_tiles(run, files),
        findings=findings(run, files),
        sections=[section for section in sections if section.pictures or section.tables],
        command=command(run),
        yaml=settings_yaml(run),
        facts=_facts(run),
        version=__version__,
    )


def to_html(page: Page) -> str:
    """The page. Everything in it is escaped, but the pictures, which escape what they hold themselves."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    sections = [
        dataclasses.replace(
            section, pictures=[dataclasses.replace(each, svg=Markup(each.svg)) for each in section.pictures]
        )
        for section in page.sections
    ]
    return environment.get_template("page.html").render(
        page=dataclasses.replace(page, sections=sections), script=Markup(_SCRIPT), script_hash=f"sha256-{digest}"
    )


def _subtitle(run: Run) -> str:
    config = run.config
    parts = [run.described.get("model"), run.described.get("data")]
    if config:
        parts.append(f"{config['sparsity']:.0%} sparsity, {config['weight_bits']}-bit weights")
        parts.append(f"{config['act_bits']}-bit activations")
    elif run.facts or run.described:
        parts.append("float training")
    parts.append(f"directory {run.path}")
    return " · ".join(str(part) for part in parts if part)


def _tiles(run: Run, files: Sequence[ExportedFile]) -> list[Tile]:
    tiles = []
    if run.best:
        tiles.append(Tile("best validation accuracy", f"{run.best['accuracy']:.2%}", f"after step {run.best['step']}"))
    elif accuracies := run.curve("val_accuracy")[1]:
        tiles.append(Tile("validation accuracy", f"{accuracies[-1]:.2%}", "the last one"))
    if sparsities := run.curve("sparsity")[1]:
        tiles.append(Tile("sparsity", f"{sparsities[-1]:.1%}", "of the prunable weights"))
    for file in files[:1]:
        less = file.float_bytes / file.total_bytes
        tiles.append(Tile("file", f"{file.total_bytes / 1000:,.1f} kB", f"{less:.1f}x less than float32 weights"))
        tiles.append(Tile("latency", f"{file.latency_us:,.0f} µs", "a sample, one thread, here"))
    if run.diagnoses and run.diagnoses[-1]["logits_sqnr_db"] is not None:
        last = run.diagnoses[-1]
        tiles.append(Tile("SQNR of the logits", f"{last['logits_sqnr_db']:.1f} dB", "by quantization alone"))
        if last["agreement"]:
            share = last["agreement"]["same_class"]
            tiles.append(Tile("teacher and student", f"{share:.0%}", "of the samples: same class"))
    return tiles


def _training(run: Run) -> Section:
    drawn = [*pictures.training_curves(run), *pictures.schedule(run)]
    edges = (
        " Dashed: where quantization begins, the final sparsity is reached, and phase 2 (or a teacher before) begins."
        if run.config
        else ""
    )
    return Section(
        id="training",
        title="Training",
        intro=f"Losses are means since the line before.{edges}",
        pictures=drawn,
        tables=[tables.metrics(run)] if run.metrics else [],
    )


def _weights(run: Run) -> Section:
    if not run.diagnoses:
        return Section(id="weights", title="Weights", intro="")
    last = run.diagnoses[-1]
    layers = last["layers"]
    names = [layer["name"] for layer in layers]
    zeros = {
        "pruned": [100 * layer["sparsity"] for layer in layers],
        "rounded to 0": [100 * layer["rounded_to_zero"] for layer in layers],
    }
    drawn = [pictures.layer_bars("zeros", "Zeros in each layer", names, zeros, "% of the weights", limit=100)]
    sqnr = {"weights": [layer["sqnr_db"] for layer in layers]}
    if any(value is not None for value in sqnr["weights"]):
        drawn.append(pictures.layer_lines("sqnr", "SQNR of the weights", names, sqnr, "dB", LEAST_WEIGHT_SQNR))
    if (drift := pictures.drift(run)) is not None:
        drawn.append(drift)
    return Section(
        id="weights",
        title="Weights",
        intro=f"After step {last['step']}. SQNR: power of the kept weights over that of their rounding errors; below "
        "the red line it is a finding. Layers are numbered as in the table.",
        pictures=drawn,
        tables=[tables.layers(last)],
        open=True,
    )


def _activations(run: Run) -> Section:
    if not run.diagnoses or not run.diagnoses[-1]["activations"]:
        return Section(id="activations", title="Activations", intro="")
    last = run.diagnoses[-1]
    found = last["activations"]
    names = [quantizer["name"] for quantizer in found]
    series = {
        "this quantizer alone": [quantizer["sqnr_db"] for quantizer in found],
        "all up to here": [quantizer["accumulated_sqnr_db"] for quantizer in found],
    }
    title = "SQNR of the activations"
    drawn = []
    if any(value is not None for values in series.values() for value in values):
        drawn.append(pictures.layer_lines("activations", title, names, series, "dB", LEAST_ACTIVATION_SQNR))
    shares = {"constant channels": [100 * q["constant_channels"] / max(1, q["channels"]) for q in found]}
    if any(shares["constant channels"]):
        drawn.append(
            pictures.layer_bars("constant", "Channels that never change", names, shares, "% of channels", limit=100)
        )
    return Section(
        id="activations",
        title="Activations",
        intro=f"Over {last['samples']} validation samples. A quantizer that is below the red line by itself is a "
        "finding. The line of all up to here is against the same pruned network in float.",
        pictures=drawn,
        tables=[tables.activations(last)],
    )


def _teacher(run: Run) -> Section:
    drawn = pictures.agreement(run)
    return Section(
        id="teacher",
        title="Teacher and student",
        intro="Phase 2: the weights pruned away, and the important ones, together teach the pruned network.",
        pictures=drawn,
        tables=[tables.teacher(run)] if drawn else [],
    )


def _exported(files: Sequence[ExportedFile]) -> Section:
    return Section(
        id="files",
        title="Exported files",
        intro="Timed when this page was written: one sample, one thread, the least of 25 rounds.",
        pictures=file_pictures(files),
        tables=[tables.files(files)] if files else [],
        open=True,
    )


def _histograms(run: Run) -> Section:
    drawn = [picture for _, picture in histograms(run)]
    most = f" The first {MOST_LAYERS} layers." if len(drawn) == MOST_LAYERS else ""
    return Section(
        id="histograms",
        title="Histograms",
        intro=f"Weights of the checkpoint of step {run.weights_step}: those that are kept, and their codes.{most}",
        pictures=drawn,
        small=True,
    )


def _facts(run: Run) -> list[dict[str, Any]]:
    facts = run.facts
    settings = {name: value for name, value in facts.get("settings", {}).items() if not name.startswith("config.")}
    state = {
        "directory": run.path,
        "last step": run.step,
        "last checkpoint": "none" if run.checkpoint_step is None else f"step {run.checkpoint_step}",
        "best": "none yet" if not run.best else f"step {run.best['step']}, {run.best['accuracy']:.4%}",
    }
    data = {f"{name} data, SHA-256": value for name, value in facts.get("data", {}).items()}
    found = [state | data, dict(facts.get("environment", {})), settings]
    return [values for values in found if values]
