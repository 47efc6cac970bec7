"""Whole networks on a GPU: the engine against torch's bfloat16 network as one CUDA graph, from host to host.

`python benchmarks/gpu/bench_engine_cuda.py` takes the dense networks of `../nets/networks.py`, exported after
post-training quantization, and writes `benchmarks/results/gpu/engine.json` as it goes. Both sides begin with a batch in
the host's memory and end with its results there; torch's graph holds both copies, and its memory is page-locked.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "nets"))
import numpy as np
import paired
import paired_cuda
import torch
from networks import Case
from numpy.typing import NDArray

import pqk_ext
from pqk_ext import runtime
from pqk_ext.runtime.cuda import EXECUTORS

STEM = "gpu/engine"
NETWORKS = ("resnet8", "ds_cnn", "resnet20", "mobilenet_v1", "vgg11", "mobilenet_v2")
BATCHES = (1, 16, 256)
Call = Callable[[], object]


def torch_graph(case: Case, x: NDArray[np.float32]) -> Call:
    """Copy in, network, copy out: one launch."""
    model = case.model.to("cuda", torch.bfloat16, memory_format=torch.channels_last)
    host = torch.from_numpy(x).pin_memory()
    out = torch.empty((len(x), *model(host[:1].cuda().bfloat16()).shape[1:]), pin_memory=True)

    def step() -> None:
        images = host.to("cuda", non_blocking=True).to(torch.bfloat16, memory_format=torch.channels_last)
        out.copy_(model(images).float(), non_blocking=True)

    replay = paired_cuda.recorded(step)

    def call() -> None:
        replay()
        torch.cuda.synchronize()

    return call


def engine_calls(path: Path, x: NDArray[np.float32]) -> dict[str, Call]:
    """By executor, those that the GPU has shared memory for; all of them with the CPU's bits."""
    expected = runtime.load(path)(x[:8])
    calls: dict[str, Call] = {}
    for executor in EXECUTORS:
        try:
            net = runtime.load(path, device="cuda", kernels={"*": executor})
        except ValueError as error:
            print(f"{executor}: {error}")
            continue
        out = net(x)
        if not np.array_equal(out[:8].view(np.uint32), expected.view(np.uint32)):
            raise SystemExit(f"{path.stem}, {executor}: other bits than on the CPU")
        calls[executor] = lambda net=net, out=out: net.run(x, out)
    return calls


def measure(network: str, batch: int, folder: Path) -> dict[str, Any]:
    case = Case(network, "dense")
    path = folder / f"{network}.pqk"
    if not path.exists():
        calibration = torch.from_numpy(case.calibration)
        pqk_ext.export(case.model, path, example_inputs=calibration[:1], calibration=calibration)
    x = np.resize(case.calibration, (batch, *case.input_shape))
    chosen = runtime.load(path, device="cuda")
    row: dict[str, Any] = {"name": f"{network}, batch {batch}", "chosen": chosen.executor, "peers": {}}
    with torch.inference_mode():
        theirs = torch_graph(case, x)
        for executor, call in engine_calls(path, x).items():
            result = paired.compare(f"{row['name']}, {executor}", call, theirs, rounds=20)
            print(result, flush=True)
            row["peers"][executor] = asdict(result)
    row["steps"] = [
        {"node": node, "kernel": kernel, "us": 1e6 * seconds} for node, kernel, seconds in chosen.profile(x[:1], 50)
    ]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NETWORK", help=", ".join(NETWORKS))
    networks = parser.parse_args().networks
    with tempfile.TemporaryDirectory() as folder:
        for network in networks:
            for batch in BATCHES:
                row = measure(network, batch, Path(folder))
                fields = paired_cuda.gpu() | {"build": pqk_ext.build_info()}
                paired.merge_results(STEM, "rows", {row["name"]: row}, **fields)


if __name__ == "__main__":
    main()
