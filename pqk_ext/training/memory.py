"""Freed memory that stays in the process, where the C library would give it back to be faulted in again."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory", "trim_freed_memory"]

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 4 * 1024 * 1024 * ctypes.sizeof(ctypes.c_long)
_NEVER = 2**31 - 1
_SETTINGS_OF_USERS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Makes glibc keep the memory of freed tensors for the next ones, for the rest of the process.

    A training step allocates and frees the same tensors again and again. By default glibc gives memory back to the
    system whenever enough of it is free at the end of the heap, and maps large tensors anew each time; the kernel then
    clears each page at its first use, which costs about as much as an element-wise operator does. With this, the heap
    stays as large as its peak (tensors over 32 MiB are still mapped one by one), so that the resident size of the
    process does not fall after training. :func:`pqk_ext.fit` and the commands that train call it.

    Holes between tensors grow in a long run all the same: see :func:`trim_freed_memory`.

    Does nothing where the C library is not glibc, and where the environment sets malloc's thresholds
    (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_MMAP_MAX_``, ``GLIBC_TUNABLES``) or preloads an
    allocator. Calling it again changes nothing.

    Returns:
        Whether memory is kept now.
    """
    if not sys.platform.startswith("linux") or not _is_plain_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def trim_freed_memory() -> None:
    """Gives the pages of freed memory back to the system, once; the next tensors are faulted in again.

    Before glibc 2.38 an aligned block that was freed is too small for the next one of its size, so that the heap of a
    training grows hole by hole: ResNet-20's from 1.6 GB to 10 GB in 5,000 steps. Every few hundred steps this keeps it
    small for a few thousandths of the time. Does nothing where :func:`keep_freed_memory` does nothing.
    """
    if sys.platform.startswith("linux") and _is_plain_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_plain_glibc() -> bool:
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return False
    settings = [name for name in _SETTINGS_OF_USERS if name in os.environ]
    tunables = "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    preloaded = any(name in os.environ.get("LD_PRELOAD", "") for name in ("jemalloc", "tcmalloc", "mimalloc"))
    return library.startswith("glibc") and not (settings or tunables or preloaded)
