"""``pqk verify``: is this file whole, and the one I mean?"""

from __future__ import annotations

import re
from typing import Annotated

import typer

from pqk_ext.cli.failures import ExitCode, Failure, reading
from pqk_ext.cli.options import JsonPath, Network, load_network
from pqk_ext.cli.output import check_json, emit


def verify(
    file: Network,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="SHA-256 that the file must have.")
    ] = None,
    json: JsonPath = None,
) -> None:
    """Check a file: digest, structure, every value; print its SHA-256. Needs no torch."""
    from pqk_ext.runtime import format

    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise Failure(ExitCode.USAGE, f"--sha256: expected 64 hexadecimal digits, got {sha256!r}")
    check_json(json)
    load_network(file, sha256=sha256)  # the engine's own checks too
    with reading(file):
        info = format.inspect(file)
    values = {
        "file": str(file),
        "ok": True,
        "sha256": info.sha256,
        "version": list(info.version),
        "bytes": info.total_bytes,
        "nodes": info.nodes,
    }
    emit(values, json, f"{info.sha256}  {file}")
