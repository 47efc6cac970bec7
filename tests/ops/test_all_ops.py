"""One battery for every op of pqk_ext.ops: reference, opcheck, compile."""

from __future__ import annotations

import itertools

import pytest
import torch

import pqk_ext.ops
from pqk_ext.ops._spec import SPECS, OpSpec

specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def assert_same(actual: object, expected: object, exact: bool) -> None:
    tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {}
    torch.testing.assert_close(actual, expected, equal_nan=True, **tolerance)


@specs
def test_equals_reference(spec: OpSpec, isa: str) -> None:
    count = 0
    for args, kwargs in spec.samples():
        assert_same(spec.function(*args, **kwargs), spec.reference(*args, **kwargs), spec.exact)
        count += 1
    assert count > 0


@specs
def test_same_bits_for_any_thread_count(spec: OpSpec) -> None:
    threads = torch.get_num_threads()
    try:
        for args, kwargs in itertools.islice(spec.samples(), 40):
            torch.set_num_threads(1)
            serial = spec.function(*args, **kwargs)
            torch.set_num_threads(2)
            assert_same(spec.function(*args, **kwargs), serial, exact=True)
    finally:
        torch.set_num_threads(threads)


# torch 2.15's own check looks at the gradient of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@specs
def test_opcheck(spec: OpSpec) -> None:
    for args, kwargs in itertools.islice(spec.opcheck_samples(), 12):
        torch.library.opcheck(spec.overload, args, kwargs)


@specs
def test_compiles_without_graph_break(spec: OpSpec) -> None:
    args, kwargs = next(iter(spec.samples()))
    compiled = torch.compile(spec.function, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*args, **kwargs), spec.function(*args, **kwargs), exact=True)


def test_every_op_is_public_and_documented() -> None:
    for name in SPECS:
        assert name in pqk_ext.ops.__all__
        assert getattr(pqk_ext.ops, name).__doc__
