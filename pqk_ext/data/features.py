"""Features of one-second sound clips, in numpy: cepstral coefficients and log-mel spectra.

The mel scale is 1127 ln(1 + f / 700) everywhere, filters are triangles on that scale, windows are periodic Hann.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Waves = npt.NDArray[Any]

SAMPLE_RATE: Final = 16_000


def mfcc_mlperf_tiny(waves: Waves) -> Floats:
    """Return the features of MLPerf Tiny's keyword-spotting benchmark, those of the embedded set.

    Each clip is divided by its largest sample (not by its largest magnitude; a clip without a positive sample stays
    as it is), then 30 ms windows every 20 ms, 512-point magnitude spectrum, 40 mel bands from 20 Hz to 4 kHz,
    ln(x + 1e-6), the first 10 coefficients of the orthonormal-scaled cosine transform (DCT-II).

    Args:
        waves: int16 or float (N, samples) at 16 kHz.

    Returns:
        float32 (N, frames, 10); 49 frames for 16,000 samples.

    Raises:
        ValueError: `waves` is not 2-D, or shorter than one window.
    """
    scaled: Floats = _checked(waves, 480).astype(np.float32)
    largest = scaled.max(1, keepdims=True)
    np.divide(scaled, largest, out=scaled, where=largest > 0)
    bands = _spectrum(scaled, window=480, hop=320, fft_size=512) @ mel_filters(40, 512, 20.0, 4000.0)
    return _cosine_transform(np.log(bands + np.float32(1e-6)), 10)


def mfcc_hello_edge(waves: Waves) -> Floats:
    """Return the features of the "Hello Edge" networks (arXiv:1711.07128), as TensorFlow's `mfcc` op computes them.

    40 ms windows every 20 ms, 1024-point magnitude spectrum, 40 mel bands from 20 Hz to 4 kHz, ln(max(x, 1e-12)), the
    first 10 coefficients of the orthonormal-scaled cosine transform (DCT-II).

    Args:
        waves: int16, or float in -1..1, (N, samples) at 16 kHz.

    Returns:
        float32 (N, frames, 10); 49 frames for 16,000 samples.

    Raises:
        ValueError: `waves` is not 2-D, or shorter than one window.
    """
    bands = _spectrum(_unit(_checked(waves, 640)), window=640, hop=320, fft_size=1024)
    bands = bands @ mel_filters(40, 1024, 20.0, 4000.0)
    return _cosine_transform(np.log(np.maximum(bands, np.float32(1e-12))), 10)


def log_mel(waves: Waves, *, bands: int = 40, window: int = 480, hop: int = 160) -> Floats:
    """Return log-mel spectra, 30 ms windows centred every 10 ms, in the shape that `res8` and `res15` take.

    The clip is extended by half a window of zeros on both sides; power spectrum, mel bands from 20 Hz to 4 kHz,
    ln(x + 1e-6). (The published networks follow this with a cosine transform of the same width, which is a rotation.)

    Args:
        waves: int16, or float in -1..1, (N, samples) at 16 kHz.
        bands: Number of mel bands.
        window: Window length in samples, at most 512.
        hop: Distance of windows in samples.

    Returns:
        float32 (N, samples // hop + 1, bands); (N, 101, 40) for 16,000 samples and the defaults.

    Raises:
        ValueError: `waves` is not 2-D or empty, `bands` or `hop` is below 1, or `window` is not in 2..512.
    """
    if bands < 1 or hop < 1 or not 2 <= window <= 512:
        raise ValueError(
            f"bands, window, hop: expected at least 1, 2..512 and at least 1, got {bands}, {window}, {hop}"
        )
    waves = np.pad(_unit(_checked(waves, 1)), ((0, 0), (window // 2, window - window // 2)))
    power = _spectrum(waves, window=window, hop=hop, fft_size=512) ** 2
    return np.asarray(np.log(power @ mel_filters(bands, 512, 20.0, 4000.0) + np.float32(1e-6)), np.float32)


#: The front ends by name: int16 (N, samples) to float32 (N, frames, width).
FRONT_ENDS: Final[dict[str, Callable[[Waves], Floats]]] = {
    "mlperf_tiny": mfcc_mlperf_tiny,
    "hello_edge": mfcc_hello_edge,
    "log_mel": log_mel,
}


def mel_filters(bands: int, fft_size: int, low: float, high: float) -> Floats:
    """Return float32 (fft_size // 2 + 1, bands): triangular filters, evenly spaced in mel from `low` to `high` Hz."""

    def mel(hertz: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)

    edges = np.linspace(mel(low), mel(high), bands + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = mel(np.linspace(0, SAMPLE_RATE / 2, fft_size // 2 + 1))[:, None]
    filters = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    filters[0] = 0  # the mean of the signal carries no sound
    return filters.astype(np.float32)


def _checked(waves: Waves, window: int) -> Waves:
    waves = np.asarray(waves)
    if waves.ndim != 2 or waves.shape[1] < window:
        raise ValueError(f"waves: expected (N, samples) with at least {window} samples, got shape {waves.shape}")
    return waves


def _unit(waves: Waves) -> Floats:
    scale = 1 / 32768 if waves.dtype == np.int16 else 1
    return (waves * np.float32(scale)).astype(np.float32)


def _spectrum(waves: Floats, *, window: int, hop: int, fft_size: int) -> Floats:
    """Magnitudes, float32 (N, frames, fft_size // 2 + 1); only whole windows."""
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(waves, window, axis=1)[:, ::hop]
    return np.abs(np.fft.rfft(frames * hann, fft_size, axis=-1)).astype(np.float32)


def _cosine_transform(x: Floats, count: int) -> Floats:
    """The first `count` DCT-II coefficients of the last axis, all scaled by sqrt(2 / length), as TensorFlow does."""
    length = x.shape[-1]
    angles = np.pi / length * np.outer(np.arange(length) + 0.5, np.arange(count))
    basis = (np.sqrt(2 / length) * np.cos(angles)).astype(np.float32)
    return np.asarray(x @ basis, np.float32)
