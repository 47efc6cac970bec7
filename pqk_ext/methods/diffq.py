"""DiffQ: the number of bits of every group of weights, learned under pseudo quantization noise."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from pqk_ext.deploy import quantize_post_training
from pqk_ext.entropy import coded_size
from pqk_ext.fields import Checked, choice, integer, number
from pqk_ext.methods._registry import method
from pqk_ext.methods.run import Run
from pqk_ext.nn import PQKLayer
from pqk_ext.nn.noisy_weight import RANGES, NoisyWeight
from pqk_ext.preparation import PreparedModel
from pqk_ext.pseudo_quantization import MEGABYTE
from pqk_ext.training import Trainee

__all__ = ["DiffQ", "DiffQSettings", "diffq"]

_CALIBRATION = 512
_FLOAT_BYTES = 4
_FIT_INTERVAL = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffQSettings(Checked):
    """Settings of :func:`diffq`.

    Attributes:
        quantizer: ``diffq``; or what it is compared with: ``qat`` (straight-through, learned step sizes, ``bits``
            everywhere) or ``post_training`` (the float network, trained as long, then rounded to ``bits``).
        bits: of the two others.
        penalty: what 2**20 bytes cost, in units of the loss. Small networks need large ones: start where the penalty is
            1 to 5 % of the first loss.
        penalty_on: ``bits`` of the weights and overhead of the groups, as published; or the entropy of the codes that
            the file will hold (``coded``).
        group_size: consecutive weights that share a number of bits; 0: a layer has one.
        min_bits: least number of bits of a weight, 2 to 7.
        max_bits: most, 3 to 8.
        initial_bits: at the beginning, strictly between the two.
        noise: ``gaussian`` (deviation of half a step, as published by default) or ``uniform`` (that of rounding).
        range: where scales come from while there is noise: ``fitted`` to weights and bits by least squares every 32
            steps, ``learned``, or the largest weight of the ``channel`` or of the whole ``tensor``, as published.
        bits_lr: learning rate of the bits' own Adam, which no schedule changes.
        min_size: layers of at most that many times 2**20 bytes, as floats, keep all bits.
        finetune_fraction: share of the steps, at the end, in which bits are whole and fixed, and weights are trained
            straight-through; 0 ends with noise, as published.
    """

    quantizer: str = choice("diffq", "qat", "post_training")
    bits: int = integer(4, 2, 8)
    penalty: float = number(5.0, 0)
    penalty_on: str = choice("bits", "coded")
    group_size: int = integer(8, 0)
    min_bits: int = integer(2, 2, 8)
    max_bits: int = integer(8, 2, 8)
    initial_bits: float = number(7.0, 0)
    noise: str = choice("gaussian", "uniform")
    range: str = choice(*RANGES)
    bits_lr: float = number(1e-3, 0)
    min_size: float = number(0.0, 0)
    finetune_fraction: float = number(0.0, 0, 1)

    def check_together(self) -> None:
        if not self.min_bits < self.initial_bits < self.max_bits:
            raise ValueError(
                f"initial_bits: expected a number between min_bits = {self.min_bits} and max_bits = {self.max_bits}, "
                f"got {self.initial_bits!r}"
            )


class DiffQ(Trainee):
    """A prepared network whose weights are trained under pseudo quantization noise.

    Noise begins where quantization does. Evaluation is that of whole bits and integer codes at any time.

    Args:
        student: the prepared network; pruned weights have neither noise nor size.
        settings: see :class:`DiffQSettings`.

    Raises:
        ValueError: no layer is larger than ``min_size``, or the layers have fewer bits than ``max_bits``.
    """

    student: PreparedModel

    def __init__(self, student: PreparedModel, settings: DiffQSettings) -> None:
        super().__init__(student)
        self.settings = settings
        tied: dict[int, list[str]] = {}
        for name, layer in _layers(student).items():
            tied.setdefault(id(layer.weight), []).append(name)
        layers = _layers(student)
        noisy = {
            names[0]: NoisyWeight(
                [layers[name] for name in names],
                group_size=settings.group_size,
                min_bits=settings.min_bits,
                max_bits=settings.max_bits,
                initial_bits=settings.initial_bits,
                kind=settings.noise,
                range=settings.range,
            )
            for names in tied.values()
            if layers[names[0]].weight.numel() * _FLOAT_BYTES > settings.min_size * MEGABYTE
        }
        if not noisy:
            raise ValueError(f"min_size: no layer is larger than {settings.min_size!r} times 2**20 bytes")
        self.names = tuple(noisy)
        self.weights = nn.ModuleList(noisy.values())  # by number: names of layers have dots
        total = student.pqk.config.total_steps
        self._noise_ends = total - round(total * settings.finetune_fraction)
        self._other_bits = _bits_of_others(student, {id(layers[name].weight) for name in noisy})
        self._parts: dict[str, Tensor] = {}

    @property
    def noisy_weights(self) -> dict[str, NoisyWeight]:
        """By the name of the (first) layer that each belongs to."""
        return dict(zip(self.names, (w for w in self.weights if isinstance(w, NoisyWeight)), strict=True))

    @property
    def noisy(self) -> bool:
        """Whether this step has noise: after the float steps, before the fine-tuning."""
        return self.student.pqk.quantizing and self.step_count < self._noise_ends

    def size_mb(self) -> Tensor:
        """The size as published in units of 2**20 bytes, with real-valued bits; everything else counts too."""
        bits = torch.stack([weight.size_bits() for weight in self.noisy_weights.values()]).sum()
        return (bits + self._other_bits) / (8 * MEGABYTE)

    def coded_mb(self) -> Tensor:
        """The entropy of the codes of these weights in the file, in units of 2**20 bytes."""
        return torch.stack([weight.coded_bits() for weight in self.noisy_weights.values()]).sum() / (8 * MEGABYTE)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """That of the student, under noise, and the price of the size."""
        noisy = self.noisy
        for weight in self.noisy_weights.values():
            weight.attach(noisy)
            if noisy:
                weight.draw()
        loss = self.student.pqk.loss(x, y)
        if not noisy:
            self._parts = {}
            return loss
        size = self.size_mb() if self.settings.penalty_on == "bits" else self.coded_mb()
        self._parts = {"size_mb": size.detach()}
        return loss + self.settings.penalty * size

    def step(self) -> None:
        """Moves the student on, and its whole bits after the real-valued ones."""
        noisy = self.noisy
        super().step()
        if noisy:
            for weight in self.noisy_weights.values():
                weight.settle(fit=not self.noisy or self.step_count % _FIT_INTERVAL == 0)

    def metrics(self) -> dict[str, float]:
        """Those of the student, the size that is paid for, and mean bits of the weights."""
        parts = {name: float(value) for name, value in self._parts.items()}
        return super().metrics() | parts | {"bits": self.mean_bits()}

    def mean_bits(self) -> float:
        """Whole bits of an unpruned weight, on average over those that learn them."""
        weights = self.noisy_weights
        kept = {name: int(_layers(self.student)[name].weight_mask.sum()) for name in weights}
        total = sum(weight.mean_bits() * kept[name] for name, weight in weights.items())
        return total / max(1, sum(kept.values()))

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """The student's, and the bits with an Adam of their own: no decay, no schedule."""
        bits = {
            "params": [weight.logits for weight in self.noisy_weights.values()],
            "lr": self.settings.bits_lr,
            "weight_decay": 0.0,
            "adam": True,
            "scheduled": False,
        }
        return [*self.student.pqk.parameter_groups(lr, weight_decay), bits]

    def finish(self) -> PreparedModel:
        """The student with whole bits, without any trace of the noise."""
        for weight in self.noisy_weights.values():
            weight.attach(False)
        return self.student


def _layers(model: PreparedModel) -> dict[str, PQKLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PQKLayer)}


def _bits_of_others(model: PreparedModel, noisy: set[int]) -> int:
    """Weights of the layers that keep all bits, and float parameters such as biases."""
    bits = {id(layer.weight): layer.widest_bits for layer in _layers(model).values()}
    parameters = [p for name, p in model.named_parameters() if name in model.float_names and id(p) not in noisy]
    return sum(p.numel() * bits.get(id(p), 8 * _FLOAT_BYTES) for p in parameters)


def _control(run: Run) -> PreparedModel:
    """The same number of bits everywhere: trained straight-through, or rounded after training."""
    bits = run.settings.bits
    same = {"weight_bits": bits, "first_layer_bits": bits, "last_layer_bits": bits}
    if run.settings.quantizer == "qat":
        return run.fit("student", run.prepare(run.network(), **same))
    network = run.fit("student", run.network())
    config = run.recipe.config(None, sparsity=0.0, teacher=False, **same)
    calibration = run.data.train[0][:_CALIBRATION]
    return quantize_post_training(network, example_inputs=run.example_inputs, calibration=calibration, config=config)


@method(DiffQSettings)
def diffq(run: Run) -> dict[str, nn.Module]:
    """Défossez, Adi and Synnaeve, "Differentiable Model Compression via Pseudo Quantization Noise", TMLR 2022.

    Certain: noise of the size of the rounding error in place of rounding, real-valued bits of groups of consecutive
    weights by a sigmoid, a price on the size in megabytes, an Adam of its own for the bits, one run without
    pre-training or schedule of the price. :mod:`pqk_ext.pseudo_quantization` has all of it as published.

    Changed, so that the result is a file of int8 codes: groups share their channel's scale (published: the range of the
    whole tensor, min to max; ``range: tensor`` is nearest to it) and their steps are that scale times a power of two;
    hence 2 to 8 bits where the published default is 2 to 15, and clamping to what few bits reach. Activations are
    quantized as in PQK (published: left float in training). The optional fine-tuning with whole bits is an addition.

    ``result.json`` tells the size as published (with real-valued bits), the entropy of the codes if each could be told
    its bits (``coded_size_mb``), and that of the codes as they lie in the file (``entropy_mb``): one code table a layer
    does not know which weight has which bits, so mixed bits cost more there than equal ones of the same mean.

    Pitfalls: the price is by megabyte, so it must be set anew for each size of network; sizes and accuracies are those
    of whole bits; min_bits is at least 2, so that this never prunes: ``pqk.sparsity`` does.
    """
    settings = run.settings
    if settings.quantizer != "diffq":
        return {"diffq": _control(run)}
    trainee = DiffQ(run.prepare(run.network()), settings)
    run.fit("student", trainee)
    layers = _layers(trainee.student)
    run.facts["mean_bits"] = trainee.mean_bits()
    run.facts["bits_by_layer"] = {name: weight.mean_bits() for name, weight in trainee.noisy_weights.items()}
    whole = [layers[name].weight_bits for name in trainee.names]
    counts = torch.cat([bits.flatten() for bits in whole if bits is not None]).long().bincount(minlength=9)
    run.facts["weights_by_bits"] = {str(bits): int(counts[bits]) for bits in range(2, 9)}
    with torch.no_grad():
        run.facts["published_size_mb"] = float(trainee.size_mb())
        run.facts["coded_size_mb"] = float(trainee.coded_mb())
        run.facts["entropy_mb"] = float(coded_size(trainee.student, rounded=True)) / MEGABYTE
    return {"diffq": trainee.finish()}
