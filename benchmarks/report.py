"""Writes benchmarks/results/README.md from the JSON files beside it, and some of its tables into the main README.md.

`python benchmarks/report.py` rewrites both; with `--check` it changes nothing and ends with 1 if they are out of date.
In README.md the tables of `IN_README` stand between two `results` marks, those of `METHODS_IN_README` between two
`methods` marks; long ones, which are folded, are left out there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

import report_codebooks
import report_int8
import report_load
import report_methods
import report_nets
import report_size
import report_size_penalty
import report_storage
import report_training
from markdown import Document, folded, ratio, table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
ALL = RESULTS / "README.md"
BEGIN, END = "<!-- results: written by benchmarks/report.py -->", "<!-- /results -->"
METHODS_BEGIN, METHODS_END = "<!-- methods: written by benchmarks/report.py -->", "<!-- /methods -->"
LONG_TABLE = 16  # lines; longer tables are folded
IN_README = ("nets", "size", "train_step")
METHODS_IN_README = ("pqk_keywords", "pqk_cifar10")


def microseconds(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def paired_table(document: Document) -> list[str]:
    """One row a comparison."""
    rows = [
        [r["name"], microseconds(r["subject_us"]), microseconds(r["baseline_us"]), ratio(r)]
        for r in document["results"]
    ]
    return table(["", "pqk_ext, us", "peer, us", "peer / pqk_ext"], rows)


# Stem of the JSON file -> title, what is compared, how to lay it out. Other files get their stem and paired_table.
LAYOUTS: dict[str, tuple[str, str, Callable[[Document], list[str]]]] = {
    "nets": (
        "Whole networks",
        "The runtime on a file made by post-training int8 quantization, against the fastest of all modes of all peers "
        "on the same float weights.",
        report_nets.section,
    ),
    "int8": (
        "Integer layers",
        "The runtime's kernels on one image, against the peak and torch's FBGEMM, and with zeros among the weights.",
        report_int8.section,
    ),
    "size": (
        "Sizes",
        "Stored weights against their order-0 entropy, and against what others make of the same dense int8 array.",
        report_size.section,
    ),
    "load": (
        "Loading",
        "From a file in the page cache to ready to run: read, digest, parse, decode, check, pack. Peers load the same "
        "network, of which torch and safetensors only the weights.",
        report_load.section,
    ),
    "fake_quantize": (
        "Fake quantization, forward and backward",
        "`pqk_ext.ops.fake_quantize` against torch's own operators, through autograd, float32; with `out=` against a "
        "copy; with a mask against without.",
        paired_table,
    ),
    "train_step": (
        "A training step",
        "Forward, backward, optimizer (SGD with momentum) and controller in interleaved rounds: float, torch.ao's "
        "quantization-aware training, and PQK, whose phase 2 trains the teacher inside beside the student.",
        report_training.step_section,
    ),
    "train_memory": (
        "Memory of training",
        "The most that tensors take in a training step, with weights and optimizer; each in a process of its own.",
        report_training.memory_section,
    ),
    "checkpoint": (
        "Checkpoints",
        "One save of `fit`, durable on disk, with the best network beside it; its share of a run that saves as often "
        "as `fit` does by default.",
        report_training.checkpoint_section,
    ),
    "sparse_training": (
        "Training of pruned layers",
        "Convolutions and linear layers as a prepared network trains them, which compute with the kept weights where "
        "that is faster, against torch's dense ones in the faster of its layouts.",
        report_training.sparse_section,
    ),
    "allocation": (
        "Settings of each layer",
        "Equal sparsity and bits for all layers of the network of `pqk demo`, against those that `choose_config` takes "
        "from each layer's sensitivity for a file of the same size; both trained by PQK.",
        report_training.allocation_section,
    ),
    "sparse": (
        "Sparse weights in training",
        "`pqk_ext.ops.sparse_conv2d`, `sparse_linear` and the masked layers against torch's dense and CSR.",
        paired_table,
    ),
    "decode": (
        "Decoding of weights",
        "Weights of 1024 x 4096, by the smaller of the codecs that vector registers decode, against zstd (the fastest "
        "to decode of levels 1, 3, 19) on the same bytes.",
        report_storage.decode_section,
    ),
    "product": (
        "Products with coded weights",
        "Weights stay as they are in the file and are decoded in each call, a few rows at a time.",
        report_storage.product_section,
    ),
    "size_penalty": (
        "Training for size",
        "`PQKConfig(size_penalty=)` on the keyword-spotting network of `pqk demo`, beside fewer bits and more zeros.",
        report_size_penalty.section,
    ),
    "codebooks": (
        "Weight sharing",
        "`share_weights` on the network of `pqk demo`: few float values for many weights, then trained centroids.",
        report_codebooks.section,
    ),
}


def conditions(document: Document) -> str:
    """What the figures were taken on, in one line."""
    machine, build = document["machine"], document.get("build", {})
    parts = [
        f"{machine['cpu']}, {machine['logical_cpus']} logical CPUs, load {machine['load_average']:.1f} at the end",
        _threads(document),
        *([f"kernels {build['isa']}"] if "isa" in build else []),
        *([f"torch {document['torch']}"] if "torch" in document else []),
        *[f"{name} {version}" for name, version in document.get("versions", {}).items()],
    ]
    return ", ".join(parts) + "."


def _threads(document: Document) -> str:
    rows = document.get("rows")
    rows = rows.values() if isinstance(rows, dict) else []
    counts = sorted({row["threads"] for row in rows if "threads" in row}) or [document.get("threads", 1)]
    return " and ".join(map(str, counts)) + (" thread" if counts == [1] else " threads")


def section(stem: str, document: Document) -> list[str]:
    title, text, layout = LAYOUTS.get(stem, (stem, "", paired_table))
    lines = layout(document)
    if layout is paired_table and len(lines) > LONG_TABLE:
        lines = folded(f"{len(lines) - 2} comparisons", lines)
    return [f"### {title}", "", *([text] if text else []), conditions(document), "", *lines, ""]


def sections() -> dict[str, list[str]]:
    """Lines of every section for which there are results, by the stem of its file."""
    order = [*LAYOUTS, *sorted(p.stem for p in RESULTS.glob("*.json") if p.stem not in LAYOUTS)]
    found = {}
    for stem in order:
        path = RESULTS / f"{stem}.json"
        if not path.exists():
            continue
        document = json.loads(path.read_text())
        if "machine" in document and (stem in LAYOUTS or "results" in document):
            found[stem] = section(stem, document)
    return found


def report() -> str:
    """All tables."""
    return "\n".join(line for lines in sections().values() for line in lines)


def readme_tables() -> str:
    """Those of the main README.md, and what else there is."""
    found = sections()
    shown = without_long_tables("\n".join(line for stem in IN_README for line in found.get(stem, [])))
    others = [lines[0].removeprefix("### ").lower() for stem, lines in found.items() if stem not in IN_README]
    return f"{shown}\n[All results]({ALL.relative_to(ROOT).as_posix()}), also of: {', '.join(others)}.\n"


def readme_methods() -> str:
    """Experiments of the main README.md, and links to the others."""
    folder = (RESULTS / "methods").relative_to(ROOT).as_posix()
    return without_long_tables(report_methods.report(RESULTS / "methods", folder, METHODS_IN_README))


def without_long_tables(text: str) -> str:
    link = f"({ALL.relative_to(ROOT).as_posix()})"
    return re.sub(r"<details>\n<summary>(.*?)</summary>.*?</details>", rf"[\1]{link}", text, flags=re.DOTALL)


def all_tables() -> str:
    """What stands in the results' own page."""
    methods = report_methods.report(RESULTS / "methods", "methods")
    return f"{report()}\n## Methods, side by side\n\n{methods}" if methods else report()


def between(text: str, begin: str, end: str, lines: str) -> str:
    """The text with ``lines`` between its two marks."""
    head, found, rest = text.partition(begin)
    _, closing, tail = rest.partition(end)
    if not found or not closing:
        raise SystemExit(f"{README}: expected the marks {begin} and {end}")
    return f"{head}{begin}\n\n{lines}\n{end}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a table is out of date")
    check = parser.parse_args().check
    readme = between(README.read_text(), BEGIN, END, readme_tables())
    wanted = {
        README: between(readme, METHODS_BEGIN, METHODS_END, readme_methods()),
        ALL: f"# Results\n\nWritten by `benchmarks/report.py` from the files beside this one.\n\n{all_tables()}",
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is out of date: run benchmarks/report.py")
        else:
            path.write_text(wanted[path])
    return int(check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
