"""A layer's weight as codes into trained centroids, through ``torch.nn.utils.parametrize``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["SharedWeight"]


class _Gather(torch.autograd.Function):
    """``[0, *centroids][codes]``; the gradient of a centroid is the sum of those of its weights.

    Sums are taken in double, on the CPU in the order of the weights: they do not depend on the number of threads, as
    those of torch's own indexing do.
    """

    @staticmethod
    def forward(ctx: Any, centroids: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.count = len(centroids)
        table = torch.cat([centroids.new_zeros(1), centroids])
        return table.index_select(0, codes.flatten()).view(codes.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (codes,) = ctx.saved_tensors
        return _sums(gradient, codes, ctx.count).to(gradient.dtype), None


def _sums(values: Tensor, codes: Tensor, count: int) -> Tensor:
    """Sum of the values of each centroid, float64; those with code 0 are left out."""
    return torch.bincount(codes.flatten(), values.flatten().double(), count + 1)[1:]


class SharedWeight(nn.Module):
    """Parametrization of a weight: its parameter is the centroids, a buffer says which weight takes which.

    The centroids stand in the layer as ``layer.parametrizations.weight.original``, a parameter of shape ``(K,)`` that
    any optimizer trains; their gradient is the sum over the weights that share them (Han, Mao and Dally, "Deep
    Compression", 2016). ``layer.weight`` is computed from them. Weights of code 0 are 0 and stay 0, whatever
    optimizer, momentum or weight decay do.

    Attributes:
        codes: int32 buffer of the weight's shape: 0 for a weight that is fixed at 0, else 1 + index of its centroid.
        count: K.
        common: whether other layers share the same centroids.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, count: int) -> None:
        super().__init__()
        self.register_buffer("codes", codes.to(torch.int32))
        self.count = count
        self.common = False

    def forward(self, centroids: Tensor) -> Tensor:
        """The weight, of the shape of the codes."""
        weight: Tensor = _Gather.apply(centroids, self.codes)  # type: ignore[no-untyped-call]
        return weight

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """The centroids nearest to a weight that is assigned to the layer: the mean over those that share one.

        Raises:
            RuntimeError: the centroids are those of other layers too.
        """
        if self.common:
            raise RuntimeError("this layer shares its centroids with others, which assigning its weight would change")
        counts = torch.bincount(self.codes.flatten(), minlength=self.count + 1)[1:]
        return (_sums(weight, self.codes, self.count) / counts.clamp_min(1)).to(weight.dtype)

    def extra_repr(self) -> str:
        """For people."""
        return f"centroids={self.count}, common={self.common}"
