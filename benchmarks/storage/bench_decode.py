"""Decoding of weights: every codec on every alphabet, beside zstd on the same symbols.

    PYTHONPATH=. python benchmarks/storage/bench_decode.py

Writes ``benchmarks/results/decode.json`` (under three minutes). zstd decodes what it made at levels 1, 3 and 19; the
rival is the fastest of these. Both sides allocate their output.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

sys.path.insert(0, str(Path(__file__).parents[1]))

from alphabets import Weights, all_alphabets
from paired import compare, merge_results

from pqk_ext import _core

ZSTD_LEVELS = (1, 3, 19)
INTERLEAVED = ("interleaved-huffman", "interleaved-sparse-huffman")


def least_seconds(function: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def decoder(codec: str, payload: bytes, weights: Weights, num_threads: int = 1) -> Callable[[], Any]:
    count, rows = weights.size, len(weights)
    return lambda: _core.decode_weight(codec, payload, count, rows, "weight", num_threads)


def zstd_rivals(weights: Weights) -> dict[int, bytes]:
    symbols = weights.tobytes()
    return {level: zstandard.ZstdCompressor(level=level).compress(symbols) for level in ZSTD_LEVELS}


def fastest_zstd(frames: dict[int, bytes]) -> tuple[int, Callable[[], bytes]]:
    decompress = zstandard.ZstdDecompressor().decompress
    seconds = {level: least_seconds(lambda frame=frame: decompress(frame), 3) for level, frame in frames.items()}
    level = min(seconds, key=lambda level: seconds[level])
    return level, lambda: decompress(frames[level])


def measure_codec(codec: str, weights: Weights, zstd: Callable[[], bytes], rounds: int) -> dict[str, Any]:
    flat = weights.reshape(-1)
    start = time.perf_counter()
    payload = _core.encode_weight(codec, flat, len(weights))
    encode = time.perf_counter() - start
    decode = decoder(codec, payload, weights)
    assert np.array_equal(decode(), flat)
    result: dict[str, Any] = {
        "bits_per_weight": 8 * len(payload) / weights.size,
        "encode_mb_per_s": weights.size / encode / 1e6,
    }
    slow = least_seconds(decode, 2) > 0.02
    paired = compare(codec, decode, zstd, rounds=3 if slow else rounds, seconds_a_round=0.003)
    result |= {"gweights_per_s": weights.size / paired.subject_us / 1e3, "zstd": asdict(paired)}
    if codec in INTERLEAVED:
        two = compare("2 threads", decoder(codec, payload, weights, 2), decode, rounds=rounds, seconds_a_round=0.003)
        result["two_threads"] = asdict(two)
        result["isa_gweights_per_s"] = {}
        for isa in _core.supported_isas():
            _core.force_isa(isa)
            try:
                result["isa_gweights_per_s"][isa] = weights.size / least_seconds(decode, 5) / 1e9
            finally:
                _core.force_isa("")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alphabet", action="append", help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    for name, weights in all_alphabets().items():
        if arguments.alphabet and name not in arguments.alphabet:
            continue
        frames = zstd_rivals(weights)
        level, zstd = fastest_zstd(frames)
        shares = np.unique(weights, return_counts=True)[1] / weights.size
        entry: dict[str, Any] = {
            "weights": weights.size,
            "entropy_bits": float(-(shares * np.log2(shares)).sum()),
            "zstd": {
                "level": level,
                "bits_per_weight": {str(at): 8 * len(frame) / weights.size for at, frame in frames.items()},
            },
            "codecs": {},
        }
        for codec in _core.codec_names():
            result = measure_codec(codec, weights, zstd, arguments.rounds)
            entry["codecs"][codec] = result
            print(
                f"{name}, {codec}: {result['bits_per_weight']:.3f} bits, {result['gweights_per_s']:.2f} Gweights/s, "
                f"{result['zstd']['ratio']:.2f} x zstd -{level}, encode {result['encode_mb_per_s']:.0f} MB/s",
                flush=True,
            )
        merge_results("decode", "alphabets", {name: entry}, isa=_core.active_isa())


if __name__ == "__main__":
    main()
