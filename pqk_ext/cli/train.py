"""``pqk train``: a network of the zoo on one of the data sets, float or with PQK, in a run directory."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pqk_ext.cli import datasets, run_folder
from pqk_ext.cli.failures import ExitCode, Failure
from pqk_ext.cli.options import DeviceName, JsonPath, OptionalDataSpec
from pqk_ext.cli.output import check_json, emit
from pqk_ext.cli.train_recipe import changes_of, check_device, run_recipe

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

    from pqk_ext.config import PQKConfig


def train(
    context: typer.Context,
    run_dir: Annotated[Path, typer.Option("--run-dir", metavar="DIR", help="Directory of the run; made if absent.")],
    data: OptionalDataSpec = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="A network of the zoo, such as ds_cnn.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME", help="A published method: its name in the package, or a .yaml file."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe: training.steps=100, pqk.sparsity=0.95."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE.yaml", help="Settings of PQK; without it: a float network.")
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from the weights in the package.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the directory.")] = False,
    allow_inexact: Annotated[
        bool, typer.Option("--allow-inexact", help="Resume although versions, threads or CPU differ.")
    ] = False,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="In place of the config's total_steps.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 128,
    optimizer: Annotated[str, typer.Option("--optimizer", help="sgd (Nesterov momentum) or adamw.")] = "sgd",
    lr: Annotated[float, typer.Option("--lr", help="Learning rate; for adamw try 0.005.")] = 0.1,
    weight_decay: Annotated[float, typer.Option("--weight-decay")] = 1e-4,
    momentum: Annotated[float, typer.Option("--momentum")] = 0.9,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    device: DeviceName = "cpu",
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that load data.")] = 0,
    diagnose_every: Annotated[
        int, typer.Option("--diagnose-every", min=0, help="Steps between diagnoses for pqk report; 0: none.")
    ] = 200,
    json: JsonPath = None,
) -> None:
    """Train a network; stopped at any time, it goes on with --resume and ends with the same bits.

    With --recipe: everything from training to a measured file, by a published method. The same command goes on.

    On several processes: torchrun --no-python --nproc-per-node 2 pqk train ...
    """
    from pqk_ext.training import TrainingInterrupted, fit

    if recipe is not None:
        check_json(json)
        run_recipe(context, recipe, changes_of(set_ or [], data, model), run_dir, seed, device, json)
        return
    if set_:
        raise Failure(ExitCode.USAGE, "--set: needs --recipe")
    if data is None or model is None:
        raise Failure(ExitCode.USAGE, f"--{'data' if data is None else 'model'}: needed without --recipe")
    if optimizer not in ("sgd", "adamw"):
        raise Failure(ExitCode.USAGE, f"--optimizer: expected sgd or adamw, got {optimizer!r}")
    check_json(json)
    check_device(device)
    settings = read_config(config)
    if settings is None and epochs is None:
        raise Failure(ExitCode.USAGE, "--epochs: needed without --config, which else gives the length of the run")
    main = os.environ.get("RANK", "0") == "0"  # under torchrun process 0 writes
    if main:
        _check_run_dir(run_dir, resume=resume)
    network, parts, run = _open(data, model, pretrained)
    if settings is not None and epochs is not None:
        steps = epochs * max(1, len(parts[0]) // batch_size)  # type: ignore[arg-type]
        settings = dataclasses.replace(settings, total_steps=steps)
    if main:
        run_folder.describe(run_dir, run | {"config": None if settings is None else settings.to_dict()})
    try:
        result = fit(
            network,
            parts[0],
            parts[1],
            settings,
            run_dir,
            epochs=epochs if settings is None else None,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            optimizer=_adamw() if optimizer == "adamw" else None,
            seed=seed,
            device=device,
            num_workers=workers,
            diagnose_every=diagnose_every,
            resume="auto" if resume else "never",
            allow_inexact=allow_inexact,
        )
    except TrainingInterrupted:
        if not main:
            raise
        words = [*context.obj, *([] if resume else ["--resume"])]
        print(f"pqk: this goes on with it: pqk {shlex.join(words)}", file=sys.stderr)
        raise
    if not main:
        return
    values = {
        "run_dir": str(run_dir),
        "best_step": result.best_step,
        "best_validation_accuracy": result.best_accuracy,
        "checkpoint": str(result.checkpoint),
    }
    best = f"best validation accuracy {result.best_accuracy:.2%} after step {result.best_step}"
    emit(values, json, f"{best}; checkpoint {result.checkpoint}")


def _open(data: str, model: str, pretrained: bool) -> tuple[nn.Module, list[Dataset[Any]], dict[str, Any]]:
    """The network, the training and the validation data, and what tells this run from others."""
    name = datasets.parse(data)
    options: dict[str, Any] = {"num_classes": name.classes} | ({"pretrained": True} if pretrained else {})
    network = run_folder.make_model(model, options)
    parts = [datasets.open_dataset(name, split) for split in ("train", "validation")]
    _check_fits(network, model, parts[0], data)
    shape = list(parts[0][0][0].shape)
    return network, parts, {"model": model, "options": options, "data": data, "input_shape": shape}


def _adamw() -> Any:
    import torch

    return torch.optim.AdamW


def read_config(path: Path | None) -> PQKConfig | None:
    from pqk_ext.config import PQKConfig

    if path is None:
        return None
    try:
        return PQKConfig.load_yaml(path)
    except OSError as error:
        raise Failure(ExitCode.USAGE, f"--config: {path}: cannot read: {error.strerror}") from error


def _check_run_dir(run_dir: Path, *, resume: bool) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise Failure(ExitCode.ENVIRONMENT, f"{run_dir}: exists and is no directory")
    if not resume and run_dir.is_dir() and any(run_dir.iterdir()):
        raise Failure(ExitCode.ENVIRONMENT, f"{run_dir}: is not empty; --resume goes on with the run in it")


def _check_fits(network: nn.Module, model: str, dataset: Dataset[Any], data: str) -> None:
    """One sample through the network, so that a wrong pair of model and data is refused before anything is written."""
    import torch

    x = dataset[0][0][None]
    try:
        with torch.no_grad():
            network.eval()(x)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise Failure(
            ExitCode.USAGE, f"--model {model}: does not take samples of {data}, {tuple(x.shape[1:])}: {reason}"
        ) from error
    network.train()
