"""Integer convolutions and linear layers of `shapes.txt`, one thread: share of the int8 peak, and against FBGEMM.

Our times are those of the kernel inside the runtime (`Model.profile` of a one-layer graph); torch's are calls of its
prepacked FBGEMM operator, which cost what the smallest of them, printed and recorded, costs before any work. Rounds are
interleaved. Weights with zeros, single or in blocks of four input channels, run by the kernel that the runtime chooses
and by each of its kernels on demand, so that the choice itself is measured.

    python benchmarks/ops/bench_int8.py                          all of it, into benchmarks/results/int8.json
    python benchmarks/ops/bench_int8.py --only "ResNet 64"       layers whose name contains that
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import ceilings
import layers
import paired
import torch
from layers import Layer

from pqk_ext import _core, build_info
from pqk_ext.runtime import Model

STEM = "int8"
DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02)
PATTERNS = ("unstructured", "1x4")
ROUNDS = 15
SECONDS_A_ROUND = 0.002
Seconds = Callable[[], float]  # the fastest call of one round
Row = dict[str, Any]


def kernel_seconds(layer: Layer, model: Model, limit: float = SECONDS_A_ROUND) -> Seconds:
    x = layers.model_input(layer)

    def once(repeats: int) -> float:
        return next(seconds for node, _, seconds in model.profile(x, repeats) if node == layers.NODE)

    repeats = max(2, min(200, int(limit / max(once(2), 1e-7))))
    return lambda: once(repeats)


def call_seconds(call: layers.Call) -> Seconds:
    """The fastest of some calls."""

    def once() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    call()
    repeats = max(2, min(200, int(SECONDS_A_ROUND / max(once(), 1e-7))))
    return lambda: min(once() for _ in range(repeats))


def interleave(who: dict[str, Seconds], rounds: int = ROUNDS) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in who}
    for index in range(rounds):
        order = list(who) if index % 2 == 0 else list(who)[::-1]
        for name in order:
            times[name].append(who[name]())
    return times


def versus(ours: list[float], theirs: list[float]) -> dict[str, float]:
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    low, high = paired.median_interval(ratios)
    return {"us": min(theirs) * 1e6, "ratio": statistics.median(ratios), "ratio_low": low, "ratio_high": high}


def executed(kernel: str, codes: layers.Codes) -> float:
    """Share of the dense products that the kernel computes, at least: all, whole blocks, or those of non-zeros."""
    if kernel == "direct":
        return 1.0
    return layers.block_density(codes) if kernel == "blocks" else float((codes != 0).mean())


def chosen_kernel(model: Model) -> str:
    return dict(model.kernels)[layers.NODE]


def measure_dense(layer: Layer, peak: float) -> Row:
    codes = layers.weights(layer)
    model = layers.model(layer, codes)
    who = {"pqk": kernel_seconds(layer, model), "fbgemm": call_seconds(layers.fbgemm(layer, codes))}
    times = interleave(who)
    seconds = min(times["pqk"])
    return {
        "us": seconds * 1e6,
        "channels": layer.channels,
        "kernel_size": list(layer.kernel),
        "groups": layer.groups,
        "macs": layer.macs,
        "count": layer.count,
        "peak_share": layer.macs / seconds / peak,
        "kernel": chosen_kernel(model),
        "fbgemm": versus(times["pqk"], times["fbgemm"]),
    }


def kernels_of(layer: Layer, codes: layers.Codes) -> dict[str, Model]:
    """Every kernel that can compute the layer with these weights."""
    found = {}
    for name in _core.conv2d_kernels():
        try:
            found[name] = layers.model(layer, codes, name)
        except ValueError:
            continue
    return found


def measure_sparse(layer: Layer, pattern: str, density: float, peak: float) -> Row:
    """The chosen kernel, every kernel on demand, the dense kernel on weights without zeros, FBGEMM's."""
    codes = layers.weights(layer, pattern, density)
    chosen = layers.model(layer, codes)
    who = {"dense": kernel_seconds(layer, layers.model(layer, layers.weights(layer)))}
    who |= {f"kernel {name}": kernel_seconds(layer, model) for name, model in kernels_of(layer, codes).items()}
    who["pqk"] = kernel_seconds(layer, chosen)
    if layer.is_matrix_product and pattern == "1x4":  # the only pattern that torch's product knows
        who["fbgemm_sparse"] = call_seconds(layers.fbgemm_sparse(layer, codes))
    times = interleave(who, rounds=7)
    seconds, kernel = min(times["pqk"]), chosen_kernel(chosen)
    by_kernel = {name.split()[1]: min(values) * 1e6 for name, values in times.items() if name.startswith("kernel ")}
    row: Row = {
        "us": seconds * 1e6,
        "kernel": kernel,
        "weights": float((codes != 0).mean()),
        "blocks": layers.block_density(codes),
        "executed_share": layer.macs * executed(kernel, codes) / seconds / peak,
        "kernels_us": by_kernel,
        "lost_by_choice": seconds * 1e6 / min(by_kernel.values()) - 1 if by_kernel else 0.0,
        "dense": versus(times["pqk"], times["dense"]),
    }
    if "fbgemm_sparse" in times:
        row["fbgemm_sparse"] = versus(times["pqk"], times["fbgemm_sparse"])
    return row


def measure(layer: Layer, peak: float, is_sparse: bool) -> dict[str, dict[str, Row]]:
    """Rows of one layer for the sections of the results."""
    row = measure_dense(layer, peak)
    peer = row["fbgemm"]
    print(f"{layer.name}: {row['us']:.2f} us, {row['peak_share']:.0%} of peak, FBGEMM {peer['us']:.1f} us", flush=True)
    sections: dict[str, dict[str, Row]] = {"dense": {layer.name: row}, "sparse": {}}
    for pattern in PATTERNS if is_sparse and layer.can_be_sparse else ():
        cells = []
        for density in DENSITIES:
            row = measure_sparse(layer, pattern, density, peak)
            sections["sparse"][f"{layer.name}/{pattern}/{density}"] = row
            cells.append(f"{density}: {row['dense']['ratio']:.2f} ({row['kernel']}, {row['executed_share']:.0%})")
        print(f"  {pattern}, times dense: {', '.join(cells)}", flush=True)
    return sections


def smallest_call() -> float:
    """Seconds of torch's quantized operator on almost nothing."""
    tiny = Layer("", 4, 1, 1, 4, (1, 1), 1, 1, 1)
    return min(call_seconds(layers.fbgemm(tiny, layers.weights(tiny)))() for _ in range(20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--dense", action="store_true", help="leave out the weights with zeros")
    parser.add_argument("--output", default=STEM, help="stem of the file in benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    tops = ceilings.measure()
    peak = tops["int8_macs"]
    assert peak is not None
    about = {"torch": torch.__version__, "build": build_info(), "threads": 1, "torch_call_us": smallest_call() * 1e6}
    print(f"int8 peak {peak / 1e9:.0f} GMAC/s; torch's smallest call {about['torch_call_us']:.1f} us")
    for layer in layers.read_layers():
        if arguments.only in layer.name:
            for section, rows in measure(layer, peak, not arguments.dense).items():
                paired.merge_results(arguments.output, section, rows, ceilings={_core.active_isa(): tops}, **about)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
