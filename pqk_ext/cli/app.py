"""The command line as a whole: its commands, its help, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer

import pqk_ext
from pqk_ext.cli import bench, compare, demo, evaluate, export, inspect, report, run_file, sensitivity, train, verify
from pqk_ext.cli.failures import ExitCode, classify

__all__ = ["app", "run"]

_EPILOG = """Examples:

pqk demo --json report.json

pqk train --data keyword_spotting --model ds_cnn --pretrained --config pqk.yaml --run-dir runs/kws

pqk report runs/kws

pqk compare --methods pqk,pqk:pqk.teacher=false --out runs/teacher

pqk export runs/kws -o kws.pqk

pqk eval kws.pqk --data keyword_spotting

pqk run kws.pqk clips.npy -o logits.npy

pqk bench kws.pqk --batch 1 --threads 1

Exit codes: 0 fine, 1 failed, 2 usage or configuration, 3 bad file or data, 4 environment (output exists or cannot be
written), 5 the run on disk was started otherwise, 130 and 143 signals.
"""

app = typer.Typer(
    name="pqk",
    help="Small, fast neural networks: pruning, quantization and knowledge distillation.",
    epilog=_EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("compare")(compare.compare)
app.command("sensitivity")(sensitivity.sensitivity)
app.command("eval")(evaluate.evaluate)
app.command("export")(export.export)
app.command("run")(run_file.run_file)
app.command("report")(report.report)
app.command("inspect")(inspect.inspect)
app.command("bench")(bench.bench)
app.command("verify")(verify.verify)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"pqk {pqk_ext.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and gives its exit code; prints one line on stderr if it fails."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    previous = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, _end)
    except ValueError:  # not the main thread
        previous = None
    try:
        return _run(words)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # temporary files go, as on any other way out


def _run(words: list[str]) -> int:
    try:
        result = typer.main.get_command(app).main(
            words or ["--help"], prog_name="pqk", standalone_mode=False, obj=words
        )
        sys.stdout.flush()
    except BrokenPipeError:
        return _end_quietly()
    except (KeyboardInterrupt, typer.Abort):
        return _fail(128 + signal.SIGINT, "interrupted")
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer's way to report it
            return _end_quietly()
        return error.code if isinstance(error.code, int) else ExitCode.FAILED
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of typer, whose class is not public
            return _fail(ExitCode.USAGE, " ".join(error.format_message().split()))
        if "--debug" in words[:2]:
            traceback.print_exc()
        return _fail(*classify(error))
    return result if isinstance(result, int) else ExitCode.FINE


def _end_quietly() -> int:
    """The reader of stdout has seen enough. Nothing must be flushed into the closed pipe when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return ExitCode.FINE


def _fail(code: int, message: str) -> int:
    print(f"pqk: error: {message}", file=sys.stderr)
    return int(code)
