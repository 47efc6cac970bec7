"""PyTorch Lightning: a callback for modules that hold a prepared model."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from pqk_ext.deploy import export
from pqk_ext.integrations._phases import PhasesFollower
from pqk_ext.wrappers import controller, unwrap

try:
    from lightning.pytorch.callbacks import Callback, WeightAveraging
except ImportError:
    from pytorch_lightning.callbacks import Callback, WeightAveraging

__all__ = ["PQKCallback"]


class PQKCallback(Callback):
    """Moves masks and phases on after each optimizer step, logs, and writes the file at the end::

        class Net(lightning.LightningModule):
            def __init__(self, model):            # pqk_ext.prepare(...)
                super().__init__()
                self.model = model

            def training_step(self, batch, index):
                return self.model.pqk.loss(*batch)

            def configure_optimizers(self):
                return torch.optim.AdamW(self.model.pqk.parameter_groups(lr=1e-3))

        lightning.Trainer(callbacks=[PQKCallback("net.pqk")]).fit(Net(model), loader)

    Accumulated batches count as one step, and steps that a gradient scaler skips do not count. The state of PQK lies in
    the module's ``state_dict``, so Lightning's checkpoints hold it and resume from it. Several processes need
    ``strategy="ddp_find_unused_parameters_true"``. ``total_steps`` counts optimizer steps; there is a warning where the
    trainer will make another number. With Lightning's ``WeightAveraging`` the averaged network is what is written; that
    needs ``multi_avg_fn=pqk_ext.ema_multi_avg_fn(decay)``.

    Args:
        path: ``.pqk`` file to write when the training has ended, from the last weights; None writes none.
        model: name of the attribute that holds the model, where the module holds several prepared ones.
        log: log the parts of the loss, sparsity and phase as ``pqk/...``, every ``log_every_n_steps``.
        optimizer: index of the optimizer that moves the model, where there are several.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        model: str | None = None,
        log: bool = True,
        optimizer: int = 0,
    ) -> None:
        self.path, self.model_name, self.log_metrics, self.optimizer = path, model, log, optimizer
        self._follower = PhasesFollower()
        self._logged_step = -1

    def _model(self, module: nn.Module) -> nn.Module:
        return unwrap(module if self.model_name is None else module.get_submodule(self.model_name))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for callback in trainer.callbacks:
            _check_averaging(callback)
        steps = trainer.estimated_stepping_batches - trainer.global_step
        self._follower.begin(self._model(pl_module), trainer.optimizers[self.optimizer], steps)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        if not self.log_metrics or step == self._logged_step or step % trainer.log_every_n_steps:
            return
        self._logged_step = step
        metrics = controller(self._model(pl_module)).metrics()
        pl_module.log_dict({f"pqk/{name}": value for name, value in metrics.items()})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._follower.end()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        # Not in on_train_end, where other callbacks may still put averaged weights into the module.
        if self.path is not None and trainer.is_global_zero:
            export(self._model(pl_module), self.path)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._follower.end()


def _check_averaging(callback: Any) -> None:
    """Raises where Lightning's ``WeightAveraging`` would average masks and the step count."""
    averages_buffers = isinstance(callback, WeightAveraging) and getattr(callback, "_use_buffers", True)
    function = getattr(callback, "_kwargs", {}).get("multi_avg_fn")
    if averages_buffers and not getattr(function, "copies_integers", False):
        raise ValueError(
            "WeightAveraging would average the pruning masks: give it multi_avg_fn=pqk_ext.ema_multi_avg_fn(decay), or "
            "use_buffers=False"
        )
