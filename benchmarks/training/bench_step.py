"""Time of a training step: float, torch.ao's quantization-aware training and both phases of PQK, in the same rounds.

`python benchmarks/training/bench_step.py` takes two minutes and writes `benchmarks/results/train_step.json`. The ratio
is the median over the rounds of a step's time / that of the plain float step in channels_last; 1 is no extra cost.
`--compile` also measures the float step through torch.compile (a minute more for each network).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import paired
from ways import BASELINE, TITLES, WAYS, Case, Step

from pqk_ext import build_info

STEM = "train_step"
_WARM_UP = 3


def _seconds(step: Step, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def measure(case: Case, names: list[str], rounds: int, seconds_a_round: float) -> dict[str, dict[str, Any]]:
    """Way -> fastest step in ms, and its time in times of the baseline's with a 95 % interval."""
    steps = {name: WAYS[name](case) for name in names}
    calls = {}
    for name, step in steps.items():
        once = min(_seconds(step, 1) for _ in range(_WARM_UP))
        calls[name] = max(1, round(seconds_a_round / once))
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            times[name].append(_seconds(steps[name], calls[name]))
    return {name: _summary(times[name], times[BASELINE]) for name in names}


def _summary(times: list[float], baseline: list[float]) -> dict[str, Any]:
    ratios = [own / base for own, base in zip(times, baseline, strict=True)]
    return {
        "ms": min(times) * 1e3,
        "ratio": statistics.median(ratios),
        "interval": paired.median_interval(ratios),
        "ratio_of_minima": min(times) / min(baseline),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(TITLES), help=f"of {', '.join(TITLES)}")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=0.25, help="of each way in a round; at least one step")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile of the float network")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = [name for name in WAYS if options.compile or "compile" not in name]
    path = None
    for network in options.networks:
        case = Case(network, options.batch, options.sparsity)
        ways = measure(case, names, options.rounds, options.seconds)
        for name, result in ways.items():
            low, high = result["interval"]
            print(f"{TITLES[network]}, {name}: {result['ms']:.1f} ms, {result['ratio']:.2f} [{low:.2f}, {high:.2f}]")
        key = f"{network}/{case.batch}/{case.sparsity:g}/{options.threads}"
        entry = {"network": network, "batch": case.batch, "sparsity": case.sparsity, "threads": options.threads}
        rounds = {"rounds": options.rounds, "ways": ways}
        path = paired.merge_results(STEM, "rows", {key: entry | rounds}, torch=torch.__version__, build=build_info())
    print(path)


if __name__ == "__main__":
    main()
