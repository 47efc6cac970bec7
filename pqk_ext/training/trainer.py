"""One run in one directory: its state, its steps, and how it is saved and restored."""

from __future__ import annotations

import copy
import logging
import math
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.training.checkpoint import CheckpointStore
from pqk_ext.training.data import Batches, derived_seed, fingerprint
from pqk_ext.training.environment import describe_environment, random_states, restore_random_states
from pqk_ext.training.errors import DivergedError, ResumeMismatchError, TrainingInterrupted
from pqk_ext.training.metrics import MetricsLog, ProgressBar
from pqk_ext.training.settings import Settings, compare_with_checkpoint
from pqk_ext.training.signals import SignalFlag

__all__ = ["Trainer"]

_AUGMENT = 1  # keeps the augmentation's seeds apart from those of the order
_log = logging.getLogger(__name__)


class Trainer:
    """State and steps of a run; ``begin`` restores or starts it, ``run`` goes on to its end.

    The position in the data follows from the step alone: epoch ``step // len(train)``, batch ``step % len(train)``.
    """

    checkpoint_seconds: float = 300.0
    checkpoint_steps: int | None = None

    def __init__(self, model: nn.Module, train: Batches, val: Batches, settings: Settings, run_dir: Path) -> None:
        self.model, self.train, self.val, self.settings = model, train, val, settings
        self.run_dir = run_dir
        self.device = next(model.parameters()).device
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
            "settings": self.settings.to_json(),
            "data": {"train": fingerprint(self.train), "val": fingerprint(self.val)},
            "environment": describe_environment(self.device),
        }
        loaded = self.store.load_newest()
        if loaded is None:
            self.metrics = MetricsLog(self.run_dir, 0, 0, tensorboard=tensorboard)
            self._seed()
            return
        step, state = loaded
        inexact = compare_with_checkpoint(state["facts"], self.facts, allow_inexact=allow_inexact)
        self._restore(step, state)
        self.metrics = MetricsLog(self.run_dir, state["metrics_bytes"], step, tensorboard=tensorboard)
        restore_random_states(state["random"])
        if inexact:
            note = f"resumed inexactly at step {step}: " + "; ".join(inexact)
            _log.warning("%s: %s", self.run_dir, note)
            self.progress["notes"].append(note)

    def _seed(self) -> None:
        seed = self.settings.seed
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
        """Writes a checkpoint of the present state, unless the last one holds it already."""
        if self.last_checkpoint is not None and self._saved == (self.step, self.progress["validated_step"]):
            return self.last_checkpoint
        for name, parameter in self.model.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise self._diverged(f"{name} has values that are not finite")
        if self.unsaved_best is not None:
            assert self.best is not None
            self.store.save_best(self.best["step"], {"model": self.unsaved_best, "facts": self.facts})
            self.unsaved_best = None
        state = {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "random": random_states(),
            "progress": self.progress,
            "best": self.best,
            "metrics_bytes": self.metrics.sync(),
            "facts": self.facts,
        }
        self.last_checkpoint = self.store.save(self.step, state)
        self._saved = (self.step, self.progress["validated_step"])
        return self.last_checkpoint

    def load_best(self) -> dict[str, Any]:
        """Puts the best weights into the model; gives step and accuracy."""
        assert self.best is not None
        self.model.load_state_dict(self.store.load_best(self.best["step"])["model"], strict=True)
        return self.best

    # --- run --------------------------------------------------------------------------------------------------

    def run(self, stop: SignalFlag, *, progress: bool) -> Path:
        """Trains and validates up to the last step; gives the last checkpoint."""
        bar = ProgressBar(self.settings.total_steps, self.step, enabled=progress)
        batches: Iterator[tuple[Tensor, Tensor]] | None = None
        last_save = time.monotonic()
        try:
            while True:
                epoch, batch = divmod(self.step, len(self.train))
                if self._validation_due() and not self._validate(stop):
                    raise self._interrupted(stop)
                if self.step == self.settings.total_steps:
                    return self.save()
                if batch == 0 or batches is None:
                    batches = self.train.epoch(epoch, batch)
                loss = self._train_step(epoch, batch, *next(batches))
                bar.update(self.step, self._description(loss))
                if stop.received is not None:
                    raise self._interrupted(stop)
                every = self.checkpoint_steps
                if (every and self.step % every == 0) or time.monotonic() - last_save >= self.checkpoint_seconds:
                    self.save()
                    last_save = time.monotonic()
        finally:
            bar.close()
            self.metrics.close()

    def _train_step(self, epoch: int, batch: int, x: Tensor, y: Tensor) -> float:
        settings, controller = self.settings, getattr(self.model, "pqk", None)
        factor = settings.lr_factor(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        x, y = x.to(self.device), y.to(self.device)
        if settings.augment is not None:
            seed = derived_seed(settings.seed, _AUGMENT, epoch, batch)
            x = settings.augment(x, torch.Generator(self.device).manual_seed(seed))
        self.model.train()
        loss = controller.loss(x, y) if controller is not None else F.cross_entropy(self.model(x), y)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}")
        loss.backward()
        self.optimizer.step()
        if controller is not None:
            controller.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._log_step(value, epoch, self.base_rates[0] * factor)
        return value

    def _log_step(self, loss: float, epoch: int, lr: float) -> None:
        self.progress["loss_sum"] += loss
        self.progress["loss_count"] += 1
        if self.step % self.settings.log_every and self.step != self.settings.total_steps:
            return
        controller = getattr(self.model, "pqk", None)
        values = {"epoch": epoch, "lr": lr} | (controller.metrics() if controller is not None else {})
        values["loss"] = self.progress["loss_sum"] / self.progress["loss_count"]
        self.progress["loss_sum"], self.progress["loss_count"] = 0.0, 0
        self.metrics.write(self.step, values)

    def _validation_due(self) -> bool:
        at_edge = self.step % len(self.train) == 0 or self.step == self.settings.total_steps
        return at_edge and self.step != self.progress["validated_step"]

    @torch.no_grad()
    def _validate(self, stop: SignalFlag) -> bool:
        """Measures the validation data and keeps the weights if they are the best so far; False if a signal came."""
        self.model.eval()
        correct, loss_sum = 0, 0.0
        for x, y in self.val.epoch(0):
            if stop.received is not None:
                return False
            x, y = x.to(self.device), y.to(self.device)
            logits = self.model(x)
            correct += int((logits.argmax(1) == y).sum())
            loss_sum += float(F.cross_entropy(logits, y, reduction="sum"))
        accuracy, loss = correct / self.val.size, loss_sum / self.val.size
        if not math.isfinite(loss):
            raise self._diverged(f"the validation loss is {loss}")
        self.metrics.write(self.step, {"val_loss": loss, "val_accuracy": accuracy})
        self.progress["validated_step"] = self.step
        if self._may_be_best() and (self.best is None or accuracy > self.best["accuracy"]):
            self.best = {"step": self.step, "accuracy": accuracy, "loss": loss}
            self.unsaved_best = copy.deepcopy(dict(self.model.state_dict()))
        return True

    def _may_be_best(self) -> bool:
        """Before the final sparsity is reached a network is better than what can be deployed."""
        config = self.settings.config
        if config is None or self.step == self.settings.total_steps:
            return True
        return self.step >= min(config.phase1_steps, config.ramp_end_step + config.mask_update_interval)

    # --- ends -------------------------------------------------------------------------------------------------

    def _description(self, loss: float) -> str:
        controller = getattr(self.model, "pqk", None)
        phase = f"phase {controller.phase}  " if controller is not None else ""
        best = f"  best {self.best['accuracy']:.2%}" if self.best else ""
        return f"epoch {self.step // len(self.train) + 1}  {phase}loss {loss:.3f}{best}"

    def _diverged(self, what: str) -> DivergedError:
        controller = getattr(self.model, "pqk", None)
        phase = f", phase {controller.phase}" if controller is not None else ""
        good = f"last good checkpoint: {self.last_checkpoint}" if self.last_checkpoint else "no checkpoint yet"
        return DivergedError(f"training diverged at step {self.step}{phase}: {what}; {good}; try a lower lr")

    def _interrupted(self, stop: SignalFlag) -> TrainingInterrupted:
        assert stop.received is not None
        checkpoint = self.save()
        _log.warning("stopped by %s after step %d; %s", signal.Signals(stop.received).name, self.step, checkpoint)
        return TrainingInterrupted(stop.received, self.step, checkpoint)
