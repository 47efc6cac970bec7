"""Checkpoints of a run directory: safetensors files with a digest, the newest two and the best kept."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from pqk_ext.training.durable import sweep_temporaries, write_durably
from pqk_ext.training.errors import CheckpointError, CheckpointNotWrittenError
from pqk_ext.training.packing import pack, unpack

__all__ = ["CheckpointStore", "read_checkpoint", "write_checkpoint"]

_ENTRY = "pqk-checkpoint-1"
_NO_DIGEST = "0" * 64
# Inside the JSON text of the state quotation marks are escaped: this cannot match there.
_DIGEST_PATTERN = re.compile(rb'"pqk-checkpoint-1":"(?=[0-9a-f]{64} )')
_MAX_HEADER_BYTES = 100 << 20
_KEPT = 2
_log = logging.getLogger(__name__)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes nested state (see ``packing.pack``) as one safetensors file, durably.

    The file's metadata holds one entry: the SHA-256 of the whole file (computed with 64 zeros in its own place), a
    blank, and the state as JSON. One entry, because safetensors writes several in random order: equal states would
    not give equal files.

    Raises:
        CheckpointNotWrittenError: the file system refused; an older file of that name is as it was.
        TypeError: state that cannot be stored.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(pack(state, "state", tensors), separators=(",", ":"))
    data = save_safetensors(tensors, {_ENTRY: f"{_NO_DIGEST} {text}"})
    start = _digest_offset(data)
    digest = hashlib.sha256(data).hexdigest()
    try:
        write_durably(path, data[:start] + digest.encode() + data[start + 64 :])
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointNotWrittenError(f"{path}: cannot write the checkpoint: {reason}") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what ``write_checkpoint`` wrote; every byte of the file is covered by the digest.

    Raises:
        CheckpointError: a torn, damaged or foreign file.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    try:
        start = _digest_offset(data)
        zeroed = hashlib.sha256(data[:start])
        zeroed.update(_NO_DIGEST.encode())
        zeroed.update(memoryview(data)[start + 64 :])
        stored = data[start : start + 64].decode("ascii", "replace")
        if zeroed.hexdigest() != stored:
            raise CheckpointError(f"{path}: damaged: its SHA-256 is {zeroed.hexdigest()}, the file says {stored}")
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        # Copies: views into the file's bytes would be aligned for no vector load.
        tensors = {name: tensor.clone() for name, tensor in load_safetensors(data).items()}
        state: dict[str, Any] = unpack(json.loads(header["__metadata__"][_ENTRY][65:]), tensors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or no checkpoint: {error}") from error
    return state


def _digest_offset(data: bytes) -> int:
    """Where the 64 digest characters stand. Nothing before a matching digest is trusted beyond finding them."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError(f"{len(data)} bytes, header of {size}")
    found = re.search(_DIGEST_PATTERN, data[8 : 8 + size])
    if found is None:
        raise ValueError("no digest in the header")
    return 8 + found.end()


class CheckpointStore:
    """The checkpoints of one run directory; the caller holds the directory's lock.

    ``step-NNNNNNNN.ckpt`` hold all that a run needs to go on, ``best-NNNNNNNN.ckpt`` what the caller calls best. The
    two newest steps stay, and the best files that they name in ``state["best"]["step"]``.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._best_of_step: dict[int, int | None] = {}

    def holds_run(self) -> bool:
        """Whether the directory has a checkpoint, whole or not."""
        return bool(self.steps("step")) or any(self.run_dir.glob("*.corrupt"))

    def path(self, kind: str, step: int) -> Path:
        return self.run_dir / f"{kind}-{step:08d}.ckpt"

    def steps(self, kind: str) -> list[int]:
        """Steps of the stored files of ``kind``, oldest first; ordered by step, not by time."""
        found = (re.fullmatch(rf"{kind}-(\d{{8,}})\.ckpt", path.name) for path in self.run_dir.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes the state after ``step`` steps, then removes what is no longer needed."""
        path = self.path("step", step)
        write_checkpoint(path, state)
        self._remove_old(step, state)
        return path

    def save_best(self, step: int, state: dict[str, Any]) -> Path:
        """Writes a best candidate; it stays as long as a kept step names it."""
        path = self.path("best", step)
        write_checkpoint(path, state)
        return path

    def load_newest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest step that is whole, or None for a directory that never had one.

        A damaged newer file is reported and renamed to ``.corrupt``; what killed saves left behind is removed.

        Raises:
            CheckpointError: there are files, and none is whole; nothing is removed or renamed.
        """
        sweep_temporaries(self.run_dir)
        damaged: list[str] = []
        for step in reversed(self.steps("step")):
            try:
                state = read_checkpoint(self.path("step", step))
            except (CheckpointError, OSError) as error:
                damaged.append(str(error))
                continue
            self._set_aside_above(step, damaged)
            self._best_of_step[step] = _best_step(state)
            return step, state
        if damaged or any(self.run_dir.glob("*.corrupt")):
            reasons = "; ".join(damaged) or "only files set aside as damaged are left"
            raise CheckpointError(
                f"{self.run_dir}: no checkpoint is whole, and starting over must be asked for: {reasons}"
            )
        return None

    def load_best(self, step: int) -> dict[str, Any]:
        """The best candidate of ``step``.

        Raises:
            CheckpointError: it is damaged or missing.
        """
        try:
            return read_checkpoint(self.path("best", step))
        except OSError as error:
            raise CheckpointError(f"{self.path('best', step)}: {error.strerror}") from error

    def _set_aside_above(self, step: int, reasons: list[str]) -> None:
        for reason in reasons:
            _log.warning("%s; going back to step %d", reason, step)
        for newer in self.steps("step"):
            if newer > step:
                path = self.path("step", newer)
                path.rename(path.with_suffix(".corrupt"))

    def _remove_old(self, step: int, state: dict[str, Any]) -> None:
        # A resumed run may meet files of steps that it has not reached again: they are not older.
        kept = [other for other in self.steps("step") if other <= step][-_KEPT:]
        for other in self.steps("step"):
            if other < kept[0]:
                _remove(self.path("step", other))
        self._best_of_step[step] = _best_step(state)
        if not self._best_of_step.keys() >= set(kept):
            return  # a step of an earlier process is kept, and which best file it names is not known here
        best = {self._best_of_step[other] for other in kept}
        for other in self.steps("best"):
            if other not in best and other <= step:
                _remove(self.path("best", other))


def _remove(path: Path) -> None:
    """The new checkpoint is safe: that an old one cannot be removed is no reason to end a run."""
    try:
        path.unlink()
    except OSError as error:
        _log.warning("%s: cannot remove the old checkpoint: %s", path, error.strerror)


def _best_step(state: dict[str, Any]) -> int | None:
    best = state.get("best")
    return best["step"] if best else None
