"""The README's tables of whole networks, from benchmarks/results/nets.json."""

from __future__ import annotations

from markdown import Document, ceilings, duration, folded, geometric_mean, ratio, table

# Those whose ratios are summed up in one figure.
SUMMED = ("resnet8", "resnet20", "ds_cnn", "vgg11", "resnet32_wide")
TITLES = {
    "resnet8": "ResNet-8",
    "resnet20": "ResNet-20",
    "ds_cnn": "DS-CNN",
    "vgg11": "VGG-11",
    "resnet32_wide": "ResNet-32, 4 times as wide",
    "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2",
    "densenet_bc": "DenseNet-BC 100",
    "densenet201": "DenseNet-201",
    "res15": "res15",
}
VARIANTS = {"dense": "dense", "unstructured": "90 % zeros", "1x4": "90 % in 1x4 blocks"}
PEERS = {
    "torch_eager": "torch",
    "onnxruntime_float": "ONNX Runtime f32",
    "onnxruntime_int8": "ONNX Runtime int8",
    "openvino_f32": "OpenVINO f32",
    "openvino_bf16": "OpenVINO bf16",
    "openvino_int8": "OpenVINO int8",
    "litert_float": "LiteRT f32",
    "litert_int8": "LiteRT int8",
    "deepsparse_float": "DeepSparse f32",
    "deepsparse_int8": "DeepSparse int8",
}


def rows_of(document: Document, isa: str, *variants: str) -> list[Document]:
    """Rows of an instruction set ("" is the machine's best) in the order of `TITLES`."""
    suffix = f"/{isa}" if isa else ""
    rows = [
        row
        for key, row in document.get("rows", {}).items()
        if row["variant"] in variants and key == f"{row['network']}/{row['batch']}/{row['variant']}{suffix}"
    ]
    names, order = list(TITLES), list(VARIANTS)
    return sorted(rows, key=lambda r: (names.index(r["network"]), r["batch"], order.index(r["variant"])))


def name(row: Document) -> str:
    return f"{TITLES[row['network']]}, {row['batch']}"


def summary(rows: list[Document]) -> str:
    """Geometric mean and worst of the ratios, over the rows that are summed up."""
    summed = [row for row in rows if row["network"] in SUMMED]
    if not summed:
        return ""
    parts = []
    for variant, title in VARIANTS.items():
        ratios = [row["ratio"] for row in summed if row["variant"] == variant]
        if ratios:
            mean, worst = geometric_mean(ratios), min(ratios)
            parts.append(f"{title} {mean:.2f} (lowest {worst:.2f}, {len(ratios)} rows)")
    nets = ", ".join(TITLES[network] for network in SUMMED if any(row["network"] == network for row in summed))
    return f"Geometric mean of best peer / pqk_ext over {nets}: {'; '.join(parts)}."


def best_cells(row: Document) -> list[str]:
    best = row["peers"][row["best"]]
    return [
        duration(row["pqk"]["median_us"]),
        f"{PEERS[row['best']]}, {duration(best['median_us'])}",
        ratio(row),
    ]


def main_table(rows: list[Document]) -> list[str]:
    """One line a network and batch; three columns for each variant that there is."""
    variants = [variant for variant in VARIANTS if any(row["variant"] == variant for row in rows)]
    lines: dict[str, dict[str, Document]] = {}
    for row in rows:
        lines.setdefault(name(row), {})[row["variant"]] = row
    header = ["network, batch"]
    for variant in variants:
        prefix = f"{VARIANTS[variant]}: " if len(variants) > 1 else ""
        header += [f"{prefix}pqk_ext", "best peer", "ratio"]
    empty = ["", "", ""]
    cells = [
        [title, *(cell for v in variants for cell in (best_cells(row[v]) if v in row else empty))]
        for title, row in lines.items()
    ]
    return table(header, cells)


def all_peers(rows: list[Document]) -> list[str]:
    """Medians of every mode of every peer."""
    present = [peer for peer in PEERS if any(peer in row["peers"] for row in rows)]
    cells = [
        [
            f"{name(row)}, {VARIANTS[row['variant']]}",
            duration(row["pqk"]["median_us"]),
            *(duration(row["peers"][peer]["median_us"]) if peer in row["peers"] else "" for peer in present),
        ]
        for row in rows
    ]
    return table(["network, batch, variant", "pqk_ext", *(PEERS[peer] for peer in present)], cells)


def load_table(rows: list[Document]) -> list[str]:
    """What a file costs before the first call."""
    cells = [
        [
            f"{TITLES[row['network']]}, {VARIANTS[row['variant']]}",
            f"{row['pqk']['bytes'] / 1000:,.1f} kB",
            duration(row["pqk"]["load_ms"] * 1e3),
            f"{row['pqk']['difference']:.1%}",
            ", ".join(f"{kernel} {count}" for kernel, count in row["pqk"]["kernels"].items()),
        ]
        for row in rows
        if row["batch"] == 1
    ]
    return table(["network, variant", "file", "load", "difference to float torch", "kernels"], cells)


def thread_table(document: Document) -> list[str]:
    lines: dict[str, dict[str, Document]] = {}
    for row in document.get("scaling", {}).values():
        title = f"{TITLES[row['network']]}, {row['batch']}, {row['threads']} threads"
        lines.setdefault(title, {})[row["variant"]] = row
    cells = [[title, *(ratio(row[v]) if v in row else "" for v in VARIANTS)] for title, row in lines.items()]
    return table(["network, batch", *VARIANTS.values()], cells)


def section(document: Document) -> list[str]:
    """Everything about whole networks."""
    dense, sparse = rows_of(document, "", "dense"), rows_of(document, "", "unstructured", "1x4")
    lines: list[str] = []
    isas = {row["pqk"]["isa"] for row in dense + sparse}
    for text in [summary(dense + sparse), *(ceilings(document, isa) for isa in sorted(isas))]:
        lines += [text, ""] if text else []
    if dense:
        lines += ["Dense networks:", "", *main_table(dense), ""]
    if sparse:
        lines += ["Pruned to 90 %:", "", *main_table(sparse), ""]
    if document.get("scaling"):
        lines += ["More threads against one, times as fast:", "", *thread_table(document), ""]
    avx2 = rows_of(document, "avx2", *VARIANTS)
    if avx2:
        lines += ["With our AVX2 kernels (`PQK_FORCE_ISA=avx2`), peers as above. " + summary(avx2), ""]
        lines += [ceilings(document, "avx2"), ""]
        lines += [*folded(f"{len(avx2)} rows", main_table(avx2)), ""]
    if dense or sparse:
        lines += [*folded("Medians of all modes of all peers", all_peers(dense + sparse)), ""]
        lines += [*folded("Files, load times, kernels", load_table(dense + sparse)), ""]
    return lines[:-1]
