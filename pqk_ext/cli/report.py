"""``pqk report``: a run as one HTML page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pqk_ext.cli.failures import ExitCode, Failure, reading
from pqk_ext.cli.options import Force, JsonPath
from pqk_ext.cli.output import check_json, check_output, emit, kilobytes, replace_file
from pqk_ext.errors import DataError

if TYPE_CHECKING:
    from pqk_ext.report import ExportedFile, Run
    from pqk_ext.report.files import Samples

_NAME = "report.html"


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A directory of pqk train or of fit.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PAGE.html", help="Default: report.html in RUN_DIR, replaced."),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", metavar="NET.pqk", help="Also this exported file; those in RUN_DIR are found."),
    ] = None,
    force: Force = False,
    json: JsonPath = None,
) -> None:
    """Write a run as one HTML page: curves, layers, exported files, findings. It may still be running."""
    _check_installed()
    check_json(json)
    _check_run(run_dir)
    target = output if output is not None else run_dir / _NAME
    check_output(target, force=force or output is None)
    from pqk_ext.report import make_page, read_run, to_html

    with reading(run_dir):
        run = read_run(run_dir)
    files = _measure(run, file or [])
    page = make_page(run, files)
    html = to_html(page).encode()
    replace_file(target, html)
    values: dict[str, Any] = {
        "page": str(target),
        "bytes": len(html),
        "pictures": page.picture_count,
        "finished": run.finished,
        "step": run.step,
        "total_steps": run.total_steps,
        "best": run.best,
        "files": [
            {"file": str(f.path), "bytes": f.total_bytes, "latency_us": f.latency_us, "accuracy": f.accuracy}
            for f in files
        ],
        "findings": [{"severe": f.severe, "where": f.where, "text": f.text} for f in page.findings],
        "diagnosis": run.diagnoses[-1] if run.diagnoses else None,
    }
    lines = [f"{'! ' if finding.severe else '- '}{finding.where}: {finding.text}" for finding in page.findings]
    emit(values, json, *lines, f"{target}: {page.picture_count} pictures, {kilobytes(len(html))}")


def _check_installed() -> None:
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise Failure(ExitCode.ENVIRONMENT, f"needs {' and '.join(missing)}: pip install 'pqk_ext[report]'")


def _check_run(run_dir: Path) -> None:
    """Before the slow imports: most wrong directories are misspelt ones."""
    if not run_dir.is_dir():
        kind = "not a directory" if run_dir.exists() else "no such directory"
        raise Failure(ExitCode.BAD_FILE, f"{run_dir}: {kind}")


def _measure(run: Run, given: list[Path]) -> list[ExportedFile]:
    """The files named and those in the directory, each once."""
    from pqk_ext.report import measure

    found: dict[Path, Path] = {}
    for path in [*given, *sorted(run.path.glob("*.pqk"))]:
        found.setdefault(path.resolve(), path)
    samples = _samples(run) if found else None
    measured = []
    for path in found.values():
        with reading(path):
            try:
                measured.append(measure(path, samples))
            except (TypeError, RuntimeError) as error:
                raise Failure(ExitCode.BAD_FILE, f"{path}: does not take the samples of this run: {error}") from error
    return measured


def _samples(run: Run) -> Samples | None:
    """The validation data that a run of ``pqk train`` names, where they can be had."""
    from pqk_ext.cli import datasets

    try:
        loaded = datasets.arrays(datasets.parse(str(run.described["data"])), "validation")
    except (KeyError, Failure, DataError, OSError):
        return None
    return lambda: loaded
