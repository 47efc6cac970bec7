"""One recipe with one seed, in one directory: from nothing to measured files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pqk_ext import models
from pqk_ext.data.named import parse
from pqk_ext.device import usable_device
from pqk_ext.methods._registry import METHODS
from pqk_ext.methods.data import Data, augmentation, load_data
from pqk_ext.methods.recipe import Recipe
from pqk_ext.methods.result import accuracy, deploy
from pqk_ext.models.pretrained import load_archive
from pqk_ext.preparation import PreparedModel, prepare
from pqk_ext.runtime.replace import replace_file
from pqk_ext.training import ResumeMismatchError, fit
from pqk_ext.training.data import derived_seed
from pqk_ext.training.trainee import config_of

__all__ = ["Run", "run"]

Model = TypeVar("Model", bound=nn.Module)


class Run:
    """What a method works with.

    Attributes:
        recipe: the recipe.
        settings: what only the method has: an instance of its dataclass.
        seed: of everything random.
        directory: of this run; each stage has a folder in it.
        data: all splits in memory.
        facts: JSON values that the method wants in ``result.json``. ``accuracies`` (name -> ``test_accuracy``,
            ``validation_accuracy``) are of what has no file, and become rows where runs are compared.
        extra_steps: optimizer steps that were not spent on the deployed network, such as a teacher's.
        progress: show bars if stderr is a terminal.
        device: where the data lie and networks are trained.
    """

    def __init__(
        self,
        recipe: Recipe,
        directory: Path,
        seed: int,
        *,
        progress: bool = True,
        device: str | torch.device | None = None,
    ) -> None:
        self.recipe, self.settings, self.seed, self.directory = recipe, recipe.settings, seed, directory
        self.device = usable_device(device)
        data = load_data(recipe.data, recipe.pixels)
        learned = data.learning_all() if recipe.training.learn_from == "train+validation" else data
        self.data: Data = learned.to(self.device)
        self.facts: dict[str, Any] = {}
        self.extra_steps = 0
        self.progress = progress

    @property
    def example_inputs(self) -> Tensor:
        """One sample, to trace networks with."""
        return self.data.train[0][:1]

    def network(
        self, name: str | None = None, *, pretrained: bool | str | None = None, draw: int = 0, **options: Any
    ) -> nn.Module:
        """A float network as training begins with it.

        Args:
            name: of the zoo; default: the recipe's.
            pretrained: as in recipes; default: the recipe's, or False for another network.
            draw: number of the initialization: networks of equal seed and draw begin alike.
            options: of the network's function, besides the number of classes.
        """
        chosen = name or self.recipe.model
        if pretrained is None:
            pretrained = self.recipe.pretrained if chosen == self.recipe.model else False
        torch.manual_seed(derived_seed(self.seed, draw))
        if pretrained is True:
            options = {"pretrained": True, **options}
        model = models.create(chosen, num_classes=self.data.classes, **options)
        if isinstance(pretrained, str):
            load_archive(model, Path(parse(self.recipe.data).folder) / pretrained)
        if not self.recipe.training.dropout:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        return model.to(self.device)

    def prepare(self, model: nn.Module, *, steps: int | None = None, **changes: Any) -> PreparedModel:
        """``pqk_ext.prepare`` with the recipe's settings, some of which may be changed."""
        return prepare(model, self.recipe.config(steps, **changes), example_inputs=self.example_inputs)

    def fit(self, stage: str, model: Model, *, steps: int | None = None, draw: int = 0, **changes: Any) -> Model:
        """Trains a network, a prepared model or a trainee with the recipe's settings, and resumes where it can.

        Args:
            stage: name of the folder.
            model: what to train.
            steps: of this stage; default: those of a prepared model, or the recipe's.
            draw: number of the order of samples; networks of equal seed and draw see the same batches.
            changes: other values for fields of the recipe's ``training``.

        Returns:
            ``model`` with the last weights, in evaluation mode.
        """
        config = config_of(model)
        length = config.total_steps if config is not None else steps or self.recipe.training.steps
        training = dataclasses.replace(self.recipe.training, **{"steps": length, **changes})
        with self.timed():
            fit(
                model,
                self.data.train,
                self.data.validation,
                None,
                self.directory / stage,
                steps=length if steps is None else steps,
                batch_size=training.batch_size,
                lr=training.lr,
                phase2_lr_factor=None,
                weight_decay=training.weight_decay,
                momentum=training.momentum,
                optimizer=torch.optim.AdamW if training.optimizer == "adamw" else None,
                schedule=training.lr_factor,
                augment=augmentation(training.augment, self.data),
                autocast="bf16" if training.autocast == "bf16" else None,
                compile=training.compile,
                cuda_graphs=training.cuda_graphs and self.device.type == "cuda" and isinstance(model, PreparedModel),
                seed=derived_seed(self.seed, draw) if draw else self.seed,
                keep="last",
                device=self.device,
                tensorboard=False,
                progress=self.progress,
            )
        return model.eval()

    def accuracy(self, model: nn.Module, split: str = "validation") -> float:
        """Share of a split's samples that the network classifies correctly, in [0, 1]."""
        return accuracy(model, getattr(self.data, split))

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the seconds to those in the directory, also where training is interrupted."""
        begin = time.monotonic()
        try:
            yield
        finally:
            seconds = self.seconds + time.monotonic() - begin
            replace_file(self.directory / "seconds.json", json.dumps(seconds).encode())

    @property
    def seconds(self) -> float:
        """Time spent in training so far."""
        path = self.directory / "seconds.json"
        return float(json.loads(path.read_text())) if path.exists() else 0.0


def run(
    recipe: Recipe,
    directory: Path,
    *,
    seed: int = 0,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Runs a recipe: trains, writes a ``.pqk`` file of each network, compares bits, measures.

    A run that was stopped goes on when it is started again with the same arguments; one that is done gives its result.

    Args:
        recipe: what to do.
        directory: of the run; made if absent.
        seed: of everything random.
        progress: show bars if stderr is a terminal.
        device: where to train, ``"cpu"`` or ``"cuda"``. Files are measured on the CPU in either case.

    Returns:
        What ``directory/result.json`` holds: ``recipe``, ``seed``, ``networks`` (by name, what
        :func:`pqk_ext.methods.result.deploy` measures), ``steps``, ``extra_steps``, ``seconds``, ``device``, ``facts``.

    Raises:
        ResumeMismatchError: the directory holds a run of another recipe or seed.
        RuntimeError: a device that cannot be used here; says why.
        DataError: the data are missing or damaged.
    """
    device = usable_device(device)
    directory.mkdir(parents=True, exist_ok=True)
    _describe(directory, {"recipe": recipe.to_dict(), "seed": seed})
    path = directory / "result.json"
    if path.exists():
        done: dict[str, Any] = json.loads(path.read_text())
        return done
    work = Run(recipe, directory, seed, progress=progress, device=device)
    networks = METHODS[recipe.method].train(work)
    measured = {name: deploy(model, directory / f"{name}.pqk", work.data) for name, model in networks.items()}
    result = {
        "recipe": recipe.to_dict(),
        "seed": seed,
        "networks": measured,
        "steps": recipe.training.steps,
        "extra_steps": work.extra_steps,
        "seconds": work.seconds,
        "device": device.type,
        "facts": work.facts,
    }
    replace_file(path, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    return result


def _describe(directory: Path, values: dict[str, Any]) -> None:
    """Writes what the directory is for, or compares it with what it says already."""
    path = directory / "recipe.json"
    if not path.exists():
        if any(directory.iterdir()):
            raise FileExistsError(17, "is not empty, and holds no run of a recipe", str(directory))
        replace_file(path, (json.dumps(values, indent=2) + "\n").encode())
        return
    stored = json.loads(path.read_text())
    if stored != values:
        old, new = _flat(stored), _flat(values)
        names = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
        words = "; ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in sorted(names))
        raise ResumeMismatchError(f"{directory}: the run on disk cannot go on: {words}")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
