"""``pqk run``: one array through one network."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pqk_ext.cli.failures import ExitCode, Failure, reading
from pqk_ext.cli.options import DeviceName, Force, JsonPath, Network, Threads, load_network
from pqk_ext.cli.output import check_json, check_output, emit, replace_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SHOWN_SAMPLES = 10


def run_file(
    file: Network,
    array: Annotated[Path, typer.Argument(metavar="INPUT.npy", help="float32 array (N, ...), NumPy's .npy format.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.npy", help="File for the result, (N, ...) float32.")
    ] = None,
    threads: Threads = 1,
    device: DeviceName = "cpu",
    force: Force = False,
    json: JsonPath = None,
) -> None:
    """Run a file on an array. Needs no torch."""
    import numpy as np

    check_json(json)
    if output is not None:
        check_output(output, force=force)
    network = load_network(file, threads=threads, device=device)
    x = _read_array(array)
    try:
        y = network(x)
    except (TypeError, ValueError) as error:
        raise Failure(ExitCode.BAD_FILE, f"{array}: {error}") from error
    if output is not None:
        buffer = io.BytesIO()
        np.save(buffer, y, allow_pickle=False)
        replace_file(output, buffer.getvalue())
    values: dict[str, Any] = {
        "file": str(file),
        "samples": len(y),
        "input_shape": list(x.shape),
        "output_shape": list(y.shape),
        "output": None if output is None else str(output),
    }
    lines = [f"{len(y)} samples -> float32 {tuple(y.shape)}" + (f" in {output}" if output else "")]
    if y.ndim == 2:
        values["predictions"] = y.argmax(1).tolist()
        shown = ", ".join(map(str, values["predictions"][:_SHOWN_SAMPLES]))
        lines.append(f"largest output of each sample: {shown}{', ...' if len(y) > _SHOWN_SAMPLES else ''}")
    emit(values, json, "\n".join(lines))


def _read_array(path: Path) -> NDArray[np.float32]:
    import numpy as np

    with reading(path):
        data = path.read_bytes()
    try:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise Failure(ExitCode.BAD_FILE, f"{path}: not a whole .npy file: {error}") from error
    result: NDArray[np.float32] = array
    return result
