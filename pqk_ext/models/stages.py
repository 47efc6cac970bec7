"""The channels of a network's stages, where they are an option of a model."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["checked_stages"]


def checked_stages(given: Sequence[int] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    """The option `stage_channels` of a model, or the model's own channels where it is None.

    Raises:
        ValueError: Other than `len(default)` positive integers.
    """
    if given is None:
        return default
    channels = tuple(given)
    if len(channels) != len(default) or not all(type(count) is int and count >= 1 for count in channels):
        raise ValueError(f"stage_channels: expected {len(default)} positive integers, got {given!r}")
    return channels
