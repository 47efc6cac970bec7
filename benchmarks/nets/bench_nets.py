"""Whole networks, dense and pruned: the runtime on a post-training int8 file against every peer in its best mode.

    python benchmarks/nets/bench_nets.py                 all rows, one thread, on one core
    python benchmarks/nets/bench_nets.py --isa avx2      the same with our AVX2 kernels beside the same peers
    python benchmarks/nets/bench_nets.py --threads 2     ours alone at batch 32: one thread against two

A row is a network, a variant (dense, 90 % of single weights zero, 90 % in 1x4 blocks) and a batch. All modes of all
peers that are installed (`peers.py`) run a few interleaved rounds; then the fastest and ours run at least 15. The
result is the median of the per-round ratios with its 95 % interval. Rows go to `benchmarks/results/nets.json` as they
are done and replace older ones of the same key, so that `--networks`, `--variants` and `--batches` can measure some of
them again. Files for the engines are made on the first run and kept (`exports.py`); `--prepare` makes them and stops.
"""

from __future__ import annotations

import argparse
import collections
import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import ceilings
import exports
import networks
import paired
import peers
import rounds
import torch
from networks import Case

from pqk_ext import _core, build_info

STEM = "nets"
BATCHES = (1, 32)
# Relative differences from torch that show an engine computing something else.
TOLERANCES = {"bf16": 0.2, "int8": 0.5}
FLOAT_TOLERANCE = 1e-3
Row = dict[str, Any]


def differs(name: str, value: float) -> bool:
    return not value <= TOLERANCES.get(name.rsplit("_", 1)[-1], FLOAT_TOLERANCE)


def load_peers(case: Case, batch: int) -> tuple[dict[str, peers.Engine], dict[str, str]]:
    """Every engine that is installed and computes this network, and why the others do not."""
    engines, failed = {}, {}
    reference = case.reference(batch)
    for name in peers.PEERS:
        if peers.lacking(name):
            continue
        try:
            engine = peers.make(name, case, batch)
        except Exception as error:  # one peer's trouble must not end the run: it is recorded
            failed[name] = f"{type(error).__name__}: {error}"[:300]
            continue
        difference = networks.difference(engine.output(), reference)
        if differs(name, difference):
            failed[name] = f"its output is {difference:.1%} from torch's"
            engine.close()
            continue
        engine.notes |= {"difference": difference, "load_ms": engine.load_seconds * 1e3}
        engines[name] = engine
    return engines, failed


def measure(case: Case, batch: int, seconds: float) -> Row:
    """One row."""
    ours = peers.pqk(case, batch)
    difference = networks.difference(ours.output(), case.reference(batch))
    if differs("pqk_int8", difference):
        raise RuntimeError(f"{case}: our output is {difference:.1%} from torch's")
    engines, failed = load_peers(case, batch)
    outcome = rounds.contest(ours, engines, seconds_a_round=0.01, seconds=seconds)
    notes = {name: engine.notes for name, engine in engines.items()}
    for engine in engines.values():
        engine.close()
    kernels = collections.Counter(kernel for _, kernel in ours.notes.pop("kernels"))
    return {
        "network": case.network,
        "variant": case.variant,
        "batch": batch,
        "threads": 1,
        "pqk": {
            **_times(outcome.ours),
            **ours.notes,
            "load_ms": ours.load_seconds * 1e3,
            "difference": difference,
            "kernels": dict(kernels),
        },
        "peers": {name: {**_times(times), **notes[name]} for name, times in outcome.peers.items()},
        "failed": failed,
        "best": outcome.best,
        "ratio": outcome.ratio,
        "ratio_low": outcome.interval[0],
        "ratio_high": outcome.interval[1],
        "load_average": os.getloadavg()[0],
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _times(times: rounds.Times) -> dict[str, float]:
    return {"median_us": times.median * 1e6, "min_us": min(times.seconds) * 1e6, "rounds": len(times.seconds)}


def measure_threads(case: Case, batch: int, num_threads: int) -> Row:
    """Ours with one thread against ours with more."""
    one, more = (peers.pqk(case, batch, count) for count in (1, num_threads))
    result = paired.compare(
        f"{case.network}/{case.variant}",
        lambda: more.seconds(1),
        lambda: one.seconds(1),
        rounds=20,
        seconds_a_round=0.02,
    )
    return {
        "network": case.network,
        "variant": case.variant,
        "batch": batch,
        "threads": num_threads,
        "isa": one.notes["isa"],
        "one_us": result.baseline_us,
        "us": result.subject_us,
        "ratio": result.ratio,
        "ratio_low": result.ratio_low,
        "ratio_high": result.ratio_high,
        "load_average": os.getloadavg()[0],
    }


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    for network in arguments.networks:
        for variant in arguments.variants:
            if networks.exists(network, variant):
                yield Case(network, variant)


def prepare(case: Case) -> None:
    """Makes the files of a case, which takes longer than timing it."""
    start = time.perf_counter()
    exports.pqk(case)
    for batch in BATCHES:
        if not peers.lacking("litert_int8"):
            peers.make("litert_int8", case, batch).close()
        if not peers.lacking("onnxruntime_int8"):
            exports.onnx_float(case, batch)
            exports.onnx_int8(case, batch)
    if (spent := time.perf_counter() - start) > 5:
        print(f"{case.network} {case.variant}: files ready after {spent:.0f} s", flush=True)


def show(row: Row) -> None:
    ours, best = row["pqk"]["median_us"], row["peers"][row["best"]]["median_us"]
    print(
        f"{row['network']} {row['variant']} batch {row['batch']}: {ours:.1f} us, {row['best']} {best:.1f} us: "
        f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
        + "".join(f"\n  without {name}: {why}" for name, why in row["failed"].items()),
        flush=True,
    )


def run(arguments: argparse.Namespace) -> None:
    """Measures the rows asked for, each written as it is done."""
    section = "scaling" if arguments.threads > 1 else "rows"
    suffix = f"/{arguments.isa}" if arguments.isa else ""
    batches = [arguments.batches[-1]] if arguments.threads > 1 else arguments.batches
    about: Row = {"versions": peers.versions()}
    if not arguments.isa:  # the conditions in the README are those of the main rows
        about["build"] = build_info()
    for case in cases(arguments):
        prepare(case)
        for batch in batches:
            key = f"{case.network}/{batch}/{case.variant}{suffix}"
            if arguments.threads > 1:
                row = measure_threads(case, batch, arguments.threads)
                print(f"{key}: {arguments.threads} threads {row['ratio']:.2f} times one", flush=True)
            else:
                row = measure(case, batch, arguments.seconds)
                show(row)
            paired.merge_results(arguments.output, section, {key: row}, **about)
            gc.collect()  # engines of the row before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(networks.NETWORKS), choices=networks.NETWORKS)
    parser.add_argument("--variants", nargs="+", default=networks.VARIANTS, choices=networks.VARIANTS)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--threads", type=int, default=1, help="more than 1: ours alone against one thread")
    parser.add_argument("--isa", choices=_core.supported_isas(), help="instruction set of our kernels")
    parser.add_argument("--seconds", type=float, default=3.0, help="for the final rounds of a row, if 15 take less")
    parser.add_argument("--core", type=int, help="run on this core; default: the last one, when there is one thread")
    parser.add_argument("--output", default=STEM, help="stem of the file in benchmarks/results")
    parser.add_argument("--prepare", action="store_true", help="make the files for the engines, and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in peers.PEERS:
        if missing := peers.lacking(name):
            print(f"SKIPPED {name}: it needs {', '.join(missing)}", flush=True)
    if arguments.prepare:
        for case in cases(arguments):
            prepare(case)
        return
    if arguments.threads == 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if arguments.core is None else arguments.core})
    if arguments.isa:
        _core.force_isa(arguments.isa)
    start = time.perf_counter()
    paired.merge_results(arguments.output, "ceilings", {_core.active_isa(): ceilings.measure()})
    run(arguments)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
