"""What follows a layer in training: batch norm, residual addition, activation and quantizer, in one step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from pqk_ext.nn.activation import ActivationQuantizer
from pqk_ext.nn.batch_norm import PQKBatchNorm1d, PQKBatchNorm2d, RoleBatchNorm
from pqk_ext.nn.roles import Role
from pqk_ext.ops._transforms import transforms_active
from pqk_ext.ops.norm_activation import norm_activation

__all__ = ["ACTIVATIONS", "epilogue"]

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6}


def epilogue(
    x: Tensor,
    residual: Tensor | None,
    norm: RoleBatchNorm | None,
    activation: str | None,
    quantizer: ActivationQuantizer | None,
    role: Role,
) -> Tensor:
    """``quantizer(activation(norm(x, role) + residual))``, where None leaves a link out.

    Links become one native operation where nobody can tell: modules with hooks, of derived types, or on tensors that
    the kernels do not take, are called one by one.
    """
    native = (x.is_cpu or x.is_cuda) and x.dtype == torch.float32 and not transforms_active()
    fused = quantizer if native and quantizer is not None and _is_plain(quantizer, ActivationQuantizer) else None
    batch_norm = _plain_batch_norm(norm, role) if native and norm is not None else None
    if batch_norm is not None and not batch_norm.training and fused is None:
        batch_norm = None  # in evaluation the float network gives the bits that torch's modules give
    if norm is not None and batch_norm is None:
        x = norm(x, role)
    links = [residual, activation, fused]
    if batch_norm is not None or (native and sum(link is not None for link in links) > 1):
        x = _fused(x, residual, batch_norm, activation, fused)
        return x if quantizer is None or fused is not None else quantizer(x)
    if residual is not None:
        x = x + residual
    if activation is not None:
        x = ACTIVATIONS[activation](x)
    return x if quantizer is None else quantizer(x)


def _is_plain(module: nn.Module, *types: type[nn.Module]) -> bool:
    """Whether calling the module is no more than its forward, which is that of one of ``types``."""
    if type(module) not in types:
        return False
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
    )


def _plain_batch_norm(norm: RoleBatchNorm, role: Role) -> _BatchNorm | None:
    """The batch norm of ``role`` if it can be computed without calling it."""
    if not _is_plain(norm, PQKBatchNorm1d, PQKBatchNorm2d):
        return None
    if role is Role.TEACHER and norm.teacher is not None:
        return norm.teacher if _is_plain(norm.teacher, nn.BatchNorm1d, nn.BatchNorm2d) else None
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    return norm


def _fused(
    x: Tensor,
    residual: Tensor | None,
    norm: _BatchNorm | None,
    activation: str | None,
    quantizer: ActivationQuantizer | None,
) -> Tensor:
    weight, bias, mean, variance, follows, eps = None, None, None, None, False, 0.0
    if norm is not None:
        follows = norm.training
        weight, bias, eps = norm.weight, norm.bias, norm.eps
        if not follows:
            mean, variance = norm.running_mean, norm.running_var
        elif x.numel() <= x.shape[1]:
            raise ValueError(
                f"expected more than 1 value per channel when training, got input of shape {list(x.shape)}"
            )
    scale, zero_point, quant_max, grad_scale = None, None, 0, 1.0
    if quantizer is not None:
        scale, zero_point, quant_max = quantizer.scale, quantizer.zero_point, quantizer.quant_max
        grad_scale = quantizer.scale_factor(x)
    output, mean, variance = norm_activation(
        x,
        residual,
        weight,
        bias,
        mean,
        variance,
        scale,
        zero_point,
        batch_statistics=follows,
        eps=eps,
        activation=activation,
        quant_max=quant_max,
        grad_scale=grad_scale,
    )
    if norm is not None and follows:
        _follow(norm, mean, variance, x.numel() // x.shape[1])
    return output


def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Moves the running statistics as ``nn.BatchNorm`` does: towards the batch's mean and unbiased variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), momentum)
