"""Runs the experiments of this folder and puts what they found into benchmarks/results/methods.

`python benchmarks/methods/run.py --work DIR --jobs 2` runs all of them, which takes hours; names choose some. Cells
stay in DIR/NAME: stopped at any time, the same command goes on, and what is done already (also by `pqk compare
benchmarks/methods/NAME.yaml --out DIR/NAME`) is not done again. Then `python benchmarks/report.py` writes the tables.
Experiments on CIFAR read the data below `$PQK_DATA_DIR`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from pqk_ext.cli import main as pqk
from pqk_ext.compare.tables import to_markdown

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "results" / "methods"


def publish(name: str, directory: Path, results: Path = RESULTS) -> None:
    """Puts an experiment's summary, page and picture among the results."""
    summary = json.loads((directory / "summary.json").read_text())
    results.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(directory / "pareto.svg", results / f"{name}.svg")
    (results / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    (results / f"{name}.md").write_text(to_markdown(summary, f"{name}.svg"))


def main() -> int:
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*names, []], metavar="NAME", help=", ".join(names))
    parser.add_argument("--work", type=Path, required=True, help="directory of the cells")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--no-run", action="store_true", help="only publish what is done, complete or not")
    options = parser.parse_args()
    failed = []
    for name in options.names or names:
        directory = options.work / name
        words = ["compare", str(FOLDER / f"{name}.yaml"), "--out", str(directory), "--jobs", str(options.jobs)]
        words += ["--no-run"] if options.no_run else []
        code = pqk(words)
        if code > 1:
            return code
        if code:
            failed.append(name)  # a cell failed: nothing is published
        else:
            publish(name, directory)
    if failed:
        print(f"not published, since cells failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
