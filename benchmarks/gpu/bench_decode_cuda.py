"""Decoding of coded weights on a GPU, 64 million of them: GB of int8 weights a second, against a copy of as many bytes.

`python benchmarks/gpu/bench_decode_cuda.py` writes `benchmarks/results/gpu/decode.json`. Weights are rounded normal
numbers, as trained ones are nearly; a share of them is not 0. Decoded weights are compared with what was encoded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import paired
import paired_cuda
import torch

from pqk_ext import _core, build_info
from pqk_ext.ops import decode_weight

STEM = "gpu/decode"
ROWS, COLUMNS = 4096, 16384
# Codec, standard deviation of the codes, share of non-zeros.
CASES = [
    ("interleaved-huffman", 12.0, 1.0),
    ("interleaved-huffman", 2.0, 1.0),
    ("interleaved-sparse-huffman", 12.0, 0.1),
    ("packed", 2.0, 1.0),
]
GOAL = 300.0  # GB of weights a second from interleaved Huffman codes


def weights(deviation: float, share: float) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    random = np.random.default_rng(0)
    values = np.clip(np.rint(random.standard_normal((ROWS, COLUMNS), np.float32) * deviation), -127, 127)
    return (values * (random.random((ROWS, COLUMNS), np.float32) < share)).astype(np.int8)


def main() -> None:
    for codec, deviation, share in CASES:
        name = f"{codec}, deviation {deviation:g}, {share:.0%}"
        expected = weights(deviation, share)
        data = _core.encode_weight(codec, expected.reshape(-1), ROWS)
        payload = torch.frombuffer(bytearray(data), dtype=torch.uint8).to("cuda")
        options: dict[str, Any] = {"codec": codec, "rows": ROWS, "row_size": COLUMNS}
        try:
            equal = bool((decode_weight(payload, **options).cpu().numpy() == expected).all())
            call = paired_cuda.recorded(lambda payload=payload, options=options: decode_weight(payload, **options))
            us = min(paired_cuda.mean_call_us(call, 10) for _ in range(10))
        except RuntimeError as error:
            print(f"NOT MEASURED: {name}: {error}", flush=True)
            entry: dict[str, Any] = {"failed": str(error).splitlines()[0]}
        else:
            speed = expected.size / us / 1e3
            copy = paired_cuda.copy_us(len(data) + expected.size)
            entry = {"us": us, "gb_a_second": speed, "copy_share": copy / us, "bytes": len(data), "equal": equal}
            goal = f", goal {'held' if speed >= GOAL else 'missed'}" if codec == "interleaved-huffman" else ""
            print(f"{name}: {speed:.0f} GB/s of weights, {copy / us:.0%} of a copy, equal: {equal}{goal}", flush=True)
        paired.merge_results(STEM, "rows", {name: entry}, **paired_cuda.gpu(), build=build_info())


if __name__ == "__main__":
    main()
