"""Layouts and errors of huffman_decode; hostile payloads are in tests/core/test_codecs.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pqk_ext import _core
from pqk_ext.ops import huffman_decode

WEIGHTS = np.array([0, 0, 3, 0, -1, 0, 0, 0, 3], np.int8)
PAYLOAD = torch.frombuffer(bytearray(_core.encode_weight("huffman", WEIGHTS, 1)), dtype=torch.uint8)


def test_strided_payload() -> None:
    strided = torch.stack([PAYLOAD, PAYLOAD + 1], dim=1)[:, 0]
    assert huffman_decode(strided, 9).tolist() == WEIGHTS.tolist()


@pytest.mark.parametrize(
    ("payload", "count", "message"),
    [
        (PAYLOAD.to(torch.int8), 9, "payload must be Byte, got Char"),
        (PAYLOAD[None], 9, r"payload must have 1 dimension, got shape \[1, "),
        (PAYLOAD, -1, "count must not be negative, got -1"),
        (PAYLOAD, 8, "E_HUFF_STREAM"),
        (PAYLOAD, 10, "E_HUFF_STREAM"),
        (PAYLOAD, 2**62, "E_BOMB"),
        (PAYLOAD[:-1], 9, "E_HUFF_STREAM|E_BOMB"),
        (PAYLOAD[:2], 9, "E_TRUNCATED"),
        (PAYLOAD, 0, "E_SIZE_MISMATCH"),
    ],
)
def test_bad_arguments_are_named(payload: torch.Tensor, count: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"(?s)pqk::huffman_decode: .*({message})"):
        huffman_decode(payload, count)
