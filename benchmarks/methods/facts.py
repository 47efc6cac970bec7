"""What methods say of their runs beside the measured files, arm by arm and pair by pair.

`python benchmarks/methods/facts.py benchmarks/results/methods/rco_keywords.json congruence` prints the numeric fact
``congruence`` of each arm, and the paired differences of the experiment's pairs, as Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pqk_ext.compare.statistics import paired_difference, spread


def table(summary: Mapping[str, Any], fact: str) -> str:
    """Markdown: means of the arms that have the fact, then differences, first minus second, with 95 % intervals."""
    found: dict[str, dict[int, float]] = {}
    for cell in summary["cells"]:
        value = cell.get("result", {}).get("facts", {}).get(fact)
        if isinstance(value, int | float):
            found.setdefault(cell["arm"], {})[cell["seed"]] = value
    if not found:
        raise ValueError(f"fact: no run of this experiment has a number {fact!r}")
    lines = [f"| arm | {fact} | seeds |", "| --- | ---: | ---: |"]
    for arm, values in found.items():
        its = spread(list(values.values()))
        lines.append(f"| {arm} | {its.mean:.4f}{'' if its.sd is None else f' ± {its.sd:.4f}'} | {its.n} |")
    lines += ["", "| pair | difference | 95 % interval | seeds |", "| --- | ---: | ---: | ---: |"]
    for first, second in yaml.safe_load(summary["experiment"]).get("compare", []):
        seeds = sorted(found.get(first, {}).keys() & found.get(second, {}).keys())
        if not seeds:
            continue
        d = paired_difference([found[first][seed] for seed in seeds], [found[second][seed] for seed in seeds])
        interval = "" if d.low is None or d.high is None else f"{d.low:+.4f} .. {d.high:+.4f}"
        lines.append(f"| {first} - {second} | {d.mean:+.4f} | {interval} | {d.n} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", type=Path, help="a results file, or the summary.json of pqk compare")
    parser.add_argument("fact", help="name of a numeric fact")
    options = parser.parse_args()
    print(table(json.loads(options.summary.read_text()), options.fact))
