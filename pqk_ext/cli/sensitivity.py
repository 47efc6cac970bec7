"""``pqk sensitivity``: which layers bear pruning and few bits, and a config chosen from that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pqk_ext.cli import datasets, run_folder
from pqk_ext.cli.failures import ExitCode, Failure
from pqk_ext.cli.options import DataSpec, Force, JsonPath
from pqk_ext.cli.output import check_json, check_output, emit, progress_bar, replace_file, table

if TYPE_CHECKING:
    from pqk_ext.config import PQKConfig
    from pqk_ext.sensitivity import Sensitivity


def sensitivity(
    data: DataSpec,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="A network of the zoo.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="With the weights in the package.")] = False,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", metavar="DIR", help="Or the best weights of a run of pqk train.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Of the validation data, taken evenly.")] = 512,
    rows: Annotated[
        Path | None,
        typer.Option("--rows", metavar="FILE.jsonl", help="Keep each result here; started again, go on from it."),
    ] = None,
    target_bytes: Annotated[
        int | None, typer.Option("--target-bytes", min=1, help="Choose settings for a file of this size.")
    ] = None,
    target_accuracy: Annotated[
        float | None,
        typer.Option("--target-accuracy", min=0, max=1, help="Choose the smallest file with it, before training."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE.yaml", help="All other settings of the chosen config.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.yaml", help="Write the chosen config for pqk train.")
    ] = None,
    force: Force = False,
    json: JsonPath = None,
) -> None:
    """Prune and quantize each layer by itself, measure what is lost, and choose settings for a size or an accuracy."""
    from pqk_ext.sensitivity import choose_config
    from pqk_ext.sensitivity import sensitivity as measure
    from pqk_ext.training import keep_freed_memory

    keep_freed_memory()
    check_json(json)
    wants = target_bytes is not None or target_accuracy is not None
    _check(model, run_dir, target_bytes, target_accuracy, output)
    if output is not None:
        check_output(output, force=force)
    settings = _read_config(config)
    name = datasets.parse(data)
    network = _network(model, pretrained, run_dir, name.classes)
    x, y = _samples(name, samples)
    with progress_bar() as bar:
        task = bar.add_task("layers", total=None)
        found = measure(
            network,
            x,
            y,
            granularity=settings.granularity,
            path=rows,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    values: dict[str, Any] = found.to_dict()
    shown = [_table(found)]
    if wants:
        chosen = choose_config(
            network, x, y, settings, target_bytes=target_bytes, target_accuracy=target_accuracy, table=found
        )
        values["config"] = chosen.to_dict()
        shown.append(_chosen(chosen))
        if output is not None:
            replace_file(output, chosen.to_yaml().encode())
    emit(values, json, *shown)


def _check(
    model: str | None,
    run_dir: Path | None,
    target_bytes: int | None,
    target_accuracy: float | None,
    output: Path | None,
) -> None:
    if (model is None) == (run_dir is None):
        raise Failure(ExitCode.USAGE, "--model, --run-dir: expected exactly one of the two")
    if target_bytes is not None and target_accuracy is not None:
        raise Failure(ExitCode.USAGE, "--target-bytes, --target-accuracy: expected at most one of the two")
    if output is not None and target_bytes is None and target_accuracy is None:
        raise Failure(ExitCode.USAGE, "--output: a config is chosen only with --target-bytes or --target-accuracy")


def _read_config(path: Path | None) -> PQKConfig:
    from pqk_ext.cli.train import read_config
    from pqk_ext.config import PQKConfig

    return read_config(path) or PQKConfig()


def _network(model: str | None, pretrained: bool, run_dir: Path | None, classes: int) -> Any:
    if run_dir is not None:
        return run_folder.trained_model(run_dir)
    options: dict[str, Any] = {"num_classes": classes} | ({"pretrained": True} if pretrained else {})
    return run_folder.make_model(str(model), options).eval()


def _samples(name: datasets.DataName, count: int) -> Any:
    import numpy as np
    import torch

    x, y = datasets.arrays(name, "validation")
    chosen = np.linspace(0, len(x) - 1, min(count, len(x))).astype(int)
    return torch.from_numpy(x[chosen]), torch.from_numpy(y[chosen])


def _table(found: Sensitivity) -> Any:
    settings = list(dict.fromkeys((row.sparsity, row.weight_bits) for row in found.rows))
    heads = [f">{sparsity:.0%}, {bits} bits" for sparsity, bits in settings]
    by_layer = {layer: [row for row in found.rows if row.layer == layer] for layer in found.layers()}
    title = f"KL divergence from the float outputs, {found.samples} samples (float: {found.accuracy:.2%} right)"
    return table(
        title,
        ["layer", *heads],
        ([layer, *(f"{row.kl:.4f}" for row in own)] for layer, own in by_layer.items()),
    )


def _chosen(config: PQKConfig) -> Any:
    rows = (
        (pattern.replace("\\", ""), f"{own['sparsity']:.0%}", own["weight_bits"])
        for pattern, own in config.layers.items()
    )
    return table("chosen", ["layer", ">sparsity", ">weight bits"], rows)
