"""Peak memory of a training step: float, torch.ao's quantization-aware training and both phases of PQK.

`python benchmarks/training/bench_memory.py` takes a minute and writes `benchmarks/results/train_memory.json`. Each way
runs in a process of its own. The peak is that of the bytes in tensors, as torch's allocator counts them: parameters,
gradients, optimizer state and masks, and during a step the activations. The resident set is what the operating system
saw, less what the process had before the network was made; it also holds what the heap has not given back.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))
import paired
from ways import BASELINE, TITLES, WAYS, Case, Step

from pqk_ext import build_info

STEM = "train_memory"
_NAMES = [name for name in WAYS if "compile" not in name]
_STEPS = 4


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _change_and_peak(step: Step) -> tuple[int, int]:
    """How many bytes of tensors one call leaves behind, and the most that it held on top of what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return now, peak


def measure(name: str, case: Case) -> dict[str, int]:
    """Peak bytes of a training step in this process; what was allocated before is counted by the same hooks."""
    before = _status_bytes("VmRSS")
    steps: list[Step] = []
    kept, _ = _change_and_peak(lambda: steps.append(WAYS[name](case)))
    for _ in range(2):
        kept += _change_and_peak(steps[0])[0]  # the first step makes the optimizer's state
    _, peak = _change_and_peak(steps[0])
    for _ in range(_STEPS):
        steps[0]()
    return {"peak": kept + peak, "kept": kept, "resident": _status_bytes("VmHWM") - before}


def _in_own_process(name: str, options: argparse.Namespace, network: str) -> dict[str, int]:
    command = [sys.executable, __file__, network, "--way", name]
    for option in ("batch", "sparsity", "threads"):
        command += [f"--{option}", str(getattr(options, option))]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, int] = json.loads(output.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(TITLES), help=f"of {', '.join(TITLES)}")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=_NAMES, help="measure this one in this process and print it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.way:
        print(json.dumps(measure(options.way, Case(options.networks[0], options.batch, options.sparsity))))
        return
    path = None
    for network in options.networks:
        ways = {name: _in_own_process(name, options, network) for name in _NAMES}
        for name, result in ways.items():
            ratio = result["peak"] / ways[BASELINE]["peak"]
            megabytes = {key: f"{value / 1e6:.1f} MB" for key, value in result.items()}
            print(f"{TITLES[network]}, {name}: {megabytes}, {ratio:.2f} times float")
        key = f"{network}/{options.batch}/{options.sparsity:g}/{options.threads}"
        entry = {"network": network, "batch": options.batch, "sparsity": options.sparsity, "threads": options.threads}
        path = paired.merge_results(
            STEM, "rows", {key: entry | {"ways": ways}}, torch=torch.__version__, build=build_info()
        )
    print(path)


if __name__ == "__main__":
    main()
