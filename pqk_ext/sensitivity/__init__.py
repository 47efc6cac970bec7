"""Which layers bear pruning and few bits, and settings of each layer chosen from that."""

from __future__ import annotations

from pqk_ext.sensitivity.allocate import Allocation, allocate, choose_config
from pqk_ext.sensitivity.measure import Row, Sensitivity, sensitivity

__all__ = ["Allocation", "Row", "Sensitivity", "allocate", "choose_config", "sensitivity"]
