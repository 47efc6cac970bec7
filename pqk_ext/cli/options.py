"""Options and arguments that several commands have, and how they read a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pqk_ext.cli.failures import ExitCode, Failure, reading

if TYPE_CHECKING:
    from pqk_ext.runtime import Model

__all__ = ["DataSpec", "DeviceName", "Force", "JsonPath", "Network", "OptionalDataSpec", "Threads", "load_network"]

Network = Annotated[Path, typer.Argument(metavar="FILE", help="A .pqk file.")]
JsonPath = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON, replacing FILE; - for standard output."),
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads that one call may use.")]
DeviceName = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="Where to compute: cpu, cuda or cuda:N. Never another one.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
_DATA = typer.Option(
    "--data",
    metavar="DATA",
    help="keyword_spotting (inside the package), cifar10:DIR, cifar100:DIR or speech_commands:DIR.",
)
DataSpec = Annotated[str, _DATA]
OptionalDataSpec = Annotated[str | None, _DATA]


def load_network(path: Path, *, threads: int = 1, sha256: str | None = None, device: str = "cpu") -> Model:
    """Reads a file, with an error that names it, or a device that cannot be used."""
    from pqk_ext import runtime
    from pqk_ext.runtime import cuda

    try:
        on_cuda = cuda.index_of(device) is not None
    except ValueError as error:
        raise Failure(ExitCode.USAGE, f"--{error}") from error
    with reading(path):
        try:
            return runtime.load(path, num_threads=threads, sha256=sha256, device=device)
        except RuntimeError as error:
            if not on_cuda:
                raise
            raise Failure(ExitCode.USAGE, f"--device {device}: {error}") from error
