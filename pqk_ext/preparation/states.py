"""State dicts of prepared models: what makes one fit, plain float weights in, plain float weights out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pqk_ext.nn import PQKLayer
from pqk_ext.nn.batch_norm import RoleBatchNorm

if TYPE_CHECKING:
    from pqk_ext.preparation.model import PreparedModel

__all__ = ["add_state_checks", "check_is_prepared", "float_state_dict", "load_float_weights"]

_STEP_COUNT = "pqk.step_count"
_CODE_RANGES = "pqk.code_ranges"


# --- prepared to prepared -----------------------------------------------------------------------------------------


def add_state_checks(model: PreparedModel) -> None:
    """Puts the largest code of every quantizer into the state, and compares it whenever a state is loaded.

    Step sizes mean nothing to codes of other bits, and no shape tells them apart.
    """
    ranges = [largest for _, largest in _code_ranges(model)]
    device = model.pqk.step_count.device
    model.pqk.register_buffer("code_ranges", torch.tensor(ranges, dtype=torch.int32, device=device))
    model.register_load_state_dict_pre_hook(_check_state)  # type: ignore[no-untyped-call]


def _code_ranges(model: PreparedModel) -> list[tuple[str, int]]:
    layers = [(n, m.weight_quant_max) for n, m in model.named_modules() if isinstance(m, PQKLayer)]
    quantizers = [
        (f"activations of {block.name}", int(model.pqk_quantizers[block.quantizer].quant_max))  # type: ignore[arg-type]
        for block in model.plan
        if block.quantizer is not None
    ]
    return layers + quantizers


def check_is_prepared(state_dict: Mapping[str, Any]) -> None:
    """Raises RuntimeError for what is no prepared model's state; torch would list every quantizer."""
    if _STEP_COUNT not in state_dict:
        raise RuntimeError(
            f"the state dict holds no {_STEP_COUNT}: it is not that of a prepared model. Plain float weights are taken "
            "by model.load_float_weights(state_dict, calibration=x)"
        )


def _check_state(
    module: PreparedModel,
    state_dict: Mapping[str, Any],
    prefix: str,
    local_metadata: object,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """What torch calls before it loads a state dict, also one of a module around the model."""
    stored = state_dict.get(prefix + _CODE_RANGES)
    if stored is None or stored.shape != module.pqk.code_ranges.shape:
        return  # torch reports what is missing or of another shape
    for (name, own), other in zip(_code_ranges(module), stored.tolist(), strict=True):
        if own != other:
            error_msgs.append(f"{prefix}{name}: codes up to {own} here, up to {other} in the state dict (other bits)")


# --- plain float weights ------------------------------------------------------------------------------------------


def float_state_dict(model: PreparedModel, *, pruned: bool = True) -> dict[str, Tensor]:
    """See :meth:`pqk_ext.preparation.PreparedModel.float_state_dict`."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    result = {name: state[name] for name in model.float_names}
    if pruned:
        for name, layer in model.named_modules(remove_duplicate=False):
            if isinstance(layer, PQKLayer) and layer.prunable:
                result[f"{name}.weight"] = torch.where(layer.weight_mask, layer.weight.detach(), 0.0)
    return result


@torch.no_grad()
def load_float_weights(
    model: PreparedModel, state_dict: Mapping[str, Tensor], *, calibration: Any, strict: bool = True
) -> None:
    """See :meth:`pqk_ext.preparation.PreparedModel.load_float_weights`."""
    from pqk_ext.deploy.exporter import calibrate  # deploy imports this package

    own = model.state_dict()
    missing = [name for name in model.float_names if name not in state_dict]
    unexpected = [name for name in state_dict if name not in model.float_names]
    if strict and (missing or unexpected):
        raise RuntimeError(_mismatch(missing, unexpected))
    known = {name: value for name, value in state_dict.items() if name in model.float_names}
    for name, value in known.items():
        if value.shape != own[name].shape:
            raise RuntimeError(f"{name}: expected shape {tuple(own[name].shape)}, got {tuple(value.shape)}")
    for name, value in known.items():
        own[name].copy_(value)
    for module in model.modules():
        if isinstance(module, PQKLayer | RoleBatchNorm):
            module.copy_to_teacher()
    model.pqk.weights_replaced()
    calibrate(model, calibration)


def _mismatch(missing: list[str], unexpected: list[str]) -> str:
    if _STEP_COUNT in unexpected:
        return f"this is the state of a prepared model (it holds {_STEP_COUNT}); load_state_dict takes it"
    lines = ["these are not the float weights of this model."]
    for text, names in (("Missing", missing), ("Unexpected", unexpected)):
        if names:
            lines.append(f"{text} key(s): {', '.join(names)}.")
    hint = next((p for p in ("module.", "_orig_mod.") if unexpected and all(n.startswith(p) for n in unexpected)), None)
    if hint is not None:
        lines.append(f"All begin with {hint!r}, which a wrapper added: remove it.")
    return " ".join(lines)
