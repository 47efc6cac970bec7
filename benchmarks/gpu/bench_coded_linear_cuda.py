"""Linear layers whose weight stays coded, on a GPU: one row of codes, against the same layer with a dense weight.

`python benchmarks/gpu/bench_coded_linear_cuda.py` writes `benchmarks/results/gpu/coded_linear.json` as it goes. Each
call is one CUDA graph.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import paired
import paired_cuda
import torch

from pqk_ext import _core, build_info
from pqk_ext.ops import coded_linear, decode_weight, int8_linear

STEM = "gpu/coded_linear"
SHAPES = ((1024, 1024), (4096, 4096))
CODECS = ("packed", "interleaved-huffman", "interleaved-sparse-huffman")
KEPT = {"interleaved-sparse-huffman": 0.1}  # share of weights that are not pruned


def laplace(rows: int, columns: int, kept: float) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Weights of 4 bits as training leaves them: about 3 bits each in Huffman codes. A million, again and again."""
    generator = np.random.default_rng(0)
    size = min(1 << 20, rows * columns)
    values = np.rint(generator.laplace(0, 1.6, size)).clip(-7, 7) * (generator.random(size) < kept)
    return np.resize(values.astype(np.int8), rows * columns)


def payload_of(codec: str, rows: int, columns: int) -> torch.Tensor:
    coded = _core.encode_weight(codec, laplace(rows, columns, KEPT.get(codec, 1.0)), rows)
    return torch.from_numpy(np.frombuffer(coded, np.uint8).copy()).cuda()


def linear(codec: str, rows: int, columns: int) -> dict[str, Any]:
    payload = payload_of(codec, rows, columns)
    weight = decode_weight(payload, codec=codec, rows=rows, row_size=columns)
    x = torch.randint(0, 256, (1, columns), dtype=torch.uint8, device="cuda")
    multiplier, bias = torch.full((rows,), 1e-3, device="cuda"), torch.full((rows,), 128.0, device="cuda")
    ours = paired_cuda.recorded(lambda: coded_linear(x, payload, multiplier, bias, codec=codec, input_zero_point=0))
    dense = paired_cuda.recorded(lambda: int8_linear(x, weight, multiplier, bias, input_zero_point=0))
    result = paired_cuda.compare(f"linear {codec} {rows}x{columns}", ours, dense, rounds=10, seconds_a_round=0.003)
    print(result, flush=True)
    return asdict(result) | {"payload_bytes": payload.numel()}


def main() -> None:
    rows: dict[str, Any] = {}
    for codec, shape in itertools.product(CODECS, SHAPES):
        name = f"{codec} {shape[0]}x{shape[1]}"
        try:
            rows[name] = linear(codec, *shape)
        except RuntimeError as error:
            rows[name] = {"failed": str(error).splitlines()[0]}
            print(f"NOT MEASURED: {name}: {rows[name]['failed']}", flush=True)
        paired.merge_results(STEM, "rows", rows, **paired_cuda.gpu(), build=build_info())


if __name__ == "__main__":
    main()
