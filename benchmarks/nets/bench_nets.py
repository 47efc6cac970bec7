"""Whole networks at batch 1 and 32, one thread: the runtime on a post-training int8 file against its peers.

`pytest benchmarks/nets/bench_nets.py --benchmark-enable` lists absolute times;
`python benchmarks/nets/bench_nets.py` compares in interleaved rounds and writes `benchmarks/results/nets.json`.
Peers come with the extra `bench`; those that are not installed are named and left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import paired
import peers

from pqk_ext import build_info

NETWORKS = ("ds_cnn", "resnet8_mlperf", "resnet20", "mobilenet_v2")
BATCHES = (1, 32)
FLOAT_TOLERANCE, INT8_TOLERANCE = 0.05, 0.5  # relative differences that show a peer computing something else


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("engine", peers.ENGINES)
def test_network(benchmark: Callable[..., object], engine: str, network: str, batch: int) -> None:
    if lacking := peers.missing(engine):
        pytest.skip(f"{engine} needs {', '.join(lacking)}: pip install '.[bench]'")
    benchmark(peers.make(engine, peers.Case(network, batch)))


def compare(network: str, batch: int, rounds: int) -> tuple[list[paired.Paired], dict[str, float]]:
    """Our runtime against every peer that is installed; also how far each one's output is from torch's."""
    case = peers.Case(network, batch)
    reference = np.array(peers.make("torch_eager", case)())
    ours = peers.make("pqk", case)
    errors = {"pqk": peers.difference(ours(), reference)}
    results = []
    for engine in peers.ENGINES:
        if engine == "pqk" or peers.missing(engine):
            continue
        theirs = peers.make(engine, case)
        errors[engine] = peers.difference(theirs(), reference)
        result = paired.compare(f"{network}/{batch}/{engine}", ours, theirs, rounds=rounds)
        print(result, flush=True)
        results.append(result)
    for engine, error in errors.items():
        allowed = INT8_TOLERANCE if engine == "pqk" or engine.endswith("int8") else FLOAT_TOLERANCE
        if not error <= allowed:
            raise RuntimeError(f"{network}: the output of {engine} is {error:.1%} from torch's: not the same network")
    return results, errors


def versions() -> dict[str, str]:
    """Of every peer that is installed."""
    found = {"torch": torch.__version__}
    for name in ("onnx", "onnxruntime", "openvino"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="names of the zoo")
    parser.add_argument("--rounds", type=int, default=30, help="pairs of timings for each comparison")
    arguments = parser.parse_args()
    for engine in peers.ENGINES:
        if lacking := peers.missing(engine):
            print(f"SKIPPED {engine}: {', '.join(lacking)} not installed (pip install '.[bench]')", flush=True)
    results, errors = [], {}
    for network in arguments.networks:
        for batch in BATCHES:
            some, differences = compare(network, batch, arguments.rounds)
            results += some
            errors[f"{network}/{batch}"] = differences
    path = paired.write_results(
        "nets",
        results,
        threads=1,
        versions=versions(),
        openvino_precision=peers.PRECISIONS,
        bytes={name: peers.export_pqk(peers.Case(name, BATCHES[0])).stat().st_size for name in arguments.networks},
        output_difference=errors,
        build=build_info(),
    )
    print(f"OpenVINO computes in {peers.PRECISIONS}")
    print(path)


if __name__ == "__main__":
    main()
