"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal

# Small tensors: more threads only wait for each other. Tests that need two ask for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Python processes that tests start must not find the source tree in the current folder before the installed package.
os.environ.setdefault("PYTHONSAFEPATH", "1")
# Times of kernels that tests measure are not for the user's own table.
os.environ["PQK_KERNEL_TABLE"] = ""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pqk_ext import _core

REPOSITORY = Path(__file__).parent.parent

# A shell starts what runs in its background with Ctrl-C ignored, which the programs that tests interrupt would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=_core.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on every instruction set of this CPU."""
    _core.force_isa(request.param)
    yield request.param
    _core.force_isa("")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the full data sets and pretrained networks; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("PQK_DATA_DIR", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "SHA256SUMS").exists():
        pytest.skip(f"no data folder at {folder}: set PQK_DATA_DIR to run this test")
    return folder
