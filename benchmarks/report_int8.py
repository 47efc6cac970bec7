"""The README's tables of integer layers, from benchmarks/results/int8.json."""

from __future__ import annotations

from markdown import Document, ceilings, duration, folded, geometric_mean, ratio, table

SHORTEST_US = 0.5
PATTERNS = {"unstructured": "single weights", "1x4": "1x4 blocks"}


def dense_table(document: Document) -> list[str]:
    rows = [
        [name, duration(row["us"]), f"{row['peak_share']:.0%}", row["kernel"], ratio(row["fbgemm"])]
        for name, row in document["dense"].items()
    ]
    return table(["layer", "pqk_ext", "of the peak", "kernel", "FBGEMM / pqk_ext"], rows)


def peak_shares(document: Document) -> str:
    """What 3x3 convolutions reach, in one sentence."""
    rows = [row for row in document["dense"].values() if row["kernel_size"] == [3, 3] and row["groups"] == 1]
    parts = []
    for title, low, high in (("32 and more input channels", 32, 1 << 30), ("16", 16, 31), ("fewer than 16", 1, 15)):
        shares = [row["peak_share"] for row in rows if low <= row["channels"] <= high]
        if shares:
            parts.append(f"of {title}: {min(shares):.0%} to {max(shares):.0%}")
    return f"Share of the int8 peak that 3x3 convolutions reach, {', '.join(parts)}." if parts else ""


def cell(row: Document | None) -> str:
    return "" if row is None else f"{row['dense']['ratio']:.2f} ({row['executed_share']:.0%})"


def sparse_table(document: Document) -> list[str]:
    """One line a layer and pattern, one column a density: times dense, and the executed share of the peak."""
    lines: dict[str, dict[str, Document]] = {}
    for key, row in document["sparse"].items():
        layer, density = key.rsplit("/", 1)
        lines.setdefault(layer, {})[density] = row
    densities = list(dict.fromkeys(key.rsplit("/", 1)[1] for key in document["sparse"]))
    cells = [[layer.replace("/", ", "), *(cell(row.get(d)) for d in densities)] for layer, row in lines.items()]
    return table(["layer, zeros", *(f"{float(d):.0%} kept" for d in densities)], cells)


def sparse_summary(document: Document) -> list[str]:
    """Over all layers: times dense at each density, geometric mean and lowest."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for key, row in document["sparse"].items():
        _, pattern, density = key.rsplit("/", 2)
        ratios.setdefault(pattern, {}).setdefault(density, []).append(row["dense"]["ratio"])
    densities = list(dict.fromkeys(density for row in ratios.values() for density in row))
    cells = [
        [PATTERNS[pattern], *(f"{geometric_mean(row[d]):.2f} ({min(row[d]):.2f})" for d in densities)]
        for pattern, row in ratios.items()
    ]
    return table(["weights kept", *(f"{float(d):.0%}" for d in densities)], cells)


def choices(document: Document) -> str:
    """How much the choice of kernels loses, in one sentence; of layers for which the clock is fine enough."""
    lost = [row["lost_by_choice"] for row in document["sparse"].values() if row["us"] >= SHORTEST_US]
    if not lost:
        return ""
    wrong = sum(value > 0.05 for value in lost)
    return (
        f"In {len(lost) - wrong} of {len(lost)} cases the kernel that was chosen is within 5 % of the fastest one; "
        f"at worst it takes {max(lost):.0%} longer."
    )


def fbgemm_sparse_table(document: Document) -> list[str]:
    rows = [
        [key.replace("/1x4/", ", "), duration(row["us"]), ratio(row["fbgemm_sparse"])]
        for key, row in document["sparse"].items()
        if "fbgemm_sparse" in row
    ]
    return table(["layer, share of blocks kept", "pqk_ext", "FBGEMM 1x4 sparse / pqk_ext"], rows)


def section(document: Document) -> list[str]:
    """Everything about integer layers."""
    overhead = f"torch's smallest call takes {document['torch_call_us']:.0f} us, which all of its times contain."
    lines = [f"{ceilings(document, document['build']['isa'])} {overhead}", ""]
    if document.get("dense"):
        rows = dense_table(document)
        lines += [peak_shares(document), "", *folded(f"{len(rows) - 2} dense layers", rows), ""]
    if document.get("sparse"):
        lines += ["Times as fast as the dense kernel, geometric mean over the layers (and the lowest):", ""]
        lines += [*sparse_summary(document), "", choices(document), ""]
        text = (
            "In brackets the share of the peak that products of non-zeros (kernel `gather`), of blocks with a non-zero "
            "(`blocks`) or all (`direct`) reach."
        )
        rows = sparse_table(document)
        lines += [*folded(f"{len(rows) - 2} lines of layers with zeros", [text, "", *rows]), ""]
        rows = fbgemm_sparse_table(document)
        lines += folded(f"{len(rows) - 2} comparisons with FBGEMM's sparse product", rows) if len(rows) > 2 else []
        lines += [""]
    return lines[:-1]
