"""Files that are whole or absent after any crash, and a lock that only one process holds."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
from pathlib import Path

from pqk_ext.training.errors import RunLockedError

__all__ = ["RunLock", "sweep_temporaries", "write_durably"]

_TEMPORARY = re.compile(r"step-\d+\.ckpt\.[0-9a-f]{8}\.tmp|best-\d+\.ckpt\.[0-9a-f]{8}\.tmp")
# Room for this file and the one after it: a run must not be what fills the disk.
_SPARE_SPACE = 2.2
_log = logging.getLogger(__name__)


def write_durably(path: Path, data: bytes) -> None:
    """Puts ``data`` in place of ``path`` so that a crash at any instant leaves the old file or the new one.

    Temporary file in the same directory, write, fsync, rename, fsync of the directory: in this order, each step's
    errors reported. On an error the temporary file is removed and the old file is as it was.

    Raises:
        OSError: no space, no permission, or an input/output error; names the path.
    """
    free, needed = shutil.disk_usage(path.parent).free, int(_SPARE_SPACE * len(data))
    if free < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed} bytes wanted, {free} free", str(path))
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Makes renames and removals in ``directory`` survive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporaries(directory: Path) -> None:
    """Removes what killed saves left behind, and nothing else; call it only under the directory's lock."""
    for path in directory.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()


class RunLock:
    """An exclusive lock on a run directory, free again as soon as its process ends, however that happens.

    Raises:
        RunLockedError: another process holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "lock"
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = self._read()
        except BlockingIOError:
            holder = self._read()
            os.close(self._descriptor)
            raise RunLockedError(f"{run_dir}: process {holder or 'unknown'} is training in this directory") from None
        if holder:
            _log.warning("%s: process %s ended without releasing the run; taken over", run_dir, holder)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _read(self) -> str:
        return os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()

    def forget_in_child(self) -> None:
        """For a forked loader worker: a worker that outlives its parent must not keep the lock."""
        os.close(self._descriptor)

    def release(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
