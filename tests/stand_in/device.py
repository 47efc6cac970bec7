"""A stand-in for a GPU: tensors that say ``cuda`` and keep their values in the CPU's memory.

In ``stand_in()`` every operator on ``device="cuda"`` runs on the CPU, and refuses what a GPU refuses: arguments on two
devices, a generator of the other device, ``.numpy()``. All else is as on the CPU, to the bit. So it shows where code
forgets the device; it cannot show what a GPU's kernels compute, or how fast. Operators of this package that have Python
code for CUDA take that code.

It needs ``library.cpp``, loaded before torch is imported: a process of its own (``tests/training/test_stand_in.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

import pqk_ext.ops  # noqa: F401  # before torch says that it has CUDA: with its CPU libraries only

__all__ = ["DEVICE", "stand_in"]

DEVICE = torch.device("cuda", 0)
_CUDA_KEY = torch._C.DispatchKey.CUDA
# Operators whose other arguments may lie on the CPU: copies, and indices.
_ACROSS = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_", "aten::index_put"}


class _OnDevice(Tensor):
    """A tensor of the stand-in; ``inside`` has its values."""

    inside: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inside: Tensor) -> _OnDevice:
        made: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inside.shape,
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=DEVICE,
        )
        made.inside = inside
        return made  # type: ignore[no-any-return]

    def __init__(self, inside: Tensor) -> None:
        pass

    def tolist(self) -> Any:  # torch has none for subclasses
        return self.inside.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"_OnDevice({self.inside!r})"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the stand-in outside of stand_in()")


class _Mode(TorchDispatchMode):
    """Runs the operators.

    Attributes:
        own_operators: those of this package that ran on the device.
        emulated: those of them whose CUDA kernels did, emulated.
    """

    def __init__(self, kernels: Any = None) -> None:
        super().__init__()
        self.own_operators: set[str] = set()
        self.emulated: set[str] = set()
        self._kernels = kernels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.is_inference_mode_enabled() and func._can_decompose():
            with self:  # in inference mode composite operators come whole
                return func.decompose(*args, **kwargs)
        values = tree_flatten((args, kwargs))[0]
        here = any(isinstance(value, _OnDevice) for value in values)
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        to_device = here if device is None else device.type == "cuda"
        if not here and not to_device:
            return func(*args, **kwargs)
        _check(func._schema.name, values, here, to_device)
        if func.namespace == "pqk":
            self.own_operators.add(func._schema.name)
            in_python = torch._C._dispatch_has_kernel_for_dispatch_key(func._schema.name, _CUDA_KEY)
            if in_python and self._emulated(func) is None:
                with self:
                    return func._op_dk(_CUDA_KEY, *args, **kwargs)
        if device is not None and device.type == "cuda":
            kwargs["device"] = torch.device("cpu")
        run = self._emulated(func) or func
        with _host_generators(values) as to_host:
            inside = tree_map(lambda value: to_host.get(id(value), _unwrap(value)), (args, kwargs))
            result = run(*inside[0], **inside[1])
        if to_device:
            result = tree_map(lambda value: _OnDevice(value) if isinstance(value, Tensor) else value, result)
        return return_and_correct_aliasing(func, args, kwargs, result) if here and to_device else result

    def _emulated(self, func: Any) -> Any:
        """The same operator with its CUDA kernel, where there is one."""
        name = func._schema.name.replace("pqk::", "pqk_emulated::")
        if self._kernels is None or func.namespace != "pqk":
            return None
        if not torch._C._dispatch_has_kernel_for_dispatch_key(
            f"{name}.{func._overloadname}".removesuffix(".default"), "CPU"
        ):
            return None
        self.emulated.add(func._schema.name)
        return getattr(getattr(self._kernels, func._opname), func._overloadname)


def _check(name: str, values: list[Any], here: bool, to_device: bool) -> None:
    tensors = [v for v in values if isinstance(v, Tensor) and not isinstance(v, _OnDevice)]
    elsewhere = [v for v in tensors if v.dim() > 0 and v.device.type == "cpu"]
    if here and elsewhere and name not in _ACROSS:
        shapes = ", ".join(str(tuple(value.shape)) for value in elsewhere)
        raise RuntimeError(f"{name}: expected all tensors on cuda:0, got some on the CPU, of shapes {shapes}")
    for value in values:
        if isinstance(value, torch.Generator) and (value.device.type == "cuda") != to_device:
            raise RuntimeError(f"{name}: expected a generator of the operator's device, got one of {value.device}")


@contextlib.contextmanager
def _host_generators(values: list[Any]) -> Iterator[dict[int, torch.Generator]]:
    """By the address of each generator of the device, one of the CPU that has its state."""
    found = {id(v): v for v in values if isinstance(v, torch.Generator) and v.device.type == "cuda"}
    to_host = {address: torch.Generator() for address in found}
    for address, generator in found.items():
        to_host[address].set_state(generator.get_state())
    yield to_host
    for address, generator in found.items():
        generator.set_state(to_host[address].get_state())


def _unwrap(value: Any) -> Any:
    return value.inside if isinstance(value, _OnDevice) else value


@contextlib.contextmanager
def stand_in(kernels: Any = None) -> Iterator[_Mode]:
    """Makes ``device="cuda"`` work in this block, as if torch were built for it; the mode knows what ran.

    Args:
        kernels: ``torch.ops.pqk_emulated``: operators of this package that have a CUDA kernel there run it.
    """
    of_torch = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "stand-in",
        "is_bf16_supported": lambda: True,
        "mem_get_info": lambda device=None: (1 << 33, 1 << 33),
        # The device's own random numbers come from the CPU's generator.
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state": lambda state, device="cuda": torch.set_rng_state(state),
        "set_rng_state_all": lambda states: torch.set_rng_state(states[0]),
    }
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for name, function in of_torch.items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", function))
        stack.enter_context(mock.patch("torch.version.cuda", "13.0"))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        mode = stack.enter_context(_Mode(kernels))
        torch.__future__.set_swap_module_params_on_conversion(True)  # `parameter.data = ...` knows no subclasses
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swapped)
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=...)` would move its values unseen
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        yield mode
