"""Convolution and linear layers whose one weight tensor serves the student and the teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pqk_ext.nn.channels import by_channel, from_channels
from pqk_ext.nn.layout import own_layout
from pqk_ext.nn.roles import Role
from pqk_ext.nn.weight_grid import (
    FEWEST_BITS,
    check_bits,
    fake_quantize_grid,
    grid_codes,
    level_histograms,
    steps_and_limits,
)
from pqk_ext.ops._transforms import transforms_active
from pqk_ext.ops.fake_quantize import fake_quantize
from pqk_ext.ops.masked_conv2d import masked_conv2d, skips_zeros
from pqk_ext.ops.masked_linear import masked_linear
from pqk_ext.ops.masked_weight import masked_weight
from pqk_ext.ops.soft_histogram import soft_histogram
from pqk_ext.quant import per_channel_scale

__all__ = ["PQKConv2d", "PQKLayer", "PQKLinear", "Sharing", "one_a_weight"]


class Sharing(Protocol):
    """The fields of PQKConfig that say how the two roles share a layer."""

    @property
    def routing(self) -> str: ...
    @property
    def teacher_weights(self) -> str: ...


class PQKLayer(nn.Module):
    """What :class:`PQKConv2d` and :class:`PQKLinear` have in common.

    Attributes:
        weight: float32 parameter ``(O, ...)``, of a transposed convolution ``(I, O / groups, ...)``: the important
            weights (``weight_mask`` True) and the unimportant.
        weight_mask: bool buffer of the same shape, True = important.
        weight_scale: float32 parameter ``(O,)``, the learned step sizes of the symmetric codes
            ``-weight_quant_max..weight_quant_max``.
        weight_bits: None, or a uint8 buffer: bits of the codes of each output channel ``(O,)`` or of each weight
            ``(O, ...)`` by output channel (:mod:`pqk_ext.nn.weight_grid`). Set by :meth:`set_weight_bits`.
        prunable: whether the mask may get False entries.
        own_sparsity: the sparsity that this layer is ranked to by itself; None where it is ranked with the others.
        teacher: the teacher's own copy of the whole layer, for the head; None elsewhere.
        noisy_weight: None, or what stands for :meth:`student_weight` in training mode, such as a
            :class:`pqk_ext.nn.noisy_weight.NoisyWeight`. Belongs to whoever set it: no submodule, not in the state.
    """

    weight_mask: Tensor
    weight_scale: nn.Parameter
    weight_zero_point: Tensor
    weight_bits: Tensor | None
    weight_quant_max: int
    prunable: bool
    own_sparsity: float | None
    routing: str
    teacher_weights: str
    teacher: nn.Module | None
    noisy_weight: Callable[[], Tensor] | None
    _counted: tuple[Tensor, int, int] | None  # a mask, its version, how many weights it keeps

    def _extend(self, source: nn.modules.conv._ConvNd | nn.Linear, bits: int, prunable: bool, sharing: Sharing) -> None:
        """Takes over the parameters of ``source`` and adds mask and scales."""
        self.weight = source.weight
        self.bias = source.bias
        self.weight_quant_max = 2 ** (bits - 1) - 1
        self.prunable = prunable
        self.own_sparsity = None
        self.routing = sharing.routing
        self.teacher_weights = sharing.teacher_weights
        self.teacher = None
        self.attach_noise(None)
        self._counted = None
        self.register_buffer("weight_mask", torch.ones_like(source.weight, dtype=torch.bool))
        channels = len(self.by_channel(source.weight))
        device = source.weight.device
        self.register_buffer("weight_zero_point", torch.zeros(channels, dtype=torch.int32, device=device))
        self.register_buffer("weight_bits", None)
        self.weight_scale = nn.Parameter(torch.ones(channels, device=device))
        self.initialize_scale()

    def give_teacher_own_copy(self, source: nn.Module) -> None:
        """Makes this layer a head that student and teacher do not share."""
        self.teacher = copy.deepcopy(source)

    def copy_to_teacher(self) -> None:
        """Starts the teacher's own copy, where there is one, from the student's values."""
        if self.teacher is not None:
            own = self.state_dict()
            for name, value in self.teacher.state_dict().items():
                value.copy_(own[name])

    def by_channel(self, tensor: Tensor) -> Tensor:
        """The weight, or a tensor of its shape, as ``(out_channels, in_channels / groups, ...)``."""
        return by_channel(self, tensor)

    def from_channels(self, tensor: Tensor) -> Tensor:
        """Undoes :meth:`by_channel`."""
        return from_channels(self, tensor)

    def scale_of_weights(self) -> Tensor:
        """The step size of every weight, of the weight's shape (a view where it can be)."""
        rows = self.by_channel(self.weight)
        return self.from_channels(self.weight_scale.view(-1, *[1] * (rows.dim() - 1)).expand(rows.shape))

    @property
    def widest_bits(self) -> int:
        """Bits of the layer's codes, which bits by channel or weight may not exceed."""
        return (self.weight_quant_max + 1).bit_length()

    def steps_and_limits(self) -> tuple[Tensor, Tensor]:
        """Of the codes, to be broadcast against the weight by output channel: multiples of step, up to limit * step."""
        dimensions = self.weight.dim()
        if self.weight_bits is None:
            limit = self.weight_scale.new_full([1] * dimensions, self.weight_quant_max)
            return torch.ones_like(limit), limit
        return steps_and_limits(self.weight_bits, self.widest_bits, dimensions)

    def set_weight_bits(self, bits: Tensor | None, *, keep_scale: bool = False) -> None:
        """Gives output channels, or single weights, bits of their own. Tied layers each need the same.

        Args:
            bits: integers, at least 2 and at most the bits that the layer was prepared with. Shape ``(O,)``: each
                channel's scale is that of its own codes. Shape of the weight by output channel: codes are some of those
                of the layer's bits (:func:`pqk_ext.nn.weight_grid.bits_of_groups` spreads groups). None: all alike.
            keep_scale: keep the step sizes; by default they are set from the present important weights.

        Raises:
            TypeError, ValueError: of :func:`pqk_ext.nn.weight_grid.check_bits`.
        """
        if bits is not None:
            check_bits(bits, self.by_channel(self.weight).shape, self.widest_bits)
            bits = bits.detach().to(self.weight.device, torch.uint8, copy=True)
        self.weight_bits = bits
        if not keep_scale:
            self.initialize_scale()

    def attach_noise(self, noisy_weight: Callable[[], Tensor] | None) -> None:
        """Sets :attr:`noisy_weight`."""
        object.__setattr__(self, "noisy_weight", noisy_weight)  # a module would be registered

    @torch.no_grad()
    def initialize_scale(self) -> None:
        """Sets the step sizes from the present important weights."""
        weight, mask = self.by_channel(self.weight), self.by_channel(self.weight_mask)
        if self.weight_bits is None:
            self.weight_scale.copy_(per_channel_scale(weight, mask, self.weight_quant_max))
        else:
            step, limit = (values.expand_as(weight) for values in self.steps_and_limits())
            self.weight_scale.copy_(per_channel_scale(weight, mask, limit, step))

    def _channel_mask(self) -> Tensor | None:
        return self.by_channel(self.weight_mask) if self.prunable else None

    def student_weight(self) -> Tensor:
        """Fake-quantized important weights, exactly 0 elsewhere; the gradient reaches important weights only."""
        if self.noisy_weight is not None and self.training:
            return self.from_channels(self.noisy_weight())
        weight, mask = self.by_channel(self.weight), self._channel_mask()
        if self.weight_bits is not None:
            grid = self.steps_and_limits()
            factor = self._grid_scale_factor()
            values = fake_quantize_grid(weight, self.weight_scale, *grid, mask=mask, grad_scale=factor)
            return self.from_channels(values)
        quantized = fake_quantize(
            weight,
            self.weight_scale,
            self.weight_zero_point,
            quant_min=-self.weight_quant_max,
            quant_max=self.weight_quant_max,
            axis=0,
            mask=mask,
            grad_scale=self._scale_factor(),
        )
        return self.from_channels(quantized)

    @torch.no_grad()
    def weight_codes(self) -> Tensor:
        """The codes of the student's weight by output channel, whole float32 numbers; a NaN stays NaN if unpruned."""
        codes = grid_codes(self.by_channel(self.weight), self.weight_scale, *self.steps_and_limits())
        return torch.where(self.by_channel(self.weight_mask), codes, 0.0)

    def weight_histograms(self) -> list[tuple[Tensor, int, int]]:
        """For each number of bits: counts of the codes in units of its step, its largest code, its step; softly."""
        weight, mask = self.by_channel(self.weight), self._channel_mask()
        if self.weight_bits is not None:
            widest, by_channel, factor = self.widest_bits, self.weight_bits.dim() == 1, self._grid_scale_factor()
            levels = level_histograms(weight, self.weight_scale, self.weight_bits, widest, mask=mask, grad_scale=factor)
            return [
                (counts, 2 ** (bits - 1) - 1, 1 if by_channel else 2 ** (widest - bits))
                for bits, counts in enumerate(levels, FEWEST_BITS)
            ]
        limit = self.weight_quant_max
        factor = self._scale_factor()
        counts = soft_histogram(weight, self.weight_scale, quant_max=limit, mask=mask, grad_scale=factor)
        return [(counts, limit, 1)]

    def weight_histogram(self) -> Tensor:
        """How many weights each code ``-weight_quant_max..weight_quant_max`` has, softly; with gradients."""
        histograms = self.weight_histograms()
        if self.weight_bits is None:
            return histograms[0][0]
        total = histograms[0][0].new_zeros(2 * self.weight_quant_max + 1)
        for counts, limit, step in histograms:
            codes = torch.arange(-limit, limit + 1, device=counts.device) * step
            total = total.index_add(0, codes + self.weight_quant_max, counts)
        return total

    def _scale_factor(self) -> float:
        """On every gradient of the step sizes, which would else be far larger than those of the weights (LSQ)."""
        return 1.0 / math.sqrt(self._weights_a_channel() * self.weight_quant_max)

    def _grid_scale_factor(self) -> Tensor | float:
        """The same where channels or weights have their own bits; by channel if channels have."""
        if self.weight_bits is None or self.weight_bits.dim() > 1:
            return self._scale_factor()
        _, limit = self.steps_and_limits()
        return 1.0 / (limit * self._weights_a_channel()).sqrt()

    def _weights_a_channel(self) -> int:
        return max(1, self.by_channel(self.weight)[0].numel())

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """A state brings its bits with it; a layer with bits of its own takes no state without them."""
        bits = state_dict.get(f"{prefix}weight_bits")
        if bits is not None and self.weight_bits is None:
            try:
                check_bits(bits, self.by_channel(self.weight).shape, self.widest_bits)
                self.weight_bits = torch.empty_like(bits, dtype=torch.uint8, device=self.weight.device)
            except (TypeError, ValueError) as error:
                args[-1].append(f"{prefix}weight_{error}")  # torch raises RuntimeError with all of them
        super()._load_from_state_dict(state_dict, prefix, *args)

    def teacher_weight(self) -> Tensor:
        """All weights. With disjoint routing the gradient reaches unimportant weights only."""
        if self.routing == "shared":
            return self.weight
        if self.teacher_weights == "quantized":
            return torch.where(self.weight_mask, self.student_weight().detach(), self.weight)
        return torch.where(self.weight_mask, self.weight.detach(), self.weight)

    def role_parameters(self, role: Role) -> tuple[Tensor, Tensor | None]:
        """Weight and bias that ``role`` computes with."""
        if role is Role.STUDENT:
            return self.student_weight(), self.bias
        if role is Role.FLOAT or (role is Role.PRUNED and not self.prunable):
            return own_layout(self.weight), self.bias
        if role is Role.PRUNED:
            return masked_weight(own_layout(self.weight), self.weight_mask), self.bias
        bias = self.bias.detach() if self.bias is not None and self.routing == "disjoint" else self.bias
        return own_layout(self.teacher_weight()), bias

    def _may_skip_zeros(self, input: Tensor, role: Role) -> bool:
        """Whether the masked ops, which leave pruned weights out where that is faster, can take this call."""
        return (
            role in (Role.STUDENT, Role.PRUNED)
            and self.prunable
            and input.dtype == self.weight.dtype == torch.float32
            and input.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and not transforms_active()
        )

    def _kept_weights(self) -> int | None:
        """How many the mask keeps, counted when it has changed; None where that cannot be told here.

        Only where the masked ops are worth a call hangs on this: they read the mask itself.
        """
        mask = self.weight_mask
        if torch.compiler.is_compiling() or mask.is_inference():
            return None
        if self._counted is None or self._counted[0] is not mask or self._counted[1] != mask._version:
            self._counted = (mask, mask._version, int(torch.count_nonzero(mask)))
        return self._counted[2]

    def __getstate__(self) -> dict[str, Any]:
        """Without the count: versions of a copy's tensors begin anew."""
        return {**self.__dict__, "_counted": None}


class PQKConv2d(PQKLayer, nn.Conv2d):
    """``nn.Conv2d`` with a pruning mask and learned symmetric per-channel quantization of its weight."""

    def __init__(self, source: nn.Conv2d, bits: int, prunable: bool, sharing: Sharing) -> None:
        settings: dict[str, Any] = {
            name: getattr(source, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")
        }
        nn.Conv2d.__init__(
            self,
            source.in_channels,
            source.out_channels,
            source.kernel_size,  # type: ignore[arg-type]
            bias=source.bias is not None,
            device="meta",
            **settings,
        )
        self._extend(source, bits, prunable, sharing)

    def forward(self, input: Tensor, role: Role = Role.STUDENT) -> Tensor:
        """Convolution of ``input`` (N, C, H, W) in the given role."""
        output: Tensor
        if role is Role.TEACHER and self.teacher is not None:
            output = self.teacher(input)
            return output
        weight, bias = self.role_parameters(role)
        padding = self.padding
        plain = self.groups == 1 and self.padding_mode == "zeros" and not isinstance(padding, str)
        if plain and input.dim() == 4 and self._may_skip_zeros(input, role) and self._skips_zeros(input):
            return masked_conv2d(
                input,
                weight,
                self.weight_mask,
                bias,
                self.stride,
                padding,  # type: ignore[arg-type]
                self.dilation,
                assume_masked=True,
            )
        output = self._conv_forward(input, weight, bias)
        return output

    def _skips_zeros(self, input: Tensor) -> bool:
        kept = self._kept_weights()
        if kept is None:
            return True
        if kept == self.weight.numel():
            return False
        layout = torch.channels_last
        channels_last = input.is_contiguous(memory_format=layout) or self.weight.is_contiguous(memory_format=layout)
        geometry = (self.stride, self.padding, self.dilation)
        return skips_zeros(input.shape, self.weight.shape, kept, *geometry, channels_last)


class PQKLinear(PQKLayer, nn.Linear):  # type: ignore[misc]  # torch declares `bias` in two ways
    """``nn.Linear`` with a pruning mask and learned symmetric per-channel quantization of its weight."""

    def __init__(self, source: nn.Linear, bits: int, prunable: bool, sharing: Sharing) -> None:
        nn.Linear.__init__(self, source.in_features, source.out_features, bias=source.bias is not None, device="meta")
        self._extend(source, bits, prunable, sharing)

    def forward(self, input: Tensor, role: Role = Role.STUDENT) -> Tensor:
        """Linear map of ``input`` (N, I) in the given role."""
        if role is Role.TEACHER and self.teacher is not None:
            output: Tensor = self.teacher(input)
            return output
        weight, bias = self.role_parameters(role)
        if self._may_skip_zeros(input, role) and self._skips_zeros(input):
            return masked_linear(input, weight, self.weight_mask, bias, assume_masked=True)
        return nn.functional.linear(input, weight, bias)

    def _skips_zeros(self, input: Tensor) -> bool:
        kept = self._kept_weights()
        if kept is None:
            return True
        rows = input.numel() // max(1, self.in_features)
        shapes = (rows, self.in_features, 1, 1), (self.out_features, self.in_features, 1, 1)
        return kept < self.weight.numel() and skips_zeros(*shapes, kept, (1, 1), (0, 0), (1, 1), True)


def one_a_weight(layers: Sequence[PQKLayer]) -> list[PQKLayer]:
    """The layers without those that share the weight of an earlier one."""
    return list({id(layer.weight): layer for layer in reversed(layers)}.values())[::-1]
