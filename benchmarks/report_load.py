"""The README's tables of loading, from benchmarks/results/load.json."""

from __future__ import annotations

from markdown import Document, folded, table

NETWORKS = {"vgg11": "VGG-11", "linear": "two linear layers"}
VARIANTS = {"dense": "dense", "unstructured": "90 % zeros", "1x4": "90 % in 1x4 blocks"}
PEERS = {
    "onnxruntime_int8": "ONNX Runtime int8",
    "onnxruntime_int8_optimised": "ONNX Runtime int8, optimised before",
    "openvino_int8": "OpenVINO int8",
    "openvino_int8_cached": "OpenVINO int8, compiled before",
    "torch_load": "torch.load, float32 weights only",
    "safetensors": "safetensors, float32 weights only",
}
STAGES = ("read", "digest", "parse", "checks", "decode", "values", "pack")


def name_of(key: str) -> str:
    network, variant, bits, *codec = key.split("/")
    return ", ".join([NETWORKS[network], VARIANTS[variant], f"{bits} bits", *codec])


def milliseconds(row: Document) -> str:
    return f"{row['best_us'] / 1000:.1f}"


def both(row: Document) -> str:
    return f"{row['best_us'] / 1000:.1f} ({row['median_us'] / 1000:.1f})"


def loads_table(document: Document) -> list[str]:
    rows = []
    for key, row in document["rows"].items():
        times = row["times"]
        rows.append(
            [
                name_of(key),
                f"{row['weights'] / 1e6:.1f} M",
                f"{row['bytes'] / 1e6:.2f} MB",
                both(times["pqk"]),
                both(times["pqk_two_threads"]),
                f"{row['first_load_us'] / 1000:.0f}",
                f"{row['peak_bytes'] / row['weights']:.1f}",
            ]
        )
    header = ["network", "weights", "file", "load, ms", "2 threads", "first time", "peak bytes a weight"]
    return table(header, rows)


def stages_table(document: Document) -> list[str]:
    rows = [
        [name_of(key), *(milliseconds(row["stages"][stage]) for stage in STAGES)]
        for key, row in document["rows"].items()
    ]
    return table(["ms", *STAGES], rows)


def peers_table(document: Document) -> list[str]:
    keys = [key for key, row in document["rows"].items() if set(row["times"]) & set(PEERS)]
    rows = [["**pqk_ext**, checked and decoded", *(both(document["rows"][key]["times"]["pqk"]) for key in keys)]]
    for peer, title in PEERS.items():
        found = [document["rows"][key]["times"].get(peer) for key in keys]
        if any(found):
            rows.append([title, *("" if cell is None else both(cell) for cell in found)])
    return table(["ms", *map(name_of, keys)], rows)


def section(document: Document) -> list[str]:
    """What loading takes, of what it consists, and what peers take."""
    lines = ["Best (and median) of the rounds; `first time` also times kernels for layers with zeros.", ""]
    lines += [*loads_table(document), "", *peers_table(document), ""]
    rows = stages_table(document)
    return [*lines, *folded(f"{len(rows) - 2} loads by stages", rows)]
