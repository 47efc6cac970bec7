"""A float network that was trained before and stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pqk_ext.config import PQKConfig
from pqk_ext.nn import NetworkOutput, Role
from pqk_ext.nn.layout import fast_layout
from pqk_ext.preparation import find_taps, prepare

__all__ = ["FloatTeacher"]


class FloatTeacher:
    """Logits and features of a copy of ``model``, in evaluation mode, in float.

    Args:
        model: the trained network; it is copied.
        example_inputs: a float32 batch.
        taps: modules after which features are taken (:func:`pqk_ext.preparation.find_taps`).
        before_activation: take them before the activation.
        autocast: dtype of its matrix products and convolutions (``torch.autocast``); what it says is float32 again.
            With bfloat16 it takes half the time on processors that have it. None: float32, or the caller's autocast.

    Raises:
        UnsupportedOperator: the model cannot be traced.
        ValueError: a name in ``taps`` that is none of the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor,
        *,
        taps: Sequence[str] = (),
        before_activation: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._network = prepare(model, PQKConfig(teacher=False), example_inputs=example_inputs).eval()
        self._network.requires_grad_(False)
        self._autocast = autocast
        self._taps = find_taps(self._network, taps, before_activation=before_activation)

    @property
    def feature_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of each feature, without the batch dimension."""
        return tuple(self._network.plan[tap.block].shape for tap in self._taps)

    def __call__(self, x: Tensor, step: int = 0) -> NetworkOutput:
        """What the network says of ``x``; the step makes no difference."""
        with torch.no_grad():
            if self._autocast is None:
                return self._answer(x)
            with torch.autocast(x.device.type, self._autocast):
                logits, features = self._answer(x)
            return NetworkOutput(logits.float(), tuple(feature.float() for feature in features))

    def _answer(self, x: Tensor) -> NetworkOutput:
        return self._network.run(fast_layout(x), Role.FLOAT, taps=self._taps)
