"""Sparsity and bits of each layer from its sensitivity, for a size of the file or an accuracy."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from pqk_ext.config import PQKConfig
from pqk_ext.preparation import PreparedModel
from pqk_ext.sensitivity.measure import Row, Sensitivity, Walk, as_prepared, sensitivity, set_layer

__all__ = ["Allocation", "allocate", "choose_config"]


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A setting for every layer.

    Attributes:
        rows: the chosen row of each layer.
        kl: sum of their divergences.
        nbytes: sum of their weights' sizes.
    """

    rows: tuple[Row, ...]

    @property
    def kl(self) -> float:
        return sum(row.kl for row in self.rows)

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)

    def layers(self) -> dict[str, dict[str, float]]:
        """What ``PQKConfig(layers=...)`` takes."""
        return {re.escape(row.layer): {"sparsity": row.sparsity, "weight_bits": row.weight_bits} for row in self.rows}


def allocate(table: Sensitivity, weight_bytes: int) -> Allocation:
    """The settings with the least sum of divergences whose weights take at most ``weight_bytes``.

    Of each layer only settings on the lower convex hull of (bytes, divergence) are considered; from the largest on, the
    step that costs the least divergence for each byte that it saves is taken until the weights fit, and what is left
    over is given back where it helps most. This is the greedy solution of the multiple-choice knapsack (Sinha and
    Zoltners, 1979): at worst one step from the best.

    Raises:
        ValueError: even the smallest settings are larger.
    """
    allocation: Allocation | None = None
    for allocation in path(table):
        if allocation.nbytes <= weight_bytes:
            return _spend_rest(table, allocation, weight_bytes)
    assert allocation is not None
    raise ValueError(
        f"weight_bytes: expected at least {allocation.nbytes}, what the smallest settings take, got {weight_bytes}"
    )


def path(table: Sensitivity) -> Iterator[Allocation]:
    """Allocations from the largest to the smallest, each one layer's step from the one before."""
    hulls = {layer: _hull([row for row in table.rows if row.layer == layer]) for layer in table.layers()}
    at = dict.fromkeys(hulls, 0)

    def current() -> Allocation:
        return Allocation(tuple(hull[at[layer]] for layer, hull in hulls.items()))

    yield current()
    while steps := [layer for layer, hull in hulls.items() if at[layer] + 1 < len(hull)]:
        layer = min(steps, key=lambda name: _slope(hulls[name][at[name]], hulls[name][at[name] + 1]))
        at[layer] += 1
        yield current()


def _slope(larger: Row, smaller: Row) -> float:
    """Divergence paid for each byte saved."""
    return (smaller.kl - larger.kl) / (larger.nbytes - smaller.nbytes)


def _hull(rows: list[Row]) -> list[Row]:
    """Rows that no mixture of others beats, from the largest to the smallest."""
    hull: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.kl, row.nbytes)):
        if hull and row.nbytes >= hull[-1].nbytes:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], row):
            hull.pop()
        hull.append(row)
    return hull


def _spend_rest(table: Sensitivity, allocation: Allocation, weight_bytes: int) -> Allocation:
    rows = {row.layer: row for row in allocation.rows}
    while True:
        spare = weight_bytes - sum(row.nbytes for row in rows.values())
        better = [
            row for row in table.rows if row.kl < rows[row.layer].kl and row.nbytes - rows[row.layer].nbytes <= spare
        ]
        if not better:
            return Allocation(tuple(rows.values()))
        best = max(better, key=lambda row: rows[row.layer].kl - row.kl)
        rows[best.layer] = best


def choose_config(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: PQKConfig,
    *,
    target_bytes: int | None = None,
    target_accuracy: float | None = None,
    table: Sensitivity | None = None,
    path: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PQKConfig:
    """``config`` with a sparsity and weight bits for each layer, chosen from its sensitivity.

    Args:
        model: trained float model.
        x: float32 samples ``(N, ...)``, some hundred, not those of the final test.
        y: int64 class numbers ``(N,)``.
        config: everything else; its ``sparsity``, ``weight_bits`` and ``layers`` have no effect any more.
        target_bytes: size that the exported file shall have at most; it holds for the present weights, and training
            moves it by some per cent.
        target_accuracy: the smallest file whose accuracy on ``x`` is at least this, in [0, 1], measured with all
            layers pruned and quantized together and *before* any training, which only adds to it.
        table: the sensitivity, if it is measured already.
        path: as for :func:`sensitivity`.
        progress: as for :func:`sensitivity`.

    Raises:
        ValueError: not exactly one target, or one that no setting of the table reaches; says what can be reached.
    """
    if (target_bytes is None) == (target_accuracy is None):
        raise ValueError("target_bytes, target_accuracy: expected exactly one of the two")
    if table is None:
        table = sensitivity(model, x, y, granularity=config.granularity, path=path, progress=progress)
    if target_bytes is not None:
        chosen = _for_size(model, x, table, target_bytes, config.granularity)
    else:
        chosen = _for_accuracy(model, x, y, table, float(target_accuracy or 0.0), config.granularity)
    largest = max(row.sparsity for row in chosen.rows)
    return dataclasses.replace(
        config,
        sparsity=min(config.sparsity, largest),
        min_keep_fraction=min(config.min_keep_fraction, 1 - largest),
        layers=chosen.layers(),
    )


def _for_size(model: nn.Module, x: Tensor, table: Sensitivity, target: int, granularity: str) -> Allocation:
    """The largest allocation whose file is small enough; what a file holds besides weights depends on them a little."""
    prepared = as_prepared(model, x, granularity)
    largest = next(path(table))
    rest = _file_bytes(prepared, largest) - largest.nbytes
    weight_bytes = target - rest
    while True:
        try:
            chosen = allocate(table, weight_bytes)
        except ValueError as error:
            raise ValueError(
                f"target_bytes: cannot be reached: {error}; {rest} bytes of the file are no weights, got {target}"
            ) from error
        size = _file_bytes(prepared, chosen)
        if size <= target:
            return chosen
        weight_bytes = min(weight_bytes, chosen.nbytes) - (size - target)


def _file_bytes(prepared: PreparedModel, allocation: Allocation) -> int:
    from pqk_ext.deploy import export

    _apply(prepared, allocation)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.pqk"
        export(prepared, file)
        return file.stat().st_size


def _apply(prepared: PreparedModel, allocation: Allocation) -> None:
    for row in allocation.rows:
        set_layer(prepared, row.layer, row.sparsity, row.weight_bits)


@torch.no_grad()
def _for_accuracy(
    model: nn.Module, x: Tensor, y: Tensor, table: Sensitivity, target: float, granularity: str
) -> Allocation:
    """The smallest allocation on the path from which on, towards larger ones, accuracy holds; by bisection."""
    prepared = as_prepared(model, x, granularity)
    walk = Walk(prepared, x)
    steps = list(path(table))

    def accuracy(index: int) -> float:
        _apply(prepared, steps[index])
        logits = walk.logits_with([row.layer for row in steps[index].rows])
        return float((logits.argmax(1) == y).double().mean())

    best = accuracy(0)
    if best < target:
        raise ValueError(f"target_accuracy: expected at most {best:.4f}, the largest setting's, got {target}")
    low, high = 0, len(steps)  # holds at low, not at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if accuracy(middle) >= target else (low, middle)
    return steps[low]
