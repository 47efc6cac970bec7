"""Sizes of the weight layouts in the literature, to the bit, and their closed-form bounds. Needs no torch.

HAM and sHAM are those of Marino, Ghidoli, Frasca and Malchiodi, "Compression strategies and space-conscious
representations for deep neural networks" (ICPR 2020), with the canonical codes of the follow-ups (arXiv 2108.12704;
Neurocomputing 520, 2023), which call them HAC and sHAC. As there, a matrix W is ``(n, m)``: n inputs, m outputs. A
layer's weight ``(out, ...)`` is ``weight.reshape(out, -1).T``. Every size is in bits, with values of 32 bits in
the codebook and streams filled up to words of 64 bits.

**The tables of the ICPR paper count the coded stream twice.** Its space script charges 16 bytes for each word of 64
bits, which holds 8. So a matrix of two values, one bit each, is listed as 0.063 = 2/32 of float32 (the follow-up
lists 0.0313), and one of 32 values as 0.306, above the paper's own bound (1 + 5)/32 = 0.1875. Row indices and
dictionaries are not doubled, which also moves the density below which sHAM is the smaller of the two.
:func:`icpr_printed_share` reproduces the tables; the other functions count each bit once.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "WORD_BITS",
    "HuffmanCode",
    "Layout",
    "csc_bits",
    "ham_bits",
    "ham_upper_bound",
    "huffman_code",
    "icpr_ham_bound",
    "icpr_printed_share",
    "icpr_sham_bound",
    "index_map_bits",
    "sham_bits",
    "sham_upper_bound",
]

WORD_BITS = 64
VALUE_BITS = 32
_ICPR_DICTIONARY_WORDS = 6  # of a symbol in two B-trees


@dataclass(frozen=True)
class HuffmanCode:
    """What an unlimited Huffman code costs.

    Attributes:
        bits: all symbols together, each as often as it occurs.
        longest: length of the longest code word; 1 for a single symbol, 0 for none.
        symbols: number of symbols that occur.
    """

    bits: int
    longest: int
    symbols: int


def huffman_code(counts: NDArray[np.integer[Any]]) -> HuffmanCode:
    """Cost of the optimal prefix code; a single symbol takes one bit.

    Args:
        counts: how often each symbol occurs; zeros are left out.
    """
    heap = [(int(count), 0) for count in counts if count > 0]
    symbols = len(heap)
    if symbols <= 1:
        return HuffmanCode(sum(count for count, _ in heap), symbols, symbols)
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        (a, depth_a), (b, depth_b) = heapq.heappop(heap), heapq.heappop(heap)
        bits += a + b
        heapq.heappush(heap, (a + b, max(depth_a, depth_b) + 1))
    return HuffmanCode(bits, heap[0][1], symbols)


@dataclass(frozen=True)
class Layout:
    """Bits of one matrix.

    Attributes:
        stream: the entries, coded or not, filled up to whole words.
        indices: positions of the non-zeros.
        codebook: values of the symbols and the tables of the code.
    """

    stream: int
    indices: int
    codebook: int

    @property
    def bits(self) -> int:
        """All of it."""
        return self.stream + self.indices + self.codebook


def _integer_bits(largest: int) -> int:
    """The smallest of 8, 16, 32 and 64 bits that holds ``largest``."""
    return next(bits for bits in (8, 16, 32, 64) if largest < 1 << bits)


def _words(bits: float) -> int:
    return WORD_BITS * math.ceil(bits / WORD_BITS)


def _codebook(symbols: int, longest: int) -> int:
    """Values in the order of their codes, first symbol and first code of each length, table of the first lengths."""
    if symbols == 0:
        return 0
    lookup = 1 << math.ceil(math.log2(max(1, longest)))
    return (
        VALUE_BITS * symbols
        + (longest + 1) * _integer_bits(symbols)
        + (longest + 2) * _integer_bits(1 << longest)
        + lookup * _integer_bits(longest)
    )


def _matrix(matrix: NDArray[Any]) -> NDArray[Any]:
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have 2 dimensions, inputs and outputs, got shape {matrix.shape}")
    return matrix


def _count(values: NDArray[Any]) -> NDArray[np.integer[Any]]:
    return np.unique(values + values.dtype.type(0), return_counts=True)[1]  # -0.0 + 0.0 is 0.0: one symbol


def ham_bits(matrix: NDArray[Any]) -> Layout:
    """HAM: a Huffman code over all entries, zeros among them, column by column.

    Args:
        matrix: ``(n, m)``, any numeric dtype.

    Raises:
        ValueError: not a matrix.
    """
    code = huffman_code(_count(_matrix(matrix)))
    return Layout(_words(code.bits), 0, _codebook(code.symbols, code.longest))


def sham_bits(matrix: NDArray[Any]) -> Layout:
    """sHAM: a Huffman code over the non-zeros; a row index for each, a number of them for each column.

    Args:
        matrix: ``(n, m)``, any numeric dtype.

    Raises:
        ValueError: not a matrix.
    """
    n, m = _matrix(matrix).shape
    nonzeros = matrix[matrix != 0]
    code = huffman_code(_count(nonzeros))
    indices = _integer_bits(n) * (nonzeros.size + m)
    return Layout(_words(code.bits), indices, _codebook(code.symbols, code.longest))


def csc_bits(matrix: NDArray[Any]) -> Layout:
    """CSC: 32 bits and a row index for each non-zero, a number of them for each column.

    Args:
        matrix: ``(n, m)``, any numeric dtype.

    Raises:
        ValueError: not a matrix.
    """
    n, m = _matrix(matrix).shape
    nnz = int(np.count_nonzero(matrix))
    return Layout(VALUE_BITS * nnz, _integer_bits(n) * (nnz + m), 0)


def index_map_bits(matrix: NDArray[Any], *, whole_bytes: bool = True) -> Layout:
    """Index map: for each entry, the number of its value in a codebook.

    Args:
        matrix: ``(n, m)``, any numeric dtype.
        whole_bytes: indices of 8, 16 or 32 bits, as published; else of as many bits as the codebook needs.

    Raises:
        ValueError: not a matrix.
    """
    symbols = len(_count(_matrix(matrix)))
    largest = max(0, symbols - 1)
    index = _integer_bits(largest) if whole_bytes else max(1, largest.bit_length())
    return Layout(index * matrix.size, 0, VALUE_BITS * symbols)


def ham_upper_bound(n: int, m: int, symbols: int, longest: int) -> int:
    """Bits that :func:`ham_bits` cannot exceed: 1 + log2 k an entry, in whole words, and the codebook.

    Args:
        n: inputs.
        m: outputs.
        symbols: number of distinct entries, k.
        longest: longest code word, on which the codebook's size depends.
    """
    return _words(n * m * (1 + math.log2(max(1, symbols)))) + _codebook(symbols, longest)


def sham_upper_bound(n: int, m: int, nnz: int, symbols: int, longest: int) -> int:
    """Bits that :func:`sham_bits` cannot exceed.

    Args:
        n: inputs.
        m: outputs.
        nnz: number of non-zeros.
        symbols: number of distinct non-zeros, k.
        longest: longest code word, on which the codebook's size depends.
    """
    stream = _words(nnz * (1 + math.log2(max(1, symbols))))
    return stream + _integer_bits(n) * (nnz + m) + _codebook(symbols, longest)


def icpr_ham_bound(n: int, m: int, symbols: int, word_bits: int = 32) -> float:
    """ICPR's bound of HAM as a share of the dense matrix: (1 + log2 k) / B + 6 k / (n m)."""
    return (1 + math.log2(symbols)) / word_bits + _ICPR_DICTIONARY_WORDS * symbols / (n * m)


def icpr_sham_bound(n: int, m: int, nnz: int, symbols: int, word_bits: int = 32) -> float:
    """ICPR's bound of sHAM as a share of the dense matrix, with the paper's term for indices replaced.

    The paper charges n + m + 1 words for row indices and column counts. There is a row index for each non-zero, so the
    term is nnz + m + 1 here, of whole words as in the paper.
    """
    coded = nnz / (n * m) * (1 + math.log2(symbols)) / word_bits
    return coded + (_ICPR_DICTIONARY_WORDS * symbols + nnz + m + 1) / (n * m)


def icpr_printed_share(layout: Layout, n: int, m: int) -> float:
    """What the tables of the ICPR paper print for a layout: share of float32, the stream counted twice."""
    return (2 * layout.stream + layout.indices + layout.codebook) / (VALUE_BITS * n * m)
