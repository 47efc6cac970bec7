"""The ``pqk`` command: one file a command, each importing what it needs when it runs.

``run``, ``inspect``, ``bench`` and ``verify`` work without torch.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; see ``pqk --help``.

    Args:
        arguments: what stands after ``pqk``; default: that of the process.

    Returns:
        The exit code, see :class:`pqk_ext.cli.failures.ExitCode`.
    """
    from pqk_ext.cli.app import run  # typer and rich are not needed to import this package

    return run(arguments)
