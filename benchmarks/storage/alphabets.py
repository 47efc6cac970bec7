"""Weights to code: the kinds that trained networks have, from one seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.int8]

ROWS, COLUMNS = 1024, 4096


def laplace(scale: float, largest: int, seed: int, rows: int = ROWS, columns: int = COLUMNS) -> Weights:
    values = np.random.default_rng(seed).laplace(0, scale, (rows, columns))
    return np.clip(np.rint(values), -largest, largest).astype(np.int8)


def sparse(zeros: float, bits: int, seed: int, rows: int = ROWS, columns: int = COLUMNS) -> Weights:
    """Gaussian weights of which the largest are kept, on ``bits`` bits."""
    generator = np.random.default_rng(seed)
    values = generator.normal(0, 1, (rows, columns)).astype(np.float32)
    kept = np.abs(values) > np.quantile(np.abs(values), zeros)
    largest = 2 ** (bits - 1) - 1
    codes = np.rint(values * (largest / np.abs(values).max()))
    return np.where(kept, np.where(codes == 0, np.sign(values), codes), 0).astype(np.int8)


def gaps(seed: int) -> Weights:
    """Runs of zeros between the weights that 90 % sparsity leaves, up to 63."""
    runs = np.random.default_rng(seed).geometric(0.1, (ROWS, COLUMNS)) - 1
    return np.minimum(runs, 63).astype(np.int8)


def all_alphabets() -> dict[str, Weights]:
    return {
        "4 bits, Laplace": laplace(1.8, 7, 0),
        "32 clusters": laplace(6, 15, 1),
        "8 bits, Laplace 6": laplace(6, 127, 2),
        "8 bits, Laplace 14": laplace(14, 127, 3),
        "8 bits, Laplace 30": laplace(30, 127, 4),
        "gaps at 90 % zeros": gaps(5),
        "70 % zeros, 4 bits": sparse(0.7, 4, 6),
        "70 % zeros, 8 bits": sparse(0.7, 8, 7),
        "90 % zeros, 4 bits": sparse(0.9, 4, 8),
        "90 % zeros, 8 bits": sparse(0.9, 8, 9),
    }
