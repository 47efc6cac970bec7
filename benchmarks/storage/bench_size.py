"""Sizes of stored weights against their entropy, general compressors and the published layouts.

`python benchmarks/storage/bench_size.py` writes benchmarks/results/size.json. No timing: one run on any machine. It
takes about two minutes, and some more the first time, when the networks are trained.

The bound is the order-0 entropy: that of the mask plus that of the non-zeros, which is the same as that of all entries.
`coded` is the streams of values and indices alone, without tables and header, which every layer pays once whatever its
size. `ideal` is what an exact entropy coder would take with a table of 8 bits a symbol. Rivals are the compressors on
the dense int8 array of the same layer, and the published layouts.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import paired
import stored_networks
from numpy.typing import NDArray

from pqk_ext import _core, rivals
from pqk_ext.runtime.entropy import bound

Int8 = NDArray[np.int8]

SIZES = (4096, 16_384, 65_536, 262_144, 1_048_576)
ZEROS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
BITS = (2, 4, 8)
LARGE, LARGE_ZEROS = 1_000_000, (0.0, 0.9)  # layers from here on take seconds each: only some of them
ROWS = 64


def synthetic(distribution: str, zeros: float, bits: int, count: int) -> Int8:
    """Random weights whose smallest are 0, in codes of `bits` bits.

    The largest weight gets the largest code; with 2 bits, every weight that is left gets 1 or -1 (above half the mean
    magnitude where none is pruned).
    """
    rng = np.random.default_rng(count)
    weights = rng.standard_normal(count) if distribution == "gaussian" else rng.laplace(size=count)
    magnitudes = np.abs(weights)
    weights[np.argsort(magnitudes)[: round(zeros * count)]] = 0
    largest = 2 ** (bits - 1) - 1
    scale = magnitudes.max() / largest if bits > 2 else magnitudes[weights != 0].mean()
    return np.clip(np.rint(weights / scale), -largest, largest).astype(np.int8)


def quantized_before_pruning(zeros: float, bits: int, count: int) -> Int8:
    """Gaussian codes of which a random share is 0: values as diverse as without zeros."""
    rng = np.random.default_rng(count)
    codes = synthetic("gaussian", 0.0, bits, 2 * count)
    codes = codes[codes != 0][:count]
    return np.where(rng.random(count) < zeros, 0, codes).astype(np.int8)


def table_bits(values: NDArray[Any]) -> tuple[float, int]:
    """Bits of an ideal code for shares rounded to 1/4096, and of its table at 8 bits a symbol."""
    counts = np.unique(values, return_counts=True)[1]
    if len(counts) < 2:
        return 0.0, 8 * len(counts)
    shares = np.maximum(1, np.rint(4096 * counts / counts.sum()))
    return float(-(counts * np.log2(shares / shares.sum())).sum()), 8 * len(counts)


def ideal_bytes(weight: Int8) -> float:
    """What an ideal entropy coder takes, tables included: all entries, or gaps (in tokens below 16) and non-zeros."""
    positions = np.flatnonzero(weight)
    gaps = np.diff(positions, prepend=-1) - 1
    coded = [sum(table_bits(weight))]
    for escape in (15, 31, 63, 127, 255):
        tokens = np.concatenate([gaps % escape, np.repeat(escape, int((gaps // escape).sum()))])
        coded.append(sum(table_bits(tokens)) + sum(table_bits(weight[weight != 0])))
    return min(coded) / 8


def measure(weight: Int8) -> dict[str, Any]:
    """One layer, `(out, ...)`."""
    rows = weight.shape[0]
    payloads = {codec: _core.encode_weight(codec, weight, rows) for codec in _core.codec_names()}
    codec = min(payloads, key=lambda name: len(payloads[name]))
    parts = _core.payload_parts(codec, payloads[codec], weight.size, rows, "weight")
    return {
        "count": weight.size,
        "density": np.count_nonzero(weight) / weight.size,
        "codec": codec,
        "bytes": len(payloads[codec]),
        "coded": parts["values"] + parts["indices"],
        "codecs": {name: len(payload) for name, payload in payloads.items()},
        "bound": bound(weight).bits / 8,
        "ideal": ideal_bytes(weight),
        "rivals": rivals.rival_bytes(weight),
    }


def network(name: str) -> dict[str, Any]:
    """Every layer of a stored network, each weight by itself."""
    graph = stored_networks.load(name)
    weights = {node.name: node.tensors["weight"] for node in graph.nodes if "weight" in node.tensors}
    return {layer: measure(np.ascontiguousarray(weight)) for layer, weight in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="weights of the synthetic layers")
    parser.add_argument("--no-networks", action="store_true", help="synthetic layers only")
    arguments = parser.parse_args()
    if not rivals.has_zstd():
        raise SystemExit("zstandard is missing: pip install zstandard")
    layers = {}
    for count in arguments.sizes:
        for zeros in ZEROS if count < LARGE else LARGE_ZEROS:
            for bits in BITS:
                cases = {kind: synthetic(kind, zeros, bits, count) for kind in ("gaussian", "laplace")}
                if bits == 4 and zeros > 0:
                    cases["gaussian, zeros anywhere"] = quantized_before_pruning(zeros, bits, count)
                for kind, weight in cases.items():
                    layers[f"{kind}/{bits}/{zeros}/{count}"] = measure(weight.reshape(ROWS, -1))
        print(f"{count}: {len(layers)} layers", flush=True)
    networks = {name: network(name) for name in stored_networks.names()} if not arguments.no_networks else {}
    path = paired.RESULTS / "size.json"
    path.parent.mkdir(exist_ok=True)
    document = {"machine": paired.machine(), "versions": versions(), "layers": layers, "networks": networks}
    path.write_text(dumps(rounded(document)) + "\n")
    print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def versions() -> dict[str, str]:
    """Of what the rivals are made with."""
    import zstandard

    return {"zstd": ".".join(map(str, zstandard.ZSTD_VERSION))}


def dumps(document: dict[str, Any]) -> str:
    """JSON with a layer a line."""
    sections = []
    for name, value in document.items():
        if name == "networks":
            lines = [f'"{net}": {{\n{_lines(layers)}\n}}' for net, layers in value.items()]
            sections.append(f'"{name}": {{\n' + ",\n".join(lines) + "\n}")
        elif name == "layers":
            sections.append(f'"{name}": {{\n{_lines(value)}\n}}')
        else:
            sections.append(f'"{name}": {json.dumps(value)}')
    return "{\n" + ",\n".join(sections) + "\n}"


def _lines(entries: dict[str, Any]) -> str:
    return ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())


def rounded(value: Any) -> Any:
    """Floats to six digits, so that the file is short."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
