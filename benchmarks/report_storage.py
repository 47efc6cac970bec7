"""The README's tables of decoding and of products with coded weights, from decode.json and product.json."""

from __future__ import annotations

from markdown import Document, duration, folded, ratio, table

# Of Marino et al. 2020 and its result files: times slower than the dense product, sHAM by percentile; dense HAM.
PUBLISHED = {
    "30": "127",
    "40": "136",
    "50": "102",
    "60": "74",
    "70": "54",
    "80": "40",
    "90": "19",
    "95": "13",
    "96": "12",
    "97": "9",
    "98": "6",
    "99": "3",
    "0": "230 to 290",
}


def smallest(codecs: Document) -> str:
    return min(codecs, key=lambda name: float(codecs[name]["bits_per_weight"]))


def decode_table(document: Document) -> list[str]:
    """One line an alphabet: the smallest codec that decodes in parallel, and zstd."""
    rows = []
    for name, entry in document["alphabets"].items():
        interleaved = {codec: row for codec, row in entry["codecs"].items() if "two_threads" in row}
        codec = smallest(interleaved)
        row = interleaved[codec]
        rows.append(
            [
                name,
                codec.removeprefix("interleaved-"),
                f"{entry['entropy_bits']:.3f}",
                f"{row['bits_per_weight']:.3f}",
                f"{entry['zstd']['bits_per_weight']['19']:.3f}",
                f"{row['gweights_per_s']:.2f}",
                ratio(row["zstd"]),
                f"{row['two_threads']['ratio']:.2f}",
                f"{row['encode_mb_per_s']:.0f}",
            ]
        )
    header = ["weights", "interleaved-", "entropy, bits", "bits", "zstd -19, bits", "G weights/s", "times zstd"]
    return table([*header, "2 threads", "encode, MB/s"], rows)


def codec_table(document: Document) -> list[str]:
    """Every codec on every alphabet: bits, G weights/s."""
    names = list(dict.fromkeys(codec for entry in document["alphabets"].values() for codec in entry["codecs"]))
    rows = [
        [name, *(f"{row['bits_per_weight']:.2f}, {row['gweights_per_s']:.2f}" for row in entry["codecs"].values())]
        for name, entry in document["alphabets"].items()
    ]
    return table(["weights", *names], rows)


def isa_table(document: Document) -> list[str]:
    rows = [
        [f"{name}, {codec}", *(f"{value:.2f}" for value in row["isa_gweights_per_s"].values())]
        for name, entry in document["alphabets"].items()
        for codec, row in entry["codecs"].items()
        if "isa_gweights_per_s" in row
    ]
    first = next(iter(document["alphabets"].values()))
    isas = next(list(row["isa_gweights_per_s"]) for row in first["codecs"].values() if "isa_gweights_per_s" in row)
    return table(["G weights/s", *isas], rows)


def decode_section(document: Document) -> list[str]:
    return [
        *decode_table(document),
        "",
        *folded("Every codec: bits a weight, G weights/s", codec_table(document)),
        "",
        *folded("Decoding by instruction set", isa_table(document)),
    ]


def rows_table(document: Document) -> list[str]:
    rows = [
        [
            name,
            f"{row['bits_per_weight']:.2f}",
            duration(row["numpy"]["subject_us"]),
            ratio(row["numpy"]),
            ratio(row["torch"]),
        ]
        for name, row in document.get("rows", {}).items()
    ]
    return table(
        ["one row, 4096 x 4096", "bits", "pqk_ext", "numpy float32 / pqk_ext", "torch float32 / pqk_ext"], rows
    )


def batch_table(document: Document) -> list[str]:
    """The time of coded weights over that of resident ones."""
    batches = list(dict.fromkeys(batch for row in document["batches"].values() for batch in row["batches"]))
    rows = [
        [
            name,
            f"{row['coded_bytes'] / row['resident_bytes']:.2f}",
            *(f"{1 / row['batches'][batch]['ratio']:.2f}" for batch in batches),
        ]
        for name, row in document["batches"].items()
    ]
    return table(["coded / resident", "memory", *(f"batch {batch}" for batch in batches)], rows)


def sweep_table(document: Document) -> list[str]:
    """Times slower than the dense product (below 1: faster)."""
    percentiles = list(dict.fromkeys(key.split("/")[0] for key in document["sweep"]))
    counts = list(dict.fromkeys(key.split("/")[1] for key in document["sweep"]))
    rows = []
    for percentile in percentiles:
        found = [document["sweep"].get(f"{percentile}/{count}") for count in counts]
        cells = [f"{1 / row['ratio']:.2f} ({row['bits_per_weight']:.2f})" if row else "" for row in found]
        rows.append(["dense" if percentile == "0" else f"{percentile} %", *cells, PUBLISHED[percentile]])
    return table(["time / numpy's (bits)", *(f"k = {count}" for count in counts), "published"], rows)


def product_section(document: Document) -> list[str]:
    lines = rows_table(document)
    if "batches" in document:
        lines += ["", "A linear layer of the engine with coded weights, in times of the resident one:", ""]
        lines += batch_table(document)
    if "sweep" in document:
        lines += [
            "",
            "The literature's sweep: weights above a percentile of magnitudes share k values. Time of one row over",
        ]
        lines += [
            "that of numpy's dense float32 product, beside what was published for Python code (k = 32 and 2).",
            "",
        ]
        lines += sweep_table(document)
    return lines
