"""The settings of one PQK run: a frozen dataclass, its dict and its YAML file. Needs neither torch nor native code."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]

from pqk_ext.fields import Checked, check_value, choice, field, flag, integer, number, one_of, unknown
from pqk_ext.strict_yaml import read_mapping

__all__ = ["LayerSettings", "PQKConfig"]

# What may differ from layer to layer.
_OF_A_LAYER = ("sparsity", "weight_bits", "act_bits")


def _layers() -> Any:
    def check(value: object) -> str | None:
        allowed = "a mapping of patterns to mappings such as {'conv1': {'sparsity': 0.5}}"
        if not isinstance(value, Mapping) or not all(isinstance(own, Mapping) for own in value.values()):
            return allowed
        for pattern, own in value.items():
            if not isinstance(pattern, str) or not _compiles(pattern):
                return f"regular expressions for names of layers (found {reprlib.repr(pattern)})"
            for name, setting in own.items():
                if name not in _OF_A_LAYER:
                    return f"of each pattern only {', '.join(_OF_A_LAYER)} (found {reprlib.repr(name)})"
                wrong = _FIELDS[name].metadata["check"](setting)
                if wrong is not None:
                    return f"{wrong} for {name} of {pattern!r} (found {reprlib.repr(setting)})"
        return None

    return field(check, {})


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class LayerSettings:
    """What a config says of one layer; None where the layer has no setting of its own.

    Attributes:
        sparsity: share of its weights that is zero at the end; it is then ranked by itself.
        weight_bits: bits of its weight codes.
        act_bits: bits of the codes that it writes.
    """

    sparsity: float | None = None
    weight_bits: int | None = None
    act_bits: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PQKConfig(Checked):
    """Settings of pruning, quantization and distillation; every field is checked when the object is made.

    The fields follow Kim, Chang and Kwak, "PQK: Model Compression via Pruning, Quantization, and Knowledge
    Distillation" (Interspeech 2021); each alternative to a default is one arm of an ablation. Steps are
    optimizer steps.

    Attributes:
        sparsity: share of the prunable weights that is zero at the end, in [0, 1).
        weight_bits: bits of a weight code, 2 to 8.
        act_bits: bits of an activation code, 2 to 8.
        first_layer_bits: weight bits of the layer that reads the network's input.
        last_layer_bits: weight bits of the layer that writes the logits.
        total_steps: training steps of both phases together.
        phase1_fraction: share of ``total_steps`` spent in phase 1 (prune and quantize).
        warmup_fraction: share of phase 1, at its start, in which nothing is pruned. Its batches give the ranges of
            activations; where nothing is float, the first batch does, unless the model was calibrated before.
        float_fraction: share of phase 1, at its start, in which nothing is quantized, though pruned; the warm-up is
            float in any case. 1 prunes the float network through all of phase 1, and quantization begins with phase 2.
        ramp_end: share of phase 1 after which the sparsity no longer grows.
        mask_update_interval: steps between two rankings of the weights.
        ranking: one threshold over all layers (``"global"``), or one each (``"per_layer"``). ``"fixed"`` ranks nothing:
            what is 0 in the given weights of prunable layers stays 0, whatever ``sparsity`` and ``layers`` say, for a
            network that was pruned before.
        granularity: prune single weights, blocks of 4 consecutive input channels of one filter tap (``"1x4"``, which
            the sparse int8 kernels run fastest), whole output filters, or single weights such that two of each such
            block stay (``"2:4"``, for sparse tensor cores; ``sparsity`` 0.5).
        min_keep_per_channel: weights that every output channel keeps (with granularity 1x4: blocks; with filter
            granularity: filters a layer keeps).
        min_keep_fraction: share of each layer's weights (blocks, filters) that is kept whatever the ranking says.
        prune_linear: prune linear layers too.
        prune_depthwise: prune depthwise convolutions too.
        temperature: softening of both logits in the distillation loss.
        kd_weight: weight of the student's distillation loss.
        ce_weight: weight of the student's cross-entropy.
        kd_warmup_fraction: share of phase 2 for which the teacher learns before the distillation loss begins.
        teacher_start: share of phase 1 after which the teacher begins to learn and to teach, or where quantization
            begins, if that is later. 1 is PQK as published: with phase 2. Less lets it begin as good as the network
            was before pruning, and move what is pruned, which may come back; each of these steps costs one of phase 2.
        teacher_weights: the teacher uses the important weights as floats, or as the student's quantized values.
        routing: teacher losses move the unimportant weights only (``"disjoint"``), or both losses move all.
        kl_direction: ``"two_way"`` also pulls the teacher towards the student.
        batch_norm: the teacher has its own batch norm, or shares the student's.
        step_size: in phase 2 the quantizers' step sizes go on learning, or stay.
        step_size_lr_factor: learning rate of the step sizes, as a multiple of the weights'.
        teacher: ``False`` makes phase 2 plain continued training: the control arm of the method.
        affine_bits: of the float multiplier and bias that a file holds for each output channel: 32, or 16, which makes
            files of networks with few weights a channel up to a sixth smaller, and codes wrong by about 0.1 at most.
        size_penalty: what a kilobyte (1000 bytes) of coded weights costs, in units of the loss: ``size_penalty / 1000``
            times :func:`pqk_ext.coded_size` is added to the loss of each quantized step. 0 adds nothing. It saves
            most by making step sizes grow, for which Adam needs a larger ``step_size_lr_factor``, 0.1 to 1.
        layers: settings of single layers: a regular expression that matches the whole name of a layer, and its
            ``sparsity``, ``weight_bits`` or ``act_bits`` (of the codes that it writes). Of several that match, the
            last one counts, setting by setting. A layer with a sparsity of its own is ranked by itself, whatever
            ``ranking``, ``prune_linear`` and ``prune_depthwise`` say; 0 leaves it dense.
    """

    sparsity: float = number(0.9, 0, 1, open_high=True)
    weight_bits: int = integer(8, 2, 8)
    act_bits: int = integer(8, 2, 8)
    first_layer_bits: int = integer(8, 2, 8)
    last_layer_bits: int = integer(8, 2, 8)

    total_steps: int = integer(2000, 1)
    phase1_fraction: float = number(0.5, 0, 1, open_low=True)
    warmup_fraction: float = number(0.05, 0, 1, open_high=True)
    float_fraction: float = number(0.0, 0, 1)
    ramp_end: float = number(0.75, 0, 1, open_low=True)
    mask_update_interval: int = integer(16, 1)

    ranking: Literal["global", "per_layer", "fixed"] = choice("global", "per_layer", "fixed")
    granularity: Literal["unstructured", "1x4", "2:4", "filter"] = choice("unstructured", "1x4", "2:4", "filter")
    min_keep_per_channel: int = integer(1, 0)
    min_keep_fraction: float = number(0.01, 0, 1)
    prune_linear: bool = flag(False)
    prune_depthwise: bool = flag(True)

    temperature: float = number(2.0, 0, open_low=True)
    kd_weight: float = number(1.0, 0)
    ce_weight: float = number(1.0, 0)
    kd_warmup_fraction: float = number(0.0, 0, 1)
    teacher_start: float = number(1.0, 0, 1)
    teacher_weights: Literal["float", "quantized"] = choice("float", "quantized")
    routing: Literal["disjoint", "shared"] = choice("disjoint", "shared")
    kl_direction: Literal["one_way", "two_way"] = choice("one_way", "two_way")
    batch_norm: Literal["separate", "shared"] = choice("separate", "shared")
    step_size: Literal["learn", "freeze"] = choice("learn", "freeze")
    step_size_lr_factor: float = number(0.01, 0)
    teacher: bool = flag(True)
    affine_bits: int = one_of(32, 16)
    size_penalty: float = number(0.0, 0)

    layers: Mapping[str, Mapping[str, float]] = _layers()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", {pattern: dict(own) for pattern, own in self.layers.items()})

    def check_together(self) -> None:
        for own in (self.sparsity, *(own["sparsity"] for own in self.layers.values() if own.get("sparsity"))):
            if self.granularity == "2:4" and own != 0.5:
                raise ValueError(f"sparsity: expected 0.5 with granularity 2:4, which keeps two of four, got {own:g}")
        if self.warmup_fraction >= self.ramp_end:
            raise ValueError(
                f"ramp_end: expected a number above warmup_fraction = {self.warmup_fraction:g} (pruning begins where "
                f"the warm-up ends), got {self.ramp_end:g}"
            )
        if self.phase1_steps < 1:
            raise ValueError(
                f"phase1_fraction: expected at least 1 of total_steps = {self.total_steps} in phase 1, "
                f"got {self.phase1_fraction:g}, which is none"
            )
        largest = max([self.sparsity, *(own.get("sparsity", 0.0) for own in self.layers.values())])
        if self.min_keep_fraction > 1 - largest:
            raise ValueError(
                f"min_keep_fraction: expected at most 1 - sparsity = {1 - largest:g} (a larger floor makes the "
                f"sparsity impossible), got {self.min_keep_fraction:g}"
            )

    @property
    def phase1_steps(self) -> int:
        """Steps of phase 1; phase 2 begins at this step."""
        return round(self.total_steps * self.phase1_fraction)

    @property
    def phase2_steps(self) -> int:
        """Steps of phase 2; 0 when ``phase1_fraction`` is 1."""
        return self.total_steps - self.phase1_steps

    @property
    def warmup_steps(self) -> int:
        """Steps at the start of phase 1 in which all masks are one."""
        return math.floor(self.phase1_steps * self.warmup_fraction)

    @property
    def float_steps(self) -> int:
        """Steps at the start of phase 1 without quantization; the warm-up at least."""
        return max(self.warmup_steps, math.floor(self.phase1_steps * self.float_fraction))

    @property
    def ramp_start_step(self) -> int:
        """Step at which the sparsity begins to grow."""
        return self.warmup_steps

    @property
    def ramp_end_step(self) -> int:
        """Step from which the sparsity is final; always after ``ramp_start_step``."""
        return math.ceil(self.phase1_steps * self.ramp_end)

    @property
    def teacher_start_step(self) -> int:
        """Step from which the teacher learns and teaches: where phase 2 begins, or sooner."""
        return max(self.float_steps, math.ceil(self.phase1_steps * self.teacher_start))

    @property
    def kd_warmup_steps(self) -> int:
        """Steps of the teacher without the distillation loss, counted from where it begins."""
        return math.floor(self.phase2_steps * self.kd_warmup_fraction)

    def for_layer(self, name: str) -> LayerSettings:
        """What ``layers`` says of the layer of that name."""
        own: dict[str, Any] = {}
        for pattern, settings in self.layers.items():
            if re.fullmatch(pattern, name):
                own |= settings
        return LayerSettings(**own)

    def to_dict(self) -> dict[str, Any]:
        """All fields, in the order of the class; ``from_dict`` gives an equal config back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PQKConfig:
        """Makes a config; fields that are not given keep their defaults.

        Raises:
            ValueError: an unknown key (the nearest known one is suggested), or a value outside its range.
        """
        for key in values:
            _check_key(key)
        return cls(**values)

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """The config as YAML text; written to ``path`` too when one is given."""
        text: str = yaml.safe_dump(self.to_dict(), sort_keys=False)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def load_yaml(cls, path: str | os.PathLike[str]) -> PQKConfig:
        """Reads a YAML file of at most 1 MiB that holds one mapping of field names to values.

        Raises:
            OSError: the file cannot be read.
            ValueError: the text is not such a mapping, has a key twice, an unknown key or a value outside its
                range; the message begins with ``path:line:column`` where a place can be named.
        """
        return cls.from_dict(read_mapping(Path(path), _check_key, _check_read_value, depth=3))


_FIELDS = {one.name: one for one in dataclasses.fields(PQKConfig)}


def _check_read_value(name: str, value: object, place: str) -> None:
    check_value(PQKConfig, name, value, place)


def _check_key(key: object, place: str = "") -> None:
    if not isinstance(key, str) or key not in _FIELDS:
        raise ValueError(unknown(key, _FIELDS, place))
