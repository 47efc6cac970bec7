"""Nested Python state <-> named tensors and JSON: what a checkpoint holds, without pickle."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["pack", "unpack"]

_TENSOR, _TUPLE, _ITEMS = "$tensor", "$tuple", "$items"


def pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON form of ``value``; its tensors are copied to the CPU into ``tensors``, under names that begin with ``name``.

    Takes dictionaries, lists, tuples, tensors, strings, numbers, booleans and None, nested in any way.

    Raises:
        TypeError: anything else; the message names the place.
    """
    if isinstance(value, torch.Tensor):
        # A copy of its own: tied tensors share memory, which the file format refuses.
        tensors[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {_TENSOR: name}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: pack(item, f"{name}.{key}", tensors) for key, item in value.items()}
        items = [[pack(key, name, tensors), pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]
        return {_ITEMS: items}
    if isinstance(value, list | tuple):
        packed = [pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return packed if isinstance(value, list) else {_TUPLE: packed}
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise TypeError(f"{name}: a checkpoint cannot hold a {type(value).__name__}")


def unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of ``pack``.

    Raises:
        KeyError: a tensor that is not in ``tensors``.
    """
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(unpack(item, tensors) for item in value[_TUPLE])
    if _ITEMS in value:
        return {unpack(key, tensors): unpack(item, tensors) for key, item in value[_ITEMS]}
    return {key: unpack(item, tensors) for key, item in value.items()}
