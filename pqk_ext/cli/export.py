"""``pqk export``: a run, or a network of the zoo, becomes one ``.pqk`` file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pqk_ext.cli.failures import ExitCode, Failure
from pqk_ext.cli.options import Force, JsonPath
from pqk_ext.cli.output import check_json, check_output, emit, kilobytes
from pqk_ext.runtime.format import SPEED_TOLERANCE

if TYPE_CHECKING:
    from torch import Tensor

_CALIBRATION_SAMPLES = 512


def export(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="NET.pqk", help="File to write.")],
    run_dir: Annotated[Path | None, typer.Argument(metavar="RUN_DIR", help="A directory of pqk train.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Instead: a network of the zoo.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="With --model: the weights in the package.")] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            metavar="DATA",
            help="Data (as for pqk eval --data) that give a float network its activation ranges: 512 training samples.",
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option("--codec", metavar="NAME", help="One codec for all weights, instead of the best for each."),
    ] = None,
    speed_tolerance: Annotated[
        float,
        typer.Option(
            "--speed-tolerance",
            metavar="SHARE",
            min=0,
            help="How much longer weights may be to be decoded faster; 0 gives the smallest file.",
        ),
    ] = SPEED_TOLERANCE,
    force: Force = False,
    json: JsonPath = None,
) -> None:
    """Write the integer network of a run, or of a float network after calibration (no training)."""
    from pqk_ext import deploy
    from pqk_ext.cli import run_folder
    from pqk_ext.preparation import PreparedModel
    from pqk_ext.runtime import format

    if codec is not None and codec not in format.CODECS:
        raise Failure(ExitCode.USAGE, f"--codec {codec}: expected one of {', '.join(format.CODECS)}")
    if (run_dir is None) == (model is None):
        raise Failure(ExitCode.USAGE, "expected either a RUN_DIR or --model NAME")
    if model is not None and not pretrained:
        raise Failure(ExitCode.USAGE, f"--model {model}: untrained; --pretrained takes the weights in the package")
    check_json(json)
    check_output(output, force=force)
    samples = None if calibration is None else _calibration(calibration)
    if run_dir is not None:
        network = run_folder.trained_model(run_dir)
    else:
        network = run_folder.make_model(str(model), {"pretrained": True}).eval()
    if not isinstance(network, PreparedModel) and samples is None:
        raise Failure(ExitCode.USAGE, "--calibration: a float network needs data that give its activation ranges")
    deploy.export(
        network,
        output,
        example_inputs=None if samples is None else samples[:1],
        calibration=samples,
        codec=codec,
        speed_tolerance=speed_tolerance,
    )
    info = format.inspect(output)
    values = {"file": str(output), "bytes": info.total_bytes, "sha256": info.sha256, "nodes": info.nodes}
    emit(values, json, f"{output}: {info.total_bytes} bytes ({kilobytes(info.total_bytes)}), SHA-256 {info.sha256}")


def _calibration(data: str) -> Tensor:
    import torch

    from pqk_ext.cli import datasets

    dataset = datasets.open_dataset(datasets.parse(data), "train")
    count = len(dataset)  # type: ignore[arg-type]
    chosen = torch.linspace(0, count - 1, min(count, _CALIBRATION_SAMPLES)).long().tolist()
    return torch.stack([dataset[i][0] for i in chosen])
