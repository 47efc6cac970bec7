"""A weight under pseudo quantization noise, which learns how many bits each of its groups needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pqk_ext.nn.layers import PQKLayer
from pqk_ext.nn.weight_grid import FEWEST_BITS, bits_of_groups, grid_codes, steps_and_limits
from pqk_ext.pseudo_quantization import bits_of_logits, logits_of_bits, noise, overhead_bits
from pqk_ext.quant import SMALLEST_SCALE

__all__ = ["RANGES", "NoisyWeight"]

RANGES = ("fitted", "learned", "channel", "tensor")


class NoisyWeight(nn.Module):
    """Real-valued bits of groups of consecutive weights, and the noise that rounding to them would make.

    The published method (Défossez, Adi and Synnaeve, TMLR 2022) on the nested grid of :mod:`pqk_ext.nn.weight_grid`,
    which files and integer kernels know: with real-valued bits b the step is ``2**(widest - b)`` of the channel's
    scale, and codes reach ``2**(widest - 1)`` less one step. In training a weight is clamped to that reach and gets
    ``scale * step * eps``; both are differentiable in weight, bits and scale.

    Args:
        layers: those that share one weight; usually one.
        group_size: consecutive weights (by output channel, flattened) in a group; 0 makes one group of all.
        min_bits: least number of bits, at least 2.
        max_bits: most, at most those that the layer was prepared with.
        initial_bits: strictly between the two.
        kind: ``gaussian`` or ``uniform`` noise.
        range: where the scale comes from while there is noise: least squares for the present weights and bits, now and
            then (``fitted``); the layer's own parameter (``learned``); or the largest weight of the ``channel`` or of
            the whole ``tensor`` (as published), through which gradients then pass.

    Attributes:
        logits: parameter ``(groups,)``; the bits are their sigmoid, stretched.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        layers: Sequence[PQKLayer],
        *,
        group_size: int = 8,
        min_bits: int = 2,
        max_bits: int = 8,
        initial_bits: float = 7.0,
        kind: str = "gaussian",
        range: str = "fitted",
    ) -> None:
        super().__init__()
        layer = layers[0]
        if not FEWEST_BITS <= min_bits < max_bits <= layer.widest_bits:
            raise ValueError(
                f"min_bits, max_bits: expected {FEWEST_BITS} <= min_bits < max_bits <= {layer.widest_bits}, the "
                f"layer's, got {min_bits} and {max_bits}"
            )
        if range not in RANGES:
            raise ValueError(f"range: expected one of {', '.join(RANGES)}, got {range!r}")
        self._layers = tuple(layers)  # not submodules: they belong to the network
        self._shape = layer.by_channel(layer.weight).shape
        self.group_size = group_size or self._shape.numel()
        self.min_bits, self.max_bits, self.kind, self.range = min_bits, max_bits, kind, range
        groups = -(-self._shape.numel() // self.group_size)
        logit = logits_of_bits(initial_bits, min_bits, max_bits)
        self.logits = nn.Parameter(torch.full((groups,), logit, device=layer.weight.device))
        self._eps = noise(layer.weight.new_empty(0), kind)
        bits = bits_of_groups(self._whole_bits(), self._shape, self.group_size)
        for each in self._layers:
            each.set_weight_bits(bits)

    def bits(self) -> Tensor:
        """Real-valued bits of each group ``(groups,)``."""
        return bits_of_logits(self.logits, self.min_bits, self.max_bits)

    @torch.no_grad()
    def _whole_bits(self) -> Tensor:
        return self.bits().round().clamp(self.min_bits, self.max_bits).to(torch.uint8)

    def draw(self) -> None:
        """Fresh noise, for all that follows up to the next call: a step asks for the same weight more than once."""
        self._eps = noise(self._layers[0].weight.new_empty(self._shape), self.kind)

    def _mask(self) -> Tensor:
        return self._layers[0].by_channel(self._layers[0].weight_mask)

    def _weight(self) -> Tensor:
        return self._layers[0].by_channel(self._layers[0].weight)

    def _spread(self, scale: Tensor) -> Tensor:
        return scale.view(-1, *[1] * (len(self._shape) - 1))

    def scale(self) -> Tensor:
        """Step sizes of the widest codes ``(O,)`` that the noise goes by, differentiable."""
        layer = self._layers[0]
        if self.range == "fitted":
            return layer.weight_scale.detach()
        if self.range == "learned":
            factor = 1.0 / math.sqrt(max(1, self._shape[1:].numel()) * layer.weight_quant_max)  # as LSQ's
            own = layer.weight_scale
            return own.detach() + (own - own.detach()) * factor
        largest = torch.where(self._mask(), self._weight().abs(), 0.0).flatten(1).amax(1)
        if self.range == "tensor":
            largest = largest.amax().expand(largest.shape)
        return (largest / layer.weight_quant_max).clamp_min(SMALLEST_SCALE)

    def forward(self) -> Tensor:
        """The weight by output channel as this step's noise makes it; exact zeros where it is pruned."""
        layer = self._layers[0]
        step = torch.exp2(layer.widest_bits - bits_of_groups(self.bits(), self._shape, self.group_size))
        reach = 2.0 ** (layer.widest_bits - 1) - step
        scale = self._spread(self.scale())
        codes = torch.minimum(torch.maximum(self._weight() / scale, -reach), reach)
        return torch.where(self._mask(), (codes + step * self._eps) * scale, 0.0)

    @torch.no_grad()
    def settle(self, *, fit: bool = True) -> None:
        """Gives the layers whole bits, and the scale of this range: what evaluation and file then go by.

        Args:
            fit: find fitted scales anew, which takes as long as a hundred roundings.
        """
        bits = bits_of_groups(self._whole_bits(), self._shape, self.group_size)
        for layer in self._layers:
            assert layer.weight_bits is not None
            layer.weight_bits.copy_(bits)
        if self.range in ("channel", "tensor"):
            self._layers[0].weight_scale.copy_(self.scale())  # tied layers share theirs
        elif self.range == "fitted" and fit:
            self._layers[0].initialize_scale()

    def attach(self, attached: bool) -> None:
        """Lets the layers train with noise, or as they are."""
        for layer in self._layers:
            layer.attach_noise(self if attached else None)

    # --- sizes ------------------------------------------------------------------------------------------------

    def size_bits(self) -> Tensor:
        """As published: the bits of every weight that is not pruned, and the overhead of the groups."""
        bits = bits_of_groups(self.bits(), self._shape, self.group_size)
        return torch.where(self._mask(), bits, 0.0).sum() + overhead_bits(self.bits(), self.min_bits)

    def coded_bits(self) -> Tensor:
        """About the entropy of the codes in the file, differentiable in the bits; exact where all have the same bits.

        A weight of b bits costs what its codes of floor(b) bits and of one more cost, in the shares that make b. The
        price of a code is that among all weights of the layer, had they the same bits: prices among codes of mixed bits
        would hold every group at the bits that it has, since a code that nobody has yet is dear.
        """
        bits = bits_of_groups(self.bits(), self._shape, self.group_size)
        below = bits.detach().floor().clamp(self.min_bits, self.max_bits - 1).long()
        share = bits - below
        share = torch.where(self._mask(), share, share.detach())
        costs = torch.stack([self._costs(whole) for whole in range(self.min_bits, self.max_bits + 1)])
        at = (below - self.min_bits).unsqueeze(0)
        low, high = costs.gather(0, at)[0], costs.gather(0, at + 1)[0]
        return (low + share * (high - low)).sum()

    @torch.no_grad()
    def _costs(self, bits: int) -> Tensor:
        """Bits that each weight's code takes if all weights have so many bits."""
        layer = self._layers[0]
        whole = torch.full(self._shape, bits, dtype=torch.uint8, device=self.logits.device)
        codes = grid_codes(self._weight(), self.scale(), *steps_and_limits(whole, layer.widest_bits, len(self._shape)))
        bins = (torch.where(self._mask(), codes, 0.0).long() + layer.weight_quant_max).flatten()
        counts = bins.bincount(minlength=2 * layer.weight_quant_max + 1).double()
        price = counts.sum().log2() - counts.clamp_min(1.0).log2()
        return price[bins].float().view(self._shape)

    @torch.no_grad()
    def mean_bits(self) -> float:
        """Whole bits of a weight that is not pruned, on average; of all, if none is left."""
        bits = bits_of_groups(self._whole_bits(), self._shape, self.group_size).float()
        kept = bits[self._mask()]
        return float(kept.mean() if kept.numel() else bits.mean())
