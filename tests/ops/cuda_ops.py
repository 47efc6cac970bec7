"""The CUDA ops for tests: on a GPU, and as the emulation that runs the same kernels on the CPU.

A test that takes the fixture ``cuda_ops`` runs once for every order in which the emulation may run a block's threads
and once on a GPU. It compares with the CPU ops::

    def test_relu(cuda_ops: CudaOps) -> None:
        x = torch.randn(5)
        assert torch.equal(cuda_ops.call("relu", x), torch.ops.pqk.relu(x))
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import pqk_ext.ops  # noqa: F401 - registers them
from tests.cuda.emulated import CUDA, EMULATED, PACKAGE, emulation, set_order


class CudaOps:
    """Ops of one device. Attributes: ``device``, ``namespace`` (``torch.ops.pqk`` or its emulated twin), ``emulated``.

    Any op is an attribute too: ``cuda_ops.fake_quantize(...)`` takes tensors on ``device``.
    """

    def __init__(self, namespace: Any, device: str) -> None:
        self.namespace = namespace
        self.device = device
        self.emulated = device == "cpu"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.namespace, name)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Calls ``name`` (with an overload: "name.overload") with CPU tensors and returns CPU tensors."""
        op, _, overload = name.partition(".")
        function = getattr(getattr(self.namespace, op), overload or "default")
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.to(self.device), (args, kwargs))
        return pytree.tree_map_only(Tensor, lambda t: t.cpu(), function(*args, **kwargs))


@cache
def emulated_namespace() -> Any:
    """``torch.ops.pqk_emulated``: the schemas of ``pqk`` with the CUDA kernels, for CPU tensors."""
    emulation()
    _schemas_of_the_emulated_ops()
    torch.ops.load_library(str(PACKAGE / "_ops_cuda_emulated.so"))
    return torch.ops.pqk_emulated


@cache
def _schemas_of_the_emulated_ops() -> torch.library.Library:
    library = torch.library.Library("pqk_emulated", "DEF")
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("pqk::"):
            library.define(str(schema).removeprefix("pqk::"))
    return library


def require_gpu() -> None:
    """Skips the test without a GPU; with ``PQK_REQUIRE_CUDA=1`` fails it."""
    if torch.cuda.is_available():
        return
    reason = "NO GPU OR NO CUDA BUILD OF TORCH: the CUDA kernels were NOT run on a GPU"
    if os.environ.get("PQK_REQUIRE_CUDA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(params=[*EMULATED, CUDA])
def cuda_ops(request: pytest.FixtureRequest) -> Iterator[CudaOps]:
    """The CUDA ops, emulated under every order of threads and on a GPU."""
    if request.param == "cuda":
        require_gpu()
        yield CudaOps(torch.ops.pqk, "cuda")
        return
    namespace = emulated_namespace()
    set_order(request.param.removeprefix("emulated-"))
    yield CudaOps(namespace, "cpu")
    set_order("forward")
