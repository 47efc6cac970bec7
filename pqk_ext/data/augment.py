"""Random changes to images that do not depend on who asks, in which order, or on how many workers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F


def crop_and_flip(images: torch.Tensor, indices: Sequence[int], *, seed: int, epoch: int, pad: int = 4) -> torch.Tensor:
    """Shift each image by up to `pad` pixels in both directions, zeros moving in, and mirror every second one.

    The usual CIFAR augmentation (He et al., CVPR 2016, section 4.2). The random numbers are a hash of (`seed`,
    `epoch`, index): the same image in the same epoch is changed in the same way in any batch or process.

    Args:
        images: (N, C, H, W), any dtype.
        indices: N indices of the images in their data set.
        seed: Seed of the run.
        epoch: Number of the pass over the data.
        pad: Largest shift in pixels.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: `images` is not 4-D, `indices` has another length, or `pad` is negative.
    """
    if images.dim() != 4 or len(indices) != len(images):
        raise ValueError(f"images: expected ({len(indices)}, C, H, W), got {tuple(images.shape)}")
    if pad < 0:
        raise ValueError(f"pad: expected at least 0, got {pad}")
    random = _hash(seed, epoch, np.asarray(indices, np.int64))
    down = torch.from_numpy((random % np.uint64(2 * pad + 1)).astype(np.int64))
    right = torch.from_numpy(((random >> np.uint64(24)) % np.uint64(2 * pad + 1)).astype(np.int64))
    mirrored = torch.from_numpy((random >> np.uint64(63)).astype(bool))

    height, width = images.shape[2:]
    columns = torch.arange(width).expand(len(images), width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns) + right[:, None]
    rows = torch.arange(height) + down[:, None]
    padded = F.pad(images, (pad, pad, pad, pad))
    device = images.device
    number = torch.arange(len(images), device=device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=device)[None, :, None, None]
    rows, columns = (places.to(device, non_blocking=True) for places in (rows, columns))
    return padded[number, channel, rows[:, None, :, None], columns[:, None, None, :]]


def shift_and_noise(x: torch.Tensor, generator: torch.Generator, *, shift: int, spread: torch.Tensor) -> torch.Tensor:
    """Moves each clip in time by up to ``shift`` frames, edge frames repeated, and adds Gaussian noise.

    Args:
        x: features (N, C, frames, coefficients).
        generator: source of the random numbers, on ``x``'s device. Movements are equal on all devices, noise is not.
        shift: largest movement in frames.
        spread: standard deviation of the noise, broadcastable to ``x``.
    """
    frames = x.shape[2]
    moved = torch.randint(-shift, shift + 1, (len(x), 1), generator=on_cpu(generator))
    source = (torch.arange(frames) + moved).clamp(0, frames - 1).to(x.device, non_blocking=True)
    shifted = x.gather(2, source[:, None, :, None].expand_as(x))
    return shifted + spread * torch.randn(x.shape, generator=generator, device=x.device)


def on_cpu(generator: torch.Generator) -> torch.Generator:
    """A generator of the CPU: the given one, or a new one with the seed of a GPU's."""
    if generator.device.type == "cpu":
        return generator
    return torch.Generator().manual_seed(generator.initial_seed())


def _hash(seed: int, epoch: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """64 random bits for each index: the finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), once a part."""
    state = np.zeros(indices.shape, np.uint64)
    for part in (np.full(indices.shape, seed), np.full(indices.shape, epoch), indices):
        state = state + part.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state
