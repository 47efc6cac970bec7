"""Fixtures of the op tests."""

from __future__ import annotations

from tests.ops.cuda_ops import cuda_ops as cuda_ops
