"""What it costs to prune and quantize one layer while the rest of the network stays float."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext import _core
from pqk_ext.config import PQKConfig
from pqk_ext.nn import PQKLayer, Role
from pqk_ext.preparation import PreparedModel, prepare
from pqk_ext.preparation.blocks import Block
from pqk_ext.prune import compute_masks
from pqk_ext.runtime.format import SPEED_TOLERANCE

__all__ = ["Row", "Sensitivity", "Walk", "sensitivity", "set_layer"]

SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)
WEIGHT_BITS = (8, 4, 3)


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer at one setting, the rest of the network float.

    Attributes:
        layer: name of the layer.
        sparsity: share of its weights that is zero.
        weight_bits: bits of its weight codes.
        kl: mean Kullback-Leibler divergence of the changed class probabilities from the float ones, in nats.
        loss: mean cross-entropy with the labels.
        accuracy: share of the samples that are right, in [0, 1].
        nbytes: size of the layer's weights in a file, by the codec that ``export`` would take.
    """

    layer: str
    sparsity: float
    weight_bits: int
    kl: float
    loss: float
    accuracy: float
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The table that :func:`sensitivity` measures.

    Attributes:
        loss: of the float network.
        accuracy: of the float network, in [0, 1].
        samples: how many it was measured on.
        rows: one for each layer and setting, in the order of the network.
    """

    loss: float
    accuracy: float
    samples: int
    rows: tuple[Row, ...]

    def layers(self) -> list[str]:
        """Names of the layers, in the order of the network."""
        return list(dict.fromkeys(row.layer for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


class Walk:
    """The float network's value of every block for one batch; what follows a changed layer is computed anew.

    Args:
        model: a prepared model in evaluation mode.
        x: the batch; all activations that it causes stay in memory.
    """

    def __init__(self, model: PreparedModel, x: Tensor) -> None:
        self.model = model
        self.values: list[Tensor] = []
        for block in model.plan:
            self.values.append(x if block.op == "input" else self._compute(block, self.values, Role.FLOAT))

    @property
    def logits(self) -> Tensor:
        return self.values[-1]

    def logits_with(self, changed: Iterable[str]) -> Tensor:
        """Logits when the layers of these names compute with their masked, quantized weights."""
        names, new = set(changed), dict[int, Tensor]()
        for index, block in enumerate(self.model.plan):
            if block.module in names or any(i in new for i in block.inputs):
                values = [new.get(i, value) for i, value in enumerate(self.values)]
                changes = block.module in names
                new[index] = self._changed(block, values) if changes else self._compute(block, values, Role.FLOAT)
        return new.get(len(self.values) - 1, self.logits)

    def _changed(self, block: Block, values: Sequence[Tensor]) -> Tensor:
        """With running statistics moved as those of the batch are: training would do so in its first steps."""
        if block.batch_norm is None:
            return self._compute(block, values, Role.STUDENT)
        norm = self.model.get_submodule(block.batch_norm)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        x = [values[block.inputs[0]]]
        bare = block.with_(inputs=(0,), batch_norm=None, activation=None)
        before, after = (_moments(self.model.compute(bare, x, role)) for role in (Role.FLOAT, Role.STUDENT))
        mean, variance = norm.running_mean.clone(), norm.running_var.clone()
        norm.running_mean += after[0] - before[0]
        norm.running_var *= (after[1] + norm.eps) / (before[1] + norm.eps)
        try:
            return self._compute(block, values, Role.STUDENT)
        finally:
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)

    def _compute(self, block: Block, values: Sequence[Tensor], role: Role) -> Tensor:
        return self.model.compute(block, [values[i] for i in block.inputs], role)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel."""
    channels = x.transpose(0, 1).flatten(1)
    return channels.mean(1), channels.var(1, correction=0)


def sensitivity(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    weight_bits: Sequence[int] = WEIGHT_BITS,
    granularity: str = "unstructured",
    path: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Prunes and quantizes each layer by itself, without training, and measures what the network's outputs lose.

    Weights are ranked by magnitude within the layer; step sizes have the least squared error, as at the start of
    training. The running statistics of the batch norm behind the layer move as much as the statistics of ``x`` do:
    without that, pruning would seem far worse than it is once training has begun. Activations stay float. A layer's
    damage alone says which layers are worth weights and bits; damages of several layers add up only roughly, and
    training undoes most of them.

    Args:
        model: trained float model, or a prepared one, whose float weights count. It is not changed.
        x: float32 samples ``(N, ...)``; some hundred. All activations that they cause are kept in memory.
        y: int64 class numbers ``(N,)``.
        sparsities: shares of zero weights to try, in [0, 1).
        weight_bits: bits to try, 2 to 8; every pair of a sparsity and bits is measured.
        granularity: what is pruned together, as in ``PQKConfig``.
        path: file to which each row is written as it is measured; if it exists, the rows in it are not measured
            again.
        progress: called with the number of rows done and their total.

    Raises:
        ValueError: no samples, labels that do not fit, a setting out of range, or a ``path`` that holds the rows of
            another network, other samples or settings.
        UnsupportedOperator: as :func:`pqk_ext.prepare`.
    """
    if len(x) == 0 or x.shape[:1] != y.shape:
        raise ValueError(f"y: expected one label for each of at least one sample, got {tuple(y.shape)} for {len(x)}")
    grid = [(float(sparsity), bits) for sparsity in sparsities for bits in weight_bits]
    for sparsity, bits in grid:
        PQKConfig(sparsity=sparsity, weight_bits=bits, min_keep_fraction=0.0)
    prepared = as_prepared(model, x, granularity)
    with torch.no_grad():
        walk = Walk(prepared, x)
        names = [str(block.module) for block in prepared.plan if block.op in ("conv2d", "linear")]
        wanted = [(name, *pair) for name in names for pair in grid]
        rows = _Rows(path, _fingerprint(prepared, x, y, granularity))
        for count, (name, sparsity, bits) in enumerate(wanted):
            if (name, sparsity, bits) not in rows.done:
                rows.add(_measure(walk, y, name, sparsity, bits))
            if progress is not None:
                progress(count + 1, len(wanted))
        loss, accuracy = _scores(walk.logits, y)
    return Sensitivity(loss, accuracy, len(x), tuple(rows.done[key] for key in wanted))


def as_prepared(model: nn.Module, x: Tensor, granularity: str = "unstructured") -> PreparedModel:
    """A prepared model in evaluation mode with the float weights of ``model``, nothing pruned."""
    if isinstance(model, PreparedModel):
        from copy import deepcopy

        prepared = deepcopy(model)
        for layer in prepared.pqk.layers():
            layer.weight_mask.fill_(True)
            layer.prunable = True
    else:
        config = PQKConfig(sparsity=0.0, teacher=False, prune_linear=True)
        prepared = prepare(model, config, example_inputs=x[:1])
    prepared.pqk.config = dataclasses.replace(prepared.pqk.config, granularity=granularity)  # type: ignore[arg-type]
    return prepared.eval()


@torch.no_grad()
def set_layer(model: PreparedModel, name: str, sparsity: float, bits: int) -> None:
    """Gives a layer the mask and step sizes of a setting."""
    layer = model.get_submodule(name)
    assert isinstance(layer, PQKLayer)
    c = model.pqk.config
    (mask,) = compute_masks(
        [layer.by_channel(layer.weight)],
        sparsity,
        granularity=c.granularity,
        min_keep_per_channel=c.min_keep_per_channel,
        min_keep_fraction=min(c.min_keep_fraction, 1 - sparsity),
    )
    layer.weight_mask.copy_(layer.from_channels(mask))
    layer.weight_quant_max = 2 ** (bits - 1) - 1
    layer.set_weight_bits(None)


def _measure(walk: Walk, y: Tensor, name: str, sparsity: float, bits: int) -> Row:
    set_layer(walk.model, name, sparsity, bits)
    logits = walk.logits_with([name])
    loss, accuracy = _scores(logits, y)
    reference, changed = F.log_softmax(walk.logits, 1), F.log_softmax(logits, 1)
    kl = float(F.kl_div(changed, reference, reduction="batchmean", log_target=True))
    layer = walk.model.get_submodule(name)
    assert isinstance(layer, PQKLayer)
    return Row(name, sparsity, bits, max(0.0, kl), loss, accuracy, _coded_bytes(layer))


def _scores(logits: Tensor, y: Tensor) -> tuple[float, float]:
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).double().mean())


def _coded_bytes(layer: PQKLayer) -> int:
    rows = layer.by_channel(layer.student_weight() / layer.scale_of_weights())
    codes = rows.round().to(torch.int8).cpu().contiguous().numpy()
    flat, rows = codes.reshape(-1), codes.shape[0]
    return len(_core.encode_weight(_core.choose_codec(flat, rows, SPEED_TOLERANCE), flat, rows))


def _fingerprint(model: PreparedModel, x: Tensor, y: Tensor, granularity: str) -> str:
    digest = hashlib.sha256(granularity.encode())
    for tensor in [*model.parameters(), *model.buffers(), x, y]:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Rows:
    """Rows by layer and setting, and the file that keeps them if there is one."""

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self.path = path
        self.done: dict[tuple[str, float, int], Row] = {}
        if path is None:
            return
        if path.exists():
            for row in self._read(path, fingerprint):
                self.done[row.layer, row.sparsity, row.weight_bits] = row
        else:
            path.write_text(json.dumps({"fingerprint": fingerprint}) + "\n")

    @staticmethod
    def _read(path: Path, fingerprint: str) -> Iterator[Row]:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]  # the last line may be torn
        try:
            head, *lines = [json.loads(line) for line in whole.splitlines()] or [{}]
            rows = [Row(**line) for line in lines]
        except (ValueError, TypeError) as error:
            raise ValueError(f"path: {path} does not hold rows of a sensitivity analysis: {error}") from error
        if head != {"fingerprint": fingerprint}:
            raise ValueError(f"path: {path} holds the rows of another network, or of other samples")
        if len(whole) < len(data):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        yield from rows

    def add(self, row: Row) -> None:
        self.done[row.layer, row.sparsity, row.weight_bits] = row
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
