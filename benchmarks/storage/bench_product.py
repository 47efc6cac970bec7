"""Products with weights that stay coded, beside dense products of the same size.

    PYTHONPATH=. python benchmarks/storage/bench_product.py

Writes ``benchmarks/results/product.json`` (about three minutes). Three subjects, 4096 x 4096 each:

- ``rows``: one row of x against numpy's and torch's float32 product of the decoded weight, 1 and 2 threads for all;
- ``batches``: a linear layer in the engine, coded against resident, by batch;
- ``sweep``: the literature's: weights above a percentile share k values; one row against numpy, one thread. Published,
  for the Python code of Marino et al. 2020 (VGG19, dense layers): 127 to 3 times slower than the dense product.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from alphabets import Weights, laplace, sparse
from paired import compare, merge_results

from pqk_ext import _core, ops
from pqk_ext.runtime import Graph, Model, Node, Value

SIZE = 4096
BATCHES = (1, 4, 16, 32, 64, 128)
PERCENTILES = (0, 30, 40, 50, 60, 70, 80, 90, 95, 96, 97, 98, 99)
SHARED_VALUES = (2, 32, 128, 256)
SECTIONS = ("rows", "batches", "sweep")

Floats = NDArray[np.float32]


def encode(codes: Weights) -> tuple[str, torch.Tensor]:
    """By the interleaved codec that takes fewer bytes."""
    names = [name for name in _core.codec_names(openable=True) if name.startswith("interleaved")]
    payloads = {name: _core.encode_weight(name, codes.reshape(-1), len(codes)) for name in names}
    name = min(payloads, key=lambda name: len(payloads[name]))
    return name, torch.frombuffer(bytearray(payloads[name]), dtype=torch.uint8)


def float_product(codes: Weights, codebook: Floats, zero: int, x: Floats) -> tuple[Callable[[], Any], str, float]:
    """The call, its codec and its bits per weight."""
    codec, payload = encode(codes)
    entries, row = torch.from_numpy(codebook), torch.from_numpy(x)[None]
    expected = codebook[codes.astype(np.int64) + zero] @ x

    def product() -> torch.Tensor:
        return ops.codebook_linear(row, payload, entries, codec=codec, out_features=len(codes), zero=zero)

    np.testing.assert_allclose(product()[0].numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    return product, codec, 8 * len(payload) / codes.size


def int8_product(codes: Weights) -> tuple[Callable[[], Any], str, float]:
    codec, payload = encode(codes)
    row = torch.randint(0, 256, (1, codes.shape[1]), dtype=torch.uint8)
    scale, bias = torch.full((len(codes),), 1e-3), torch.zeros(len(codes))

    def product() -> torch.Tensor:
        return ops.coded_linear(row, payload, scale, bias, codec=codec, input_zero_point=0, float_output=True)

    expected = ops.int8_linear(row, torch.from_numpy(codes), scale, bias, input_zero_point=0, float_output=True)
    torch.testing.assert_close(product(), expected, rtol=0, atol=0)
    return product, codec, 8 * len(payload) / codes.size


def shared_values(weight: Floats, percentile: float, count: int) -> tuple[Weights, Floats, int]:
    """Codes, codebook and zero: weights above a percentile of magnitudes take one of ``count`` values, of quantiles.

    Codes are -127 to 127 around that of 0, which pruned weights take, with as many below as above.
    """
    kept = np.abs(weight) > np.percentile(np.abs(weight), percentile) if percentile else np.ones_like(weight, bool)
    count = min(count, 254 if percentile else 256)
    half = count // 2
    centers = np.concatenate(
        [
            np.quantile(side, (np.arange(half) + 0.5) / half)
            for side in (weight[kept & (weight < 0)], weight[kept & (weight > 0)])
        ]
    )
    index = np.searchsorted((centers[1:] + centers[:-1]) / 2, weight)
    if not percentile:
        return (index - half).astype(np.int8), centers.astype(np.float32), half
    zero = half
    codebook = np.insert(centers, zero, 0.0).astype(np.float32)
    codes = np.where(kept, np.where(index >= zero, index + 1, index) - zero, 0)
    return codes.astype(np.int8), codebook, zero


def measure_rows(threads: int) -> None:
    """One row of x. Runs in a process of its own, whose BLAS has that many threads."""
    torch.set_num_threads(threads)
    generator = np.random.default_rng(0)
    x = generator.normal(size=SIZE).astype(np.float32)
    dense = generator.normal(size=(SIZE, SIZE)).astype(np.float32)
    weight, row = torch.from_numpy(dense), torch.from_numpy(x)[None]
    cases: dict[str, tuple[Callable[[], Any], str, float]] = {
        "HAM, 32 values, float32": float_product(*shared_values(dense, 0, 32), x),
        "HAM, 4 bits, int8": int8_product(laplace(1.8, 7, 0, SIZE, SIZE)),
        "sHAM, 90 % zeros, 32 values, float32": float_product(*shared_values(dense, 90, 32), x),
        "sHAM, 90 % zeros, 4 bits, int8": int8_product(sparse(0.9, 4, 1, SIZE, SIZE)),
    }
    entries = {}
    for name, (product, codec, bits) in cases.items():
        numpy = compare(f"{name}, numpy", product, lambda: dense @ x, rounds=30, seconds_a_round=0.01)
        pytorch = compare(
            f"{name}, torch", product, lambda: torch.nn.functional.linear(row, weight), rounds=20, seconds_a_round=0.01
        )
        entries[f"{name}, {threads} thread{'s' * (threads > 1)}"] = {
            "codec": codec,
            "bits_per_weight": bits,
            "threads": threads,
            "numpy": asdict(numpy),
            "torch": asdict(pytorch),
        }
        print(numpy, pytorch, sep="\n", flush=True)
    merge_results("product", "rows", entries, isa=_core.active_isa())


def linear_graph(weight: Weights) -> Graph:
    codes = Value((weight.shape[1],), "u8", 0.05, 128)
    scales = {name: np.full(len(weight), 1e-3, np.float32) for name in ("multiplier", "bias")}
    quantize = Node("quantize", "quantize", (0,), codes, {"quant_min": 0, "quant_max": 255})
    linear = Node("linear", "linear", (1,), Value((len(weight),), "f32"), {}, {"weight": weight, **scales})
    return Graph(Value((weight.shape[1],), "f32"), (quantize, linear))


def measure_batches() -> None:
    """The engine, one thread and two; resident weights get the fastest kernel for them."""
    weights = {"4 bits, dense": laplace(1.8, 7, 0, SIZE, SIZE), "4 bits, 90 % zeros": sparse(0.9, 4, 1, SIZE, SIZE)}
    x = np.random.default_rng(0).normal(0, 2, (max(BATCHES), SIZE)).astype(np.float32)
    for name, weight in weights.items():
        graph = linear_graph(weight)
        for threads in (1, 2):
            resident = Model.from_graph(graph, num_threads=threads)
            coded = Model.from_graph(graph, num_threads=threads, weights="coded")
            entries = {}
            for batch in BATCHES:
                rows = x[:batch]
                np.testing.assert_array_equal(coded(rows), resident(rows))
                paired = compare(
                    f"{name}, {threads} threads, batch {batch}",
                    partial(coded, rows),
                    partial(resident, rows),
                    rounds=15,
                    seconds_a_round=0.01,
                )
                print(paired, flush=True)
                entries[str(batch)] = asdict(paired)
            document = {
                "kernel": resident.kernels[-1][1],
                "resident_bytes": resident.weight_bytes,
                "coded_bytes": coded.weight_bytes,
                "batches": entries,
            }
            merge_results("product", "batches", {f"{name}, {threads} thread{'s' * (threads > 1)}": document})


def measure_sweep(rounds: int) -> None:
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    x = generator.normal(size=SIZE).astype(np.float32)
    dense = generator.normal(size=(SIZE, SIZE)).astype(np.float32)
    for percentile in PERCENTILES:
        for count in SHARED_VALUES:
            product, codec, bits = float_product(*shared_values(dense, percentile, count), x)
            paired = compare(f"{percentile} %, k = {count}", product, lambda: dense @ x, rounds=rounds)
            entry = {"codec": codec, "bits_per_weight": bits, **asdict(paired)}
            print(f"{paired} ({codec}, {bits:.2f} bits)", flush=True)
            merge_results("product", "sweep", {f"{percentile}/{count}": entry})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--section", choices=SECTIONS, action="append", help="only this one; may be repeated")
    parser.add_argument("--threads", type=int, help="of a process that measures rows; set by this program itself")
    parser.add_argument("--rounds", type=int, default=7, help="of the sweep")
    arguments = parser.parse_args()
    if arguments.threads:
        measure_rows(arguments.threads)
        return
    sections = arguments.section or SECTIONS
    for threads in (1, 2) if "rows" in sections else ():
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, str(threads))
        subprocess.run([sys.executable, __file__, "--threads", str(threads)], env=environment, check=True)
    if "batches" in sections:
        measure_batches()
    if "sweep" in sections:
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
            subprocess.run(
                [sys.executable, __file__, "--section", "sweep", "--rounds", str(arguments.rounds)],
                env=environment,
                check=True,
            )
        else:
            measure_sweep(arguments.rounds)


if __name__ == "__main__":
    main()
