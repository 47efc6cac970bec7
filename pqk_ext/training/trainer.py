"""One run in one directory: its state, its steps, and how it is saved and restored."""

from __future__ import annotations

import copy
import logging
import math
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.training.checkpoint import CheckpointStore, read_checkpoint
from pqk_ext.training.data import Batches, derived_seed, fingerprint
from pqk_ext.training.diagnostics_log import DiagnosticsLog
from pqk_ext.training.environment import describe_environment, random_states, restore_random_states
from pqk_ext.training.errors import (
    CheckpointError,
    CheckpointNotWrittenError,
    DivergedError,
    LoaderError,
    ResumeMismatchError,
    TrainingInterrupted,
)
from pqk_ext.training.group import Group
from pqk_ext.training.metrics import MetricsLog, ProgressBar
from pqk_ext.training.settings import Settings, compare_with_checkpoint
from pqk_ext.training.signals import SignalFlag, stop_after_step
from pqk_ext.training.step_loss import StepLoss
from pqk_ext.training.trainee import driver_of, network_of

__all__ = ["Trainer"]

_AUGMENT = 1  # keeps the augmentation's seeds apart from those of the order
_LOST_WORKER = re.compile(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)")
_LOSSES_AT_ONCE = 32  # that wait on a GPU until they are read, which waits for the GPU
_log = logging.getLogger(__name__)


class Trainer:
    """State and steps of a run; ``begin`` restores or starts it, ``run`` goes on to its end.

    The position in the data follows from the step alone: epoch ``step // len(train)``, batch ``step % len(train)``.
    """

    checkpoint_seconds: float = 300.0
    checkpoint_steps: int | None = None
    go_on_unsaved: bool = False

    def __init__(
        self, model: nn.Module, train: Batches, val: Batches, settings: Settings, run_dir: Path, group: Group
    ) -> None:
        self.model, self.train, self.val, self.settings = model, train, val, settings
        self.run_dir, self.group = run_dir, group
        self.driver = driver_of(model)
        self.device = next(model.parameters()).device
        self.step_loss = StepLoss(model, self.driver, settings)
        self._losses: list[Tensor] = []
        self._last_loss = math.nan
        self.store = CheckpointStore(run_dir)
        self.optimizer = settings.make_optimizer(model)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0
        self.last_checkpoint: Path | None = None
        self._saved = (-1, -1)
        # What else the run's future depends on, or its files hold; plain JSON values.
        self.progress: dict[str, Any] = {"validated_step": 0, "loss_sum": 0.0, "loss_count": 0, "notes": []}
        self.best: dict[str, Any] | None = None
        # Weights better than the stored best, not written yet.
        self.unsaved_best: dict[str, Any] | None = None

    # --- begin, save, restore ---------------------------------------------------------------------------------

    def begin(self, *, fresh: bool, allow_inexact: bool, tensorboard: bool) -> None:
        """Restores the newest checkpoint of the directory, or starts at step 0 where there never was one."""
        if fresh and self.store.holds_run():
            raise FileExistsError(17, "holds a run already; resume='auto' goes on with it", str(self.run_dir))
        self.facts = {
            "settings": self.settings.to_json(self.optimizer),
            "data": {"train": fingerprint(self.train), "val": fingerprint(self.val)},
            "environment": describe_environment(self.device, self.group.size),
        }
        self.train.move_to(self.device)
        self.val.move_to(self.device)
        self._check_processes(allow_inexact)
        step, state = self._load_newest()
        if state is None:
            self.step = self.driver.global_step
            self._open_metrics({"metrics_bytes": 0}, tensorboard)
            self.group.share_from_main(_tensors(self.model).values())
            self._seed()
            return
        inexact = compare_with_checkpoint(state["facts"], self.facts, allow_inexact=allow_inexact)
        self._restore(step, state)
        self._check_best(allow_inexact)
        self._open_metrics(state, tensorboard)
        if self.group.size == len(state["random"]):
            restore_random_states(state["random"][self.group.rank])
        else:
            self._seed()
        if inexact:
            self._note(f"resumed inexactly at step {step}: " + "; ".join(inexact))

    def _check_processes(self, allow_inexact: bool) -> None:
        """All processes are to compute the same; what would make a resumed run inexact only, can be allowed."""
        kinds = [kind for kind in self.facts if kind != "environment" or not allow_inexact]
        facts = {f"{kind}.{name}": value for kind in kinds for name, value in self.facts[kind].items()}
        shapes = {
            f"model.{name}": f"{value.dtype} {tuple(value.shape)}" for name, value in _tensors(self.model).items()
        }
        self.group.check_started_alike(facts | shapes)

    def _check_best(self, allow_inexact: bool) -> None:
        """The best weights are needed at the end: that their file is damaged must not be learnt only then."""
        if self.best is None:
            return
        try:
            self.store.load_best(self.best["step"])
        except CheckpointError as error:
            if not allow_inexact:
                raise CheckpointError(f"{error}; allow_inexact=True goes on and looks for the best anew") from error
            self._note(f"the best weights so far were lost: {error}")
            self.best = None

    def _note(self, text: str) -> None:
        self._tell("%s: %s", self.run_dir, text)
        self.progress["notes"].append(text)

    def _load_newest(self) -> tuple[int, dict[str, Any] | None]:
        """Process 0 looks for the newest whole checkpoint; the others read the same one."""
        loaded = self.store.load_newest() if self.group.is_main else None
        step = self.group.from_main(loaded[0] if loaded else None)
        if step is None:
            return 0, None
        return step, loaded[1] if loaded else read_checkpoint(self.store.path("step", step))

    def _open_metrics(self, state: dict[str, Any], tensorboard: bool) -> None:
        self.metrics: MetricsLog | None = None
        self.diagnostics: DiagnosticsLog | None = None
        if self.group.is_main:
            self.metrics = MetricsLog(self.run_dir, state["metrics_bytes"], self.step, tensorboard=tensorboard)
        if self.group.is_main and self.settings.config is not None and self.settings.diagnose_every:
            self.diagnostics = DiagnosticsLog(self.run_dir, network_of(self.model), self.val, state.get("diagnostics"))

    def _seed(self) -> None:
        seed = derived_seed(self.settings.seed, self.group.rank)
        torch.manual_seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        random.seed(seed)

    def _restore(self, step: int, state: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"], strict=True)
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ResumeMismatchError(f"the run on disk holds another model: {error}") from error
        self.step, self.progress, self.best = step, state["progress"], state["best"]
        self.last_checkpoint = self.store.path("step", step)
        self._saved = (step, self.progress["validated_step"])

    def save(self) -> Path:
        """Writes a checkpoint of the present state, unless the last one holds it already.

        Raises:
            CheckpointNotWrittenError: the file system refused; in every process, and all can go on.
        """
        if self.last_checkpoint is not None and self._saved == (self.step, self.progress["validated_step"]):
            return self.last_checkpoint
        self._read_losses()
        self._check_finite()
        self.group.check_equal(_tensors(self.model))
        states = self.group.all_objects(random_states())
        failure = self.group.from_main(self._write(states) if self.group.is_main else None)
        if failure is not None:
            raise CheckpointNotWrittenError(failure)
        self.unsaved_best = None
        self.last_checkpoint = self.store.path("step", self.step)
        self._saved = (self.step, self.progress["validated_step"])
        return self.last_checkpoint

    def _check_finite(self) -> None:
        for name, value in _tensors(self.model).items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise self._diverged(f"{name} has values that are not finite")

    def _write(self, random_states_of_all: list[Any]) -> str | None:
        """Why it could not be written, or None."""
        assert self.metrics is not None
        try:
            if self.unsaved_best is not None:
                assert self.best is not None
                self.store.save_best(self.best["step"], {"model": self.unsaved_best, "facts": self.facts})
            state = {
                "model": dict(self.model.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "random": random_states_of_all,
                "progress": self.progress,
                "best": self.best,
                "metrics_bytes": self.metrics.sync(),
                "diagnostics": self.diagnostics.state() if self.diagnostics is not None else None,
                "facts": self.facts,
            }
            self.store.save(self.step, state)
        except (CheckpointNotWrittenError, OSError) as error:
            return str(error)
        return None

    def _save_as_scheduled(self) -> None:
        try:
            self.save()
        except CheckpointNotWrittenError as error:
            if not self.go_on_unsaved:
                raise
            self._tell("step %d: %s; training goes on, and the last checkpoint is %s", self.step, error, self._good())

    def load_best(self, *, into_model: bool) -> dict[str, Any]:
        """Step and accuracy of the best weights, which are put into the model if asked for."""
        assert self.best is not None
        if not into_model:
            return self.best
        self.model.load_state_dict(self.store.load_best(self.best["step"])["model"], strict=True)
        return self.best

    # --- run --------------------------------------------------------------------------------------------------

    def run(self, stop: SignalFlag, *, progress: bool) -> Path:
        """Trains and validates up to the last step; gives the last checkpoint."""
        bar = ProgressBar(self.settings.total_steps, self.step, enabled=progress and self.group.is_main)
        batches: Iterator[tuple[Tensor, Tensor]] | None = None
        last_save = time.monotonic()
        try:
            while True:
                epoch, batch = divmod(self.step, len(self.train))
                if self._validation_due() and not self._validate(stop):
                    raise self._interrupted(self._signal(stop))
                if self.step == self.settings.total_steps:
                    return self.save()
                if batch == 0 or batches is None:
                    batches = self.train.epoch(epoch, batch)
                self._train_step(epoch, batch, *next(batches))
                bar.update(self.step, self._description())
                if (number := self._signal(stop)) is not None:
                    raise self._interrupted(number)
                if self._save_due(time.monotonic() - last_save):
                    self._save_as_scheduled()
                    last_save = time.monotonic()
        except RuntimeError as error:
            if _LOST_WORKER.search(str(error)) is None:
                raise
            raise LoaderError(f"step {self.step}: {error}; last good checkpoint: {self._good()}") from error
        finally:
            bar.close()
            if self.metrics is not None:
                self.metrics.close()
            if self.diagnostics is not None:
                self.diagnostics.close()

    def _train_step(self, epoch: int, batch: int, x: Tensor, y: Tensor) -> None:
        settings = self.settings
        factor = settings.lr_factor(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor if group.get("scheduled", True) else rate
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        if settings.augment is not None:
            seed = derived_seed(settings.seed, _AUGMENT, epoch, batch, self.group.rank)
            x = settings.augment(x, torch.Generator(self.device).manual_seed(seed))
        self.model.train()
        loss = self.step_loss(x, y)
        self._losses.append(loss.detach())
        if len(self._losses) == (1 if self.device.type == "cpu" or self.group.size > 1 else _LOSSES_AT_ONCE):
            self._read_losses()
        self.step_loss.backward(loss)
        self.group.average_gradients(self.model.parameters())
        self.optimizer.step()
        self.driver.step()
        if self.diagnostics is not None:
            self.diagnostics.after_step()
        self.optimizer.zero_grad()
        self._share_what_has_no_gradient()
        self.step += 1
        self._log_step(epoch, self.base_rates[0] * factor)

    def _read_losses(self) -> None:
        """Takes the losses of the last steps over, which is when the host learns that training has diverged."""
        if not self._losses:
            return
        own, self._losses = torch.stack(self._losses).tolist(), []
        for values in zip(*self.group.all_values(own), strict=True):
            value = math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
            if not math.isfinite(value):
                raise self._diverged(f"the loss is {value}")
            self.progress["loss_sum"] += value
            self.progress["loss_count"] += 1
            self._last_loss = value

    def _share_what_has_no_gradient(self) -> None:
        """Running statistics always; before quantization also the step sizes, which then follow observed ranges."""
        config = self.settings.config
        observing = config is not None and self.step <= config.float_steps
        # Masks follow from the weights, which are equal, and are most of what there is.
        buffers = [buffer for buffer in self.model.buffers() if buffer.dtype != torch.bool]
        self.group.share_from_main(_tensors(self.model).values() if observing else buffers)

    def _log_step(self, epoch: int, lr: float) -> None:
        if self.step % self.settings.log_every and self.step != self.settings.total_steps:
            return
        self._read_losses()
        values = {"epoch": epoch, "lr": lr} | self.driver.metrics()
        values["loss"] = self.progress["loss_sum"] / self.progress["loss_count"]
        self.progress["loss_sum"], self.progress["loss_count"] = 0.0, 0
        self._write_metrics(values)

    def _write_metrics(self, values: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.write(self.step, values)

    def _signal(self, stop: SignalFlag) -> int | None:
        """The signal that any of the processes got; the same answer in each."""
        own = signal.SIGTERM if stop_after_step.get() == self.step else stop.received
        received = [int(row[0]) for row in self.group.all_values([own or 0])]
        return max(received) or None

    def _save_due(self, seconds: float) -> bool:
        """By steps, or by the clock of process 0."""
        by_steps = self.checkpoint_steps is not None and self.step % self.checkpoint_steps == 0
        return by_steps or bool(self.group.all_values([seconds >= self.checkpoint_seconds])[0][0])

    def _validation_due(self) -> bool:
        at_edge = self.step % len(self.train) == 0 or self.step == self.settings.total_steps
        return at_edge and self.step != self.progress["validated_step"]

    @torch.no_grad()
    def _validate(self, stop: SignalFlag) -> bool:
        """Measures the validation data and keeps the weights if they are the best so far; False if a signal came."""
        self._read_losses()
        self._check_finite()
        self.model.eval()
        correct, loss_sum = 0, 0.0
        batches = self.val.epoch(0)
        # Processes may have one batch more or less, but ask for signals equally often.
        for _ in range(-(-len(self.val) // self.group.size)):
            if self._signal(stop) is not None:
                return False
            x, y = next(batches, (None, None))
            if x is None or y is None:
                continue
            x, y = x.to(self.device), y.to(self.device)
            logits = self.model(x)
            correct += int((logits.argmax(1) == y).sum())
            loss_sum += float(F.cross_entropy(logits, y, reduction="sum"))
        sums = self.group.all_values([correct, loss_sum])
        accuracy, loss = (math.fsum(column) / self.val.size for column in zip(*sums, strict=True))
        if not math.isfinite(loss):
            raise self._diverged(f"the validation loss is {loss}")
        self._write_metrics({"val_loss": loss, "val_accuracy": accuracy})
        if self.diagnostics is not None and self.metrics is not None and self.settings.diagnosis_due(self.step):
            self.diagnostics.write(self.metrics)
        self.progress["validated_step"] = self.step
        if self.settings.may_be_best(self.step) and (self.best is None or accuracy > self.best["accuracy"]):
            self.best = {"step": self.step, "accuracy": accuracy, "loss": loss}
            self.unsaved_best = copy.deepcopy(dict(self.model.state_dict()))
        return True

    # --- ends -------------------------------------------------------------------------------------------------

    def _description(self) -> str:
        phase = f"phase {phase}  " if (phase := self.settings.phase(self.step)) else ""
        best = f"  best {self.best['accuracy']:.2%}" if self.best else ""
        return f"epoch {self.step // len(self.train) + 1}  {phase}loss {self._last_loss:.3f}{best}"

    def _diverged(self, what: str) -> DivergedError:
        phase = f", phase {phase}" if (phase := self.settings.phase(self.step)) else ""
        good = f"last good checkpoint: {self._good()}"
        return DivergedError(f"training diverged at step {self.step}{phase}: {what}; {good}; try a lower lr")

    def _good(self) -> str:
        return str(self.last_checkpoint or "none yet")

    def _interrupted(self, number: int | None) -> TrainingInterrupted:
        assert number is not None
        checkpoint = self.save()
        name = signal.Signals(number).name
        self._tell("stopped by %s after step %d; the same run goes on from %s", name, self.step, checkpoint)
        return TrainingInterrupted(number, self.step, checkpoint)

    def _tell(self, message: str, *values: object) -> None:
        if self.group.is_main:
            _log.warning(message, *values)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
