"""The tables of stored sizes, from benchmarks/results/size.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from markdown import Document, folded, table

COMPRESSORS = ("gzip -9", "zstd -19", "xz -9e")
SMALL = 4096  # weights; what is claimed of single layers is claimed of larger ones
TYPICAL = 262_144


def total(layers: Iterable[Document], value: Callable[[Document], float]) -> float:
    return sum(value(layer) for layer in layers)


def times(layer: Document) -> str:
    """Bits a weight, and times the bound, everything included."""
    return f"{8 * layer['bytes'] / layer['count']:.3f} ({layer['bytes'] / layer['bound']:.3f})"


def by_zeros(document: Document) -> list[str]:
    layers = {tuple(key.split("/")): layer for key, layer in document["layers"].items()}
    kinds = list(dict.fromkeys((kind, bits) for kind, bits, *_ in layers))
    counts = sorted({int(key[3]) for key in layers})
    count = str(TYPICAL if TYPICAL in counts else counts[-1])
    rows = [
        [
            f"{float(zeros):.0%} zeros",
            *(times(each) if (each := layers.get((*kind, zeros, count))) else "" for kind in kinds),
        ]
        for zeros in dict.fromkeys(key[2] for key in layers)
    ]
    return [
        f"Random layers of {int(count):,} weights: bits a weight (times the bound).",
        "",
        *table(["", *(f"{kind}, {bits} bits" for kind, bits in kinds)], rows),
    ]


def by_size(document: Document) -> list[str]:
    layers = {tuple(key.split("/")): layer for key, layer in document["layers"].items()}
    counts = sorted({int(key[3]) for key in layers})
    rows = []
    for bits, zeros in (("4", "0.0"), ("4", "0.8"), ("4", "0.9"), ("8", "0.8"), ("8", "0.9"), ("8", "0.95")):
        found = [layers.get(("gaussian", bits, zeros, str(count))) for count in counts]
        if any(found):
            cells = [f"{e['coded'] / e['bound']:.3f}, {e['bytes'] / e['bound']:.3f}" if e else "" for e in found]
            rows.append([f"{bits} bits, {float(zeros):.0%} zeros", *cells])
    return [
        "Gaussian layers of other sizes: times the bound, streams alone and with tables and header.",
        "",
        *table(["", *(f"{count:,}" for count in counts)], rows),
    ]


def network_row(name: str, layers: dict[str, Document]) -> list[str]:
    network, zeros, bits = name.split("/")
    each = list(layers.values())
    ours, bound = total(each, lambda r: r["bytes"]), total(each, lambda r: r["bound"])
    huffman = total(each, lambda r: min(size for codec, size in r["codecs"].items() if "ans" not in codec))
    return [
        f"{network}, {float(zeros):.0%} zeros, {bits} bits",
        f"{ours:,.0f}",
        f"{8 * ours / total(each, lambda r: r['count']):.3f}",
        f"{total(each, lambda r: r['coded']) / bound:.3f}",
        f"{ours / bound:.3f}",
        f"{huffman / ours:.3f}",
        f"{total(each, lambda r: r['ideal']) / ours:.3f}",
        *(f"{total(each, lambda r, rival=rival: r['rivals'][rival]) / ours:.2f}" for rival in (*COMPRESSORS, "sHAM")),
    ]


def claims(document: Document) -> list[str]:
    """What holds of every layer, and where it does not."""
    layers = document["layers"] | {
        f"{name}, {layer}": row for name, rows in document["networks"].items() for layer, row in rows.items()
    }
    large = {name: row for name, row in layers.items() if row["count"] > SMALL}
    lost = [
        f"{name} ({min(row['rivals'][rival] for rival in COMPRESSORS) / row['bytes']:.3f})"
        for name, row in large.items()
        if min(row["rivals"][rival] for rival in COMPRESSORS) <= row["bytes"]
    ]
    sham = {name: row["rivals"]["sHAM"] / row["bytes"] for name, row in large.items()}
    above = {name: row["coded"] / row["bound"] for name, row in large.items() if row["bound"] >= SMALL / 8}
    worst, least = max(above, key=lambda name: above[name]), min(sham, key=lambda name: sham[name])
    below = sum(ratio < 2 for ratio in sham.values())
    return [
        f"Of {len(large)} layers of more than {SMALL:,} weights, "
        + (
            f"{len(lost)} are larger than a compressor makes them: {', '.join(lost)}; "
            if lost
            else "all are smaller than any compressor makes them; "
        )
        + f"streams take at most {above[worst]:.3f} times the bound ({worst}; of layers with a "
        "bound of 512 bytes and more). "
        f"sHAM takes at least {sham[least]:.2f} times as much ({least}), less than 2 times in {below}: an "
        "index of 8 or 16 bits and a coded value are there less than twice what a gap and a value need.",
    ]


def section(document: Document) -> list[str]:
    """Everything about sizes."""
    lines = [*by_zeros(document), "", *by_size(document), ""]
    if document["networks"]:
        header = [
            "weights of",
            "bytes",
            "bits a weight",
            "streams / bound",
            "all / bound",
            "without ANS",
            "ideal coder",
        ]
        rows = [network_row(name, layers) for name, layers in document["networks"].items()]
        columns = [*header, *(f"{rival}" for rival in (*COMPRESSORS, "sHAM"))]
        text = (
            "Networks, each layer coded and compressed by itself. From `without ANS` on: times our bytes. `ds_cnn` is "
            "trained with PQK, the others are pruned and quantized after their training."
        )
        lines += [text, "", *table(columns, rows), ""]
    lines += [*claims(document), ""]
    rows = [
        [
            name.replace("/", ", "),
            row["codec"],
            f"{row['bytes']:,}",
            times(row),
            *(f"{row['rivals'][r] / row['bytes']:.2f}" for r in (*COMPRESSORS, "HAM", "sHAM")),
        ]
        for name, row in document["layers"].items()
    ]
    full = table(
        ["values, bits, zeros, weights", "codec", "bytes", "bits (times bound)", *COMPRESSORS, "HAM", "sHAM"], rows
    )
    return [*lines, *folded(f"{len(rows)} random layers", full)]
