"""Hugging Face ``Trainer``: a prepared model as it expects models, a callback, and a trainer that has both."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from pqk_ext.deploy import export
from pqk_ext.distributed import Objective
from pqk_ext.integrations._phases import PhasesFollower
from pqk_ext.wrappers import controller, unwrap

__all__ = ["ModelForTrainer", "PQKTrainer", "PQKTrainerCallback"]


class ModelForTrainer(nn.Module):
    """A prepared model with the inputs and outputs of a classification model of transformers.

    In training it gives ``{"loss": model.pqk.loss(x, labels)}``, in evaluation the loss (with labels) and the
    ``logits`` of the integer network. The loss is computed in ``forward``, so that ``DistributedDataParallel`` sees it.

    Args:
        model: the prepared model.
        criterion: task loss of logits and labels.
    """

    # The trainer divides the loss by the number of accumulated batches.
    accepts_loss_kwargs = False

    def __init__(self, model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> None:
        super().__init__()
        self.objective = Objective(model, criterion)
        self._register_state_dict_hook(_as_files_want_it)  # type: ignore[no-untyped-call]

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss and, in evaluation, logits; the input comes under one of the three names that transformers uses."""
        given = [x for x in (pixel_values, input_values, input_features) if x is not None]
        if len(given) != 1:
            raise ValueError(f"expected pixel_values, input_values or input_features, got {len(given)} of them")
        if self.training:
            if labels is None:
                raise ValueError(
                    "labels: needed in training; the trainer's compute_loss_func takes them away (a criterion can be "
                    "given to ModelForTrainer)"
                )
            return {"loss": self.objective(given[0], labels)}
        logits: Tensor = self.objective.model(given[0])
        return (
            {"logits": logits}
            if labels is None
            else {"loss": self.objective.criterion(logits, labels), "logits": logits}
        )


def _as_files_want_it(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> dict[str, Any]:
    """safetensors refuses tensors in another memory format and those that share memory, as tied weights do."""
    seen: set[int] = set()
    for name, value in state.items():
        if isinstance(value, Tensor) and name.startswith(prefix):
            kept = value.contiguous()
            state[name] = kept.clone() if kept.numel() and kept.data_ptr() in seen else kept
            seen.add(kept.data_ptr())
    return state


class PQKTrainerCallback(TrainerCallback):
    """Moves masks and phases on after each optimizer step, logs, and writes the file at the end.

    For a ``Trainer`` of your own around :class:`ModelForTrainer`; :class:`PQKTrainer` has it. Make the optimizer from
    ``model.pqk.parameter_groups``. Checkpoints and ``resume_from_checkpoint`` are the trainer's.

    Args:
        path: ``.pqk`` file to write when the training has ended; None writes none.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = path
        self._follower = PhasesFollower()

    def on_train_begin(self, args: Any, state: Any, control: Any, **of_trainer: Any) -> None:
        steps = state.max_steps - state.global_step
        self._follower.begin(of_trainer["model"], of_trainer["optimizer"], steps)

    def on_log(self, args: Any, state: Any, control: Any, **of_trainer: Any) -> None:
        logs = of_trainer.get("logs")
        if logs is not None and "loss" in logs and "pqk/phase" not in logs:
            metrics = phase_metrics(of_trainer["model"])
            logs |= metrics
            state.log_history[-1] |= metrics

    def on_train_end(self, args: Any, state: Any, control: Any, **of_trainer: Any) -> None:
        self._follower.end()
        if self.path is not None and state.is_world_process_zero:
            export(unwrap(of_trainer["model"]), self.path)


def phase_metrics(model: nn.Module) -> dict[str, float]:
    """``model.pqk.metrics()`` under names for a log."""
    return {f"pqk/{name}": value for name, value in controller(model).metrics().items()}


class PQKTrainer(Trainer):
    """``transformers.Trainer`` for a prepared model: loss, optimizer groups, phases and logs are taken care of::

        model = pqk_ext.prepare(net, config, example_inputs=x)
        PQKTrainer(model, args, train_dataset=data, path="net.pqk").train()

    Data sets give dicts with ``pixel_values`` (or ``input_values``, ``input_features``) and ``labels``.

    Args:
        model: the prepared model, or a :class:`ModelForTrainer`.
        args: training arguments. Norms and biases are not decayed, as the trainer does by default.
        criterion: task loss of logits and labels.
        path: ``.pqk`` file to write when the training has ended.
        others: arguments of ``transformers.Trainer``, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any = None,
        *,
        criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        path: str | os.PathLike[str] | None = None,
        **others: Any,
    ) -> None:
        wrapped = model if isinstance(model, ModelForTrainer) else ModelForTrainer(unwrap(model), criterion)
        super().__init__(wrapped, args, **others)
        self.add_callback(PQKTrainerCallback(path))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As that of the trainer, but for the step sizes: small rate, no decay."""
        optimizer: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        if optimizer is None:
            make, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rate, decay = self.args.learning_rate, self.args.weight_decay
            groups = controller(self.model).parameter_groups(rate, decay, decay_norm_and_bias=False)
            optimizer = self.optimizer = make(groups, **options)
        return optimizer

    def log(self, logs: dict[str, float], *others: Any, **named: Any) -> None:
        """With the parts of PQK's loss, sparsity and phase."""
        super().log(logs | phase_metrics(self.model) if "loss" in logs else logs, *others, **named)
