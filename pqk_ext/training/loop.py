"""The ready training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pqk_ext.config import PQKConfig
from pqk_ext.device import repeatable_kernels, usable_device
from pqk_ext.training.data import Augment, Batches
from pqk_ext.training.durable import RunLock
from pqk_ext.training.group import Group
from pqk_ext.training.memory import keep_freed_memory
from pqk_ext.training.settings import OptimizerFactory, Settings, cosine
from pqk_ext.training.signals import SignalFlag, leave_signals_to_parent
from pqk_ext.training.trainee import config_of
from pqk_ext.training.trainer import Trainer

__all__ = ["FitResult", "fit"]

Data = Dataset[Any] | Sequence[Tensor]


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What ``fit`` leaves.

    Attributes:
        model: the trained model, in evaluation mode, with the best weights, or the last.
        best_step: optimizer steps after which they were best on the validation data.
        best_accuracy: share of the validation samples that they classify correctly, in [0, 1].
        checkpoint: the last checkpoint: the state after the last step.
    """

    model: nn.Module
    best_step: int
    best_accuracy: float
    checkpoint: Path


def fit(
    model: nn.Module,
    train: Data,
    val: Data,
    config: PQKConfig | None,
    run_dir: str | os.PathLike[str],
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float = 0.1,
    phase2_lr_factor: float | None = 0.5,
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
    optimizer: OptimizerFactory | None = None,
    schedule: Callable[[float], float] = cosine,
    augment: Augment | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    num_workers: int = 0,
    keep: Literal["best", "last"] = "best",
    resume: Literal["auto", "never"] = "auto",
    allow_inexact: bool = False,
    checkpoint_seconds: float = 300.0,
    checkpoint_steps: int | None = None,
    on_full_disk: Literal["stop", "continue"] = "stop",
    process_timeout: float = 60.0,
    autocast: Literal["bf16"] | None = None,
    compile: bool = False,
    cuda_graphs: bool = False,
    log_every: int = 50,
    diagnose_every: int = 200,
    tensorboard: bool = True,
    progress: bool = True,
) -> FitResult:
    """Trains a classifier, with PQK if a config is given, and can be stopped and started again at any time.

    A run that was stopped, killed or cut off goes on from its newest checkpoint when it is started again with the same
    arguments, and ends with the same bits as one that was never stopped (with equal versions, thread count and device;
    what differs is an error that names it; on a GPU as far as torch's own kernels repeat their results). The global
    random generators are seeded with ``seed``, and memory once used stays with the process for some hundred steps
    (:func:`pqk_ext.training.keep_freed_memory`).

    ``run_dir`` gets ``metrics.jsonl``, with PQK ``diagnostics.jsonl`` (:func:`pqk_ext.diagnostics.diagnose` of 64
    validation samples), checkpoints (safetensors; the last two and the best), a lock, and event files for TensorBoard
    if that is installed. The first SIGINT or SIGTERM ends the run after the current step and a
    checkpoint with ``SystemExit(130)`` or ``(143)``; a second one ends the process at once.

    Under ``torchrun``, or with an initialized process group, every process calls ``fit`` with the same arguments, which
    are compared; process 0 writes. A batch is then divided among the processes, and batch norm sees each part by
    itself. Weights, masks, scales and statistics are the same bits in all of them, which each checkpoint checks. If one
    is killed or hangs, the others end with an error that names it.

    Args:
        model: a prepared model, or a plain one, which is prepared here if there is a config; or a
            :class:`pqk_ext.training.Trainee`, which brings its own loss.
        train: map-style data set of (x, y), or a pair of tensors; y holds int64 class numbers.
        val: the same, for choosing the best weights. With pruning only states of the final sparsity can be best.
        config: settings of PQK; None trains a plain model with cross-entropy (the float reference).
        run_dir: directory of the run; made if absent.
        epochs: length of the run. With a plain model it replaces ``config.total_steps``; None takes the latter.
        steps: the same in optimizer steps, in place of ``epochs``.
        batch_size: samples a step, of all processes together.
        lr: learning rate; the step sizes' is ``config.step_size_lr_factor`` times it.
        phase2_lr_factor: phase 2 starts its schedule at this multiple of ``lr``; None: one schedule over both phases.
        weight_decay: of the weights; step sizes have none.
        momentum: of SGD.
        optimizer: makes another optimizer from parameter groups, such as ``torch.optim.AdamW``.
        schedule: factor of the learning rate for a progress in [0, 1) through each phase, or the run.
        augment: changes a batch: (inputs, generator) -> inputs. The generator is the inputs' device's, and depends on
            seed, epoch and batch only.
        seed: of sample order, augmentation and random layers.
        device: where to train, ``"cpu"`` or ``"cuda"``; default: where the model is. On a GPU, data made of tensors lie
            there whole if they take at most half of its free memory; samples come in the order that they have on the
            CPU; and losses are read in groups, so that divergence is noticed some steps late.
        num_workers: loader processes for a data set that is not made of tensors; the result does not depend on it.
        keep: which weights the model has in the end: the best on the validation data, or the last. The last are what a
            comparison of methods should use, since the best of many are chosen by luck too.
        resume: ``"auto"`` goes on if the directory holds a run; ``"never"`` refuses such a directory.
        allow_inexact: go on although versions, threads or CPU differ; recorded in later checkpoints.
        checkpoint_seconds: time between checkpoints.
        checkpoint_steps: steps between checkpoints, in addition.
        on_full_disk: what a checkpoint that cannot be written does (no space, quota, input/output error): end the run,
            or warn and try again when the next is due. The last one and one after a signal always end it.
        process_timeout: seconds after which a process that does not answer ends the others.
        autocast: ``"bf16"``: the loss is computed under ``torch.autocast``, weights and step sizes stay float32.
        compile: the loss through ``torch.compile``.
        cuda_graphs: once quantization has begun, loss and backward pass of a step are one CUDA graph, for a prepared
            or a plain model without dropout.
        log_every: steps between lines of metrics.
        diagnose_every: steps from one diagnosis to the next, at least; they follow validations. With batches of 64 or
            more one takes the time of 0.3 to 1.8 steps. 0: none.
        tensorboard: write event files.
        progress: show a bar if stderr is a terminal.

    Raises:
        CheckpointError: no checkpoint is whole, or (``CheckpointNotWrittenError``) one could not be written.
        DivergedError: the loss or a weight is NaN or infinite.
        FileExistsError: ``resume="never"`` and the directory holds a run.
        LoaderError: a loader process was killed.
        ProcessLostError: another process of the group ended or hangs.
        ProcessesDifferError: the processes were started differently, or do not hold the same weights.
        ResumeMismatchError: the run on disk had other settings or data, or another environment.
        RuntimeError: a device that cannot be used here; says why.
        RunLockedError: another process trains in the directory.
        ValueError: an argument outside its range.
    """
    if keep not in ("best", "last"):
        raise ValueError(f"keep: expected 'best' or 'last', got {keep!r}")
    if resume not in ("auto", "never"):
        raise ValueError(f"resume: expected 'auto' or 'never', got {resume!r}")
    if on_full_disk not in ("stop", "continue"):
        raise ValueError(f"on_full_disk: expected 'stop' or 'continue', got {on_full_disk!r}")
    if not process_timeout > 0:
        raise ValueError(f"process_timeout: expected seconds above 0, got {process_timeout!r}")
    keep_freed_memory()
    train_batches = Batches(train, batch_size, shuffle=True, seed=seed, num_workers=num_workers)
    val_batches = Batches(val, batch_size, shuffle=False, seed=seed, num_workers=num_workers)
    config, total_steps = _length(model, config, _in_steps(epochs, steps, len(train_batches)))
    settings = Settings(
        config=config,
        total_steps=total_steps,
        steps_per_epoch=len(train_batches),
        batch_size=batch_size,
        lr=lr,
        phase2_lr_factor=phase2_lr_factor,
        weight_decay=weight_decay,
        momentum=momentum,
        optimizer=optimizer,
        schedule=schedule,
        augment=augment,
        seed=seed,
        log_every=log_every,
        diagnose_every=diagnose_every,
        autocast=autocast,
        compile=compile,
        cuda_graphs=cuda_graphs,
    )
    if device is not None:
        model.to(usable_device(device))
    model = _prepared(model, config, train_batches)
    directory = Path(run_dir)
    directory.mkdir(parents=True, exist_ok=True)
    with (
        repeatable_kernels(place := next(model.parameters()).device),
        _joined(place, process_timeout) as group,
        _locked(directory, group) as lock,
    ):
        trainer_pid = os.getpid()
        train_batches.share(group.rank, group.size)
        val_batches.share(group.rank, group.size)
        train_batches.worker_init = val_batches.worker_init = lambda: _start_worker(lock, trainer_pid)
        trainer = Trainer(model, train_batches, val_batches, settings, directory, group)
        trainer.checkpoint_seconds, trainer.checkpoint_steps = checkpoint_seconds, checkpoint_steps
        trainer.go_on_unsaved = on_full_disk == "continue"
        with SignalFlag() as stop:
            trainer.begin(fresh=resume == "never", allow_inexact=allow_inexact, tensorboard=tensorboard)
            checkpoint = trainer.run(stop, progress=progress)
            best = trainer.load_best(into_model=keep == "best")
    return FitResult(model.eval(), best["step"], best["accuracy"], checkpoint)


@contextlib.contextmanager
def _joined(device: torch.device, seconds: float) -> Iterator[Group]:
    """The group; the other processes learn what ended this one."""
    group = Group(device, seconds)
    try:
        yield group
    except BaseException as error:
        group.tell_failure(error)
        raise
    finally:
        group.close()


@contextlib.contextmanager
def _locked(directory: Path, group: Group) -> Iterator[RunLock | None]:
    lock = RunLock(directory) if group.is_main else None
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()


def _start_worker(lock: RunLock | None, trainer: int) -> None:
    """Called in each new worker process of the process ``trainer``."""
    if multiprocessing.get_start_method() == "fork" and os.getppid() != trainer:
        os._exit(1)  # killed before the worker looked: torch's watchdog would take the adopting process for it
    if lock is not None:
        lock.forget_in_child()
    leave_signals_to_parent()


def _in_steps(epochs: int | None, steps: int | None, steps_per_epoch: int) -> int | None:
    """The length that was asked for, in steps."""
    for name, value in (("epochs", epochs), ("steps", steps)):
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    if epochs is not None and steps is not None:
        raise ValueError(f"steps: expected None beside epochs = {epochs}, got {steps}")
    return epochs * steps_per_epoch if epochs is not None else steps


def _length(model: nn.Module, config: PQKConfig | None, steps: int | None) -> tuple[PQKConfig | None, int]:
    """The config that will hold, and the run's length in steps."""
    own = config_of(model)
    if own is not None:
        if config is not None and config != own:
            raise ValueError("config: expected the config that the model was prepared with, got another")
        config = own
    if config is None:
        if steps is None:
            raise ValueError("epochs: expected an integer, got None: without a config nothing else gives the length")
        return None, steps
    if steps is None or steps == config.total_steps:
        return config, config.total_steps
    if own is not None:
        raise ValueError(
            f"epochs: the model was prepared for total_steps = {config.total_steps}, but the run has {steps}; "
            "leave epochs and steps out, or prepare with that number"
        )
    return dataclasses.replace(config, total_steps=steps), steps


def _prepared(model: nn.Module, config: PQKConfig | None, train: Batches) -> nn.Module:
    if config is None or config_of(model) is not None:
        return model
    from pqk_ext.preparation import prepare  # not needed for a plain model

    device = next(model.parameters()).device
    prepared: nn.Module = prepare(model, config, example_inputs=train.first_inputs().to(device))
    return prepared
