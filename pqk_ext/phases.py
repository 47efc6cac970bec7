"""The phases of PQK: who is pruned when, and which loss moves which weight.

Phase 1 prunes and quantizes; the weights pruned away stay in their tensors, untouched. Phase 2 puts them back beside
the important ones: that whole network is the teacher of the pruned, quantized student, and only the teacher's loss
moves them. After Kim, Chang and Kwak, "PQK: Model Compression via Pruning, Quantization, and Knowledge Distillation",
Interspeech 2021; beyond it, ``config.teacher_start`` lets the teacher begin while phase 1 still prunes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.config import PQKConfig
from pqk_ext.distill.kl import kl
from pqk_ext.early_gradient import can_take_early, take_early
from pqk_ext.entropy import coded_size
from pqk_ext.nn import ActivationQuantizer, NetworkOutput, PQKLayer, Role
from pqk_ext.nn.batch_norm import RoleBatchNorm
from pqk_ext.nn.layers import one_a_weight
from pqk_ext.prune import compute_masks, cubic_sparsity
from pqk_ext.quant import SMALLEST_SCALE
from pqk_ext.ranges import observe_first

if TYPE_CHECKING:
    from pqk_ext.preparation.model import PreparedModel
    from pqk_ext.preparation.taps import Tap
    from pqk_ext.training.parameter_groups import Overrides

__all__ = ["PQKController"]

_OBSERVE_INTERVAL = 8  # steps without quantization between two looks at the activation ranges


class PQKController(nn.Module):
    """Drives a prepared model through the phases; reached as ``model.pqk``.

    The optimizer and the loop stay the user's. In each step::

        loss = model.pqk.loss(x, y); loss.backward(); optimizer.step(); model.pqk.step(); optimizer.zero_grad()

    Steps are those of the optimizer: to accumulate n batches, give ``loss / n`` its ``backward()`` for each, then let
    the optimizer and ``step()`` follow once. (In the warm-up each of the batches is observed.) Gradients are clipped
    before ``optimizer.step()``, as usual; student and teacher are clipped together. An optimizer that moves parameters
    several times in a step, such as LBFGS, gets the weights alone, the first of :meth:`parameter_groups`.

    Its state (the step count) lies in the model's ``state_dict``.
    """

    step_count: Tensor

    def __init__(self, model: PreparedModel, config: PQKConfig) -> None:
        super().__init__()
        # Not a submodule: the model owns the controller, not the other way round.
        object.__setattr__(self, "_model", model)
        self.config = config
        self.register_buffer("step_count", torch.tensor(0, dtype=torch.int64))
        self._go_to(0)
        self._metrics: dict[str, float | Tensor] = {}
        self.ranked_elsewhere: tuple[PQKLayer, ...] = ()  # shared layers, which another model's controller prunes
        # Where processes hold parts of the parameters (``pqk_ext.distributed.shard``): puts them together for a step.
        self.whole_parameters: Callable[[], AbstractContextManager[None]] = nullcontext
        self.register_load_state_dict_post_hook(_after_load)  # type: ignore[no-untyped-call]
        self._remember_weights()

    _model: PreparedModel

    # --- state -----------------------------------------------------------------------------------------------

    @property
    def global_step(self) -> int:
        """Training steps done, both phases together."""
        return self._step

    @property
    def phase(self) -> int:
        """1 (prune and quantize) or 2 (distil from the teacher inside)."""
        return self._phase

    @property
    def teaching(self) -> bool:
        """Whether the teacher inside learns and teaches: in phase 2, or from ``config.teacher_start`` on."""
        return self._teaching

    @property
    def distilling(self) -> bool:
        """Whether the student's loss has a distillation loss: a while after the teacher begins, where it warms up."""
        return self._distilling

    @property
    def quantizing(self) -> bool:
        """Whether training uses fake quantization; False in the first ``config.float_steps`` steps."""
        return self._quantizing

    @property
    def student_role(self) -> Role:
        """What training computes for the student at this step."""
        if self._quantizing:
            return Role.STUDENT
        return Role.PRUNED if self._pruning else Role.FLOAT

    @property
    def target_sparsity(self) -> float:
        """Share of the prunable weights that the schedule wants to be zero at this step.

        Of those in layers without a sparsity of their own (``config.layers``).
        """
        return self._scheduled(self.config.sparsity)

    def _scheduled(self, final: float) -> float:
        c = self.config
        return cubic_sparsity(self._step, start=c.ramp_start_step, end=c.ramp_end_step, final=final)

    @property
    def final_sparsity(self) -> float:
        """Share of the prunable weights that the schedule ends with, layers with a sparsity of their own included."""
        if self.config.ranking == "fixed":
            return self.sparsity
        layers = one_a_weight(self.prunable_layers())
        total = sum(layer.weight.numel() for layer in layers)
        common = self.config.sparsity
        zeros = (
            layer.weight.numel() * (common if layer.own_sparsity is None else layer.own_sparsity) for layer in layers
        )
        return sum(zeros) / total if total else 0.0

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that the masks set to zero now."""
        layers = one_a_weight(self.prunable_layers())
        total = sum(layer.weight_mask.numel() for layer in layers)
        kept = sum(int(layer.weight_mask.sum()) for layer in layers)
        return 1.0 - kept / total if total else 0.0

    def layers(self) -> list[PQKLayer]:
        """Every convolution and linear layer, in the order of the network."""
        return [m for m in self._model.modules() if isinstance(m, PQKLayer)]

    def prunable_layers(self) -> list[PQKLayer]:
        """The layers that may be pruned."""
        return [layer for layer in self.layers() if layer.prunable]

    def _ranked_layers(self) -> list[PQKLayer]:
        return [layer for layer in self.prunable_layers() if layer not in self.ranked_elsewhere]

    def metrics(self) -> dict[str, float]:
        """The last ``loss``, ``student_ce``, ``kd``, ``teacher_ce``, ``extra``, ``coded_kb``; sparsity and phase."""
        parts = {name: float(value) for name, value in self._metrics.items()}
        return {**parts, "sparsity": self.sparsity, "phase": float(self.phase)}

    def parameter_groups(
        self,
        lr: float,
        weight_decay: float = 0.0,
        *,
        decay_norm_and_bias: bool = True,
        overrides: Overrides | None = None,
    ) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimizer: weights, and step sizes apart with a small rate and no decay.

        Args:
            lr: learning rate of the weights; step sizes get ``config.step_size_lr_factor`` times it.
            weight_decay: of the weights; by default of batch norm and biases too, as in the usual CIFAR recipes.
            decay_norm_and_bias: False takes normalization layers and biases out of the decay.
            overrides: other options for some parameters: ``{r"head\\..*": {"lr": 0.01}}``, or a function of name and
                parameter; see :func:`pqk_ext.training.parameter_groups.parameter_groups`.
        """
        from pqk_ext.training.parameter_groups import parameter_groups  # torch users need no training loop

        return parameter_groups(
            self._model,
            lr,
            weight_decay,
            decay_norm_and_bias=decay_norm_and_bias,
            overrides=overrides,
            step_size_lr_factor=self.config.step_size_lr_factor,
        )

    # --- one training step -----------------------------------------------------------------------------------

    def loss(
        self,
        x: Tensor,
        y: Tensor,
        criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        *,
        taps: Sequence[Tap] = (),
        extra: Callable[[NetworkOutput], Tensor] | None = None,
    ) -> Tensor:
        """The loss of this step, to be given ``backward()``.

        Args:
            x: input batch.
            y: labels, as ``criterion`` takes them.
            criterion: task loss of logits and labels.
            taps: values inside the student that ``extra`` asks for (:func:`pqk_ext.preparation.find_taps`).
            extra: another loss of the student, such as what a teacher from outside has to say; in every phase, and of
                the float network while that warms up.

        Returns:
            A scalar: the student's task loss, or, once the teacher has begun, task losses of student and teacher and
            the distillation loss; with disjoint routing each moves its own weights only. Added is
            ``config.size_penalty`` for each kB of :func:`pqk_ext.coded_size`, which moves the student's weights and
            step sizes.

        Raises:
            RuntimeError: the model is in evaluation mode, which gives no gradients.
        """
        if not self._model.training:
            raise RuntimeError("model.pqk.loss needs training mode: call model.train() first")
        role = self.student_role
        if self._observing and role is Role.STUDENT:
            observe_first(self._model, x)

        def student() -> tuple[Tensor, Tensor | float]:
            output = self._model.run(x, role, role is not Role.STUDENT and self._observing, taps=taps)
            return output.logits, 0.0 if extra is None else extra(output)

        loss = self._loss_of_phase(x, y, criterion, student)
        if self.config.size_penalty == 0 or role is not Role.STUDENT:
            return loss
        kilobytes = coded_size(self._model) / 1000
        loss = loss + self.config.size_penalty * kilobytes
        self._metrics |= {"loss": loss.detach(), "coded_kb": kilobytes.detach()}
        return loss

    def _loss_of_phase(
        self,
        x: Tensor,
        y: Tensor,
        criterion: Callable[[Tensor, Tensor], Tensor],
        student: Callable[[], tuple[Tensor, Tensor | float]],
    ) -> Tensor:
        if not self._teaching:
            logits, extra = student()
            ce = criterion(logits, y)
            loss = (self.config.ce_weight * ce if self.phase == 2 else ce) + extra
            self._metrics = {"loss": loss.detach(), "student_ce": ce.detach()}
        else:
            teacher, teacher_ce = self._teacher(x, y, criterion)
            logits, extra = student()
            loss = self._distillation(logits, criterion(logits, y), teacher, teacher_ce) + extra
            self._metrics["loss"] = loss.detach()
        if isinstance(extra, Tensor):
            self._metrics["extra"] = extra.detach()
        return loss

    def _teacher(self, x: Tensor, y: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The teacher's logits and task loss; where it can be, its backward pass is done before the student begins.

        Only one of the two networks then has activations in memory. The teacher sees the same dropout as the student,
        and leaves the random state as it found it.
        """
        with self._dropout_repeated(x.device):
            logits = self._model.run(x, Role.TEACHER)
        loss = criterion(logits, y)
        if self.config.kl_direction == "two_way" or not can_take_early(loss):
            return logits, loss
        return logits.detach(), take_early(loss, self._model.parameters())

    def _dropout_repeated(self, device: torch.device) -> AbstractContextManager[None]:
        if torch.compiler.is_compiling() or not any(block.op == "dropout" for block in self._model.plan):
            return nullcontext()  # a compiled graph cannot turn the generator back
        return torch.random.fork_rng([device] if device.type == "cuda" else [])

    def _distillation(self, student: Tensor, student_ce: Tensor, teacher: Tensor, teacher_ce: Tensor) -> Tensor:
        c = self.config
        loss = c.ce_weight * student_ce + teacher_ce
        self._metrics = {"student_ce": student_ce.detach(), "teacher_ce": teacher_ce.detach()}
        if self._distilling and c.kd_weight > 0:
            kd = kl(student, teacher, c.temperature)
            loss = loss + c.kd_weight * kd
            self._metrics["kd"] = kd.detach()
            if c.kl_direction == "two_way":
                loss = loss + c.kd_weight * kl(teacher, student, c.temperature)
        return loss

    @torch.no_grad()
    def step(self) -> None:
        """To be called after each ``optimizer.step()``: keeps frozen weights, moves masks and phases on."""
        with self.whole_parameters():
            self._move_on()

    def _move_on(self) -> None:
        pruning, quantizing = self._pruning, self.quantizing
        if quantizing:
            # An optimizer step can make a scale vanish or change its sign.
            torch._foreach_clamp_min_(list[Tensor](self.step_sizes()), SMALLEST_SCALE)
        if pruning and self._freezes:
            self._hold_unimportant()
        self._advance()
        if pruning and self.phase == 1 and self._step % self.config.mask_update_interval == 0:
            self.update_masks()
        if self._step == self.config.phase1_steps:
            self._begin_phase_2()
        if self._step == self.config.teacher_start_step:
            self._begin_teaching()
        if self.quantizing and not quantizing:
            for layer in self.layers():
                layer.initialize_scale()

    def synchronize(self) -> None:
        """Takes over a step count that was written to the buffer, as by a copy that averages another model."""
        if self.step_count.is_meta:
            return
        self._go_to(int(self.step_count))
        if not self._model.training and not self.quantizing:
            # Before quantization nothing keeps the step sizes in line with the weights that they are to quantize.
            for layer in self.layers():
                layer.initialize_scale()

    def weights_replaced(self) -> None:
        """To be called after weights were set from outside: unimportant ones are held at their new values."""
        self._go_to(int(self.step_count))
        self._remember_weights()

    def _advance(self) -> None:
        self._go_to(self._step + 1)
        self.step_count.fill_(self._step)

    def _go_to(self, step: int) -> None:
        """Sets the step and what the loss wants to know of it, so that a compiled loss need not watch the step."""
        c = self.config
        self._step = step
        self._pruning = step >= c.warmup_steps
        self._quantizing = step >= c.float_steps
        looks = step % _OBSERVE_INTERVAL == 0 or step == c.float_steps - 1
        self._observing = step == 0 if self._quantizing else looks
        self._phase = 1 if step < c.phase1_steps else 2
        self._teaching = c.teacher and step >= c.teacher_start_step
        self._distilling = step >= c.teacher_start_step + c.kd_warmup_steps

    @torch.no_grad()
    def update_masks(self, *, final: bool = False) -> None:
        """Ranks the weights; sets the masks to the sparsity that the schedule wants now, or (``final``) in the end."""
        if self.config.ranking == "fixed":
            return
        layers = one_a_weight(self._ranked_layers())
        together = [layer for layer in layers if layer.own_sparsity is None]
        groups = [(together, self.config.sparsity)] if together else []
        groups += [([layer], layer.own_sparsity) for layer in layers if layer.own_sparsity is not None]
        c = self.config
        for group, goal in groups:
            masks = compute_masks(
                [layer.by_channel(layer.weight) for layer in group],
                goal if final else self._scheduled(goal),
                ranking=c.ranking,
                granularity=c.granularity,
                min_keep_per_channel=c.min_keep_per_channel,
                min_keep_fraction=c.min_keep_fraction,
            )
            for layer, mask in zip(group, masks, strict=True):
                layer.weight_mask.copy_(layer.from_channels(mask))
        of_weight = {id(layer.weight): layer for layer in layers}
        for layer in self._ranked_layers():
            layer.weight_mask.copy_(of_weight[id(layer.weight)].weight_mask)

    def _begin_teaching(self) -> None:
        for module in self._model.modules():
            if isinstance(module, PQKLayer | RoleBatchNorm):
                module.copy_to_teacher()
        self._remember_weights()

    def _begin_phase_2(self) -> None:
        self.update_masks()
        if self.config.step_size == "freeze":
            for scale in self.step_sizes():
                scale.requires_grad_(False)
                scale.grad = None

    # --- frozen weights --------------------------------------------------------------------------------------

    @property
    def _freezes(self) -> bool:
        """Whether nothing may move the unimportant weights; the teacher's loss does."""
        return not self._teaching

    def _remember_weights(self) -> None:
        self._kept = [layer.weight.detach().clone() for layer in self._ranked_layers()] if self._freezes else []

    def _hold_unimportant(self) -> None:
        """Undoes what weight decay and momentum did to unimportant weights: they must survive phase 1 exactly."""
        layers = self._ranked_layers()
        if len(self._kept) != len(layers):
            self._remember_weights()
        for index, layer in enumerate(layers):
            weight = layer.weight.detach()
            kept = self._kept[index] = self._kept[index].to(weight.device)
            torch.where(layer.weight_mask, weight, kept, out=kept)
            weight.copy_(kept)

    # --- helpers ---------------------------------------------------------------------------------------------

    def quantizers(self) -> list[ActivationQuantizer]:
        return [q for q in self._model.pqk_quantizers.values() if isinstance(q, ActivationQuantizer)]

    def step_sizes(self) -> list[nn.Parameter]:
        """The learned scales of all quantizers: of the weights, then of the activations."""
        scales = [layer.weight_scale for layer in self.layers()] + [q.scale for q in self.quantizers()]
        return list(dict.fromkeys(scales))  # tied layers share theirs

    def extra_repr(self) -> str:
        return f"phase={self.phase}, step={self._step} of {self.config.total_steps}"


def _after_load(module: nn.Module, _: object) -> None:
    assert isinstance(module, PQKController)
    module.weights_replaced()
    module.synchronize()
    if module.config.step_size == "freeze":
        for scale in module.step_sizes():
            scale.requires_grad_(module.phase == 1)
