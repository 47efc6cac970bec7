"""From a prepared network to one file, and the proof that both compute the same."""

from __future__ import annotations

from pqk_ext.deploy.exporter import calibrate, export, quantize_post_training
from pqk_ext.deploy.lower import lower
from pqk_ext.deploy.lower_float import lower_float
from pqk_ext.deploy.parity import assert_close, assert_parity, compare, relative_difference

__all__ = [
    "assert_close",
    "assert_parity",
    "calibrate",
    "compare",
    "export",
    "lower",
    "lower_float",
    "quantize_post_training",
    "relative_difference",
]
