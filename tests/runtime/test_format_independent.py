"""A second reader, written from FORMAT.md alone in plain Python: it must see in every golden file what ours sees."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from pqk_ext import _core
from pqk_ext.runtime import format as pqk_format

FILES = sorted((Path(__file__).parent.parent / "golden").glob("v*/*.pqk"))
DEFAULTS: dict[str, Any] = {
    "stride": [1, 1],
    "padding": [0, 0, 0, 0],
    "dilation": [1, 1],
    "groups": 1,
    "count_include_pad": 1,
    "quant_min": 0,
    "quant_max": 255,
    "start": [0, 0, 0],
    "step": [1, 1, 1],
    "before": [0, 0, 0],
    "after": [0, 0, 0],
}


def bits_of(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


class Payload:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def lengths(self, fraction_bits: Callable[[int], int] = lambda length: 0) -> dict[int, tuple[int, int]]:
        """Symbols of a table -> length and fraction."""
        first, last = self.take(2)
        text = bits_of(self.data[self.at :])
        at, previous = 0, 8
        found: dict[int, tuple[int, int]] = {}
        for symbol in range(first, last + 1):
            if text.startswith("110", at):
                at += 3
                continue
            if text[at] == "0":
                step, at = 0, at + 1
            elif text.startswith("10", at):
                step, at = 1 - 2 * int(text[at + 2]), at + 3
            else:
                end = text.index("0", at + 3)
                step, at = (end - at - 1) * (1 - 2 * int(text[end + 1])), end + 2
            previous += step
            end = at + fraction_bits(previous)
            found[symbol], at = (previous, int(text[at:end] or "0", 2)), end
        self.at += (at + 7) // 8
        return found

    def shares(self) -> dict[int, int]:
        """A share table of ANS."""
        form = self.take(1)[0]

        def fraction_bits(kind: int) -> int:
            return min(12 - kind, max(0, (12 - kind + form % 16) // 2 - 5))

        weights = {
            symbol: 2 ** (12 - kind) + fraction * 2 ** (12 - kind - fraction_bits(kind))
            for symbol, (kind, fraction) in self.lengths(fraction_bits).items()
        }
        if form >= 16:
            weights |= {256 - symbol: weight for symbol, weight in weights.items() if symbol > 128}
        total = sum(weights.values())
        shares = {s: max(1, (4096 * weights[s] + total // 2) // total) for s in sorted(weights)}
        order = sorted(shares, key=lambda symbol: -shares[symbol])
        while (left := 4096 - sum(shares.values())) != 0:
            for symbol in order[: abs(left)]:
                shares[symbol] += 1 if left > 0 else -(shares[symbol] > 1)
        return shares

    def ans(self, log2: int, *runs: tuple[dict[int, int], int]) -> list[list[int]]:
        """The stream of some runs, each of so many symbols with these shares."""
        states = [int.from_bytes(self.take(4), "little") for _ in range(2**log2)]
        decoded = []
        for shares, count in runs:
            symbols: list[int] = []
            for number in range(count):
                x = states[number % len(states)]
                start, slot = 0, x % 4096
                rest = iter(shares.items())
                symbol, share = next(rest)
                while start + share <= slot:
                    start += share
                    symbol, share = next(rest)
                symbols.append(symbol)
                x = share * (x // 4096) + slot - start
                states[number % len(states)] = x if x >= 65_536 else x * 65_536 + int.from_bytes(self.take(2), "little")
            decoded.append(symbols)
        assert states == [65_536] * len(states)
        return decoded

    def codes(self) -> dict[str, int]:
        """A length table, as the dictionary from codes to symbols."""
        codes: dict[str, int] = {}
        code = 0
        for index, (length, symbol) in enumerate(sorted((kind, s) for s, (kind, _) in self.lengths().items())):
            if index:
                code = (code + 1) << (length - len(list(codes)[-1]))
            codes[f"{code:0{length}b}"] = symbol
        return codes

    def token_code(self) -> dict[str, tuple[int, int]]:
        """A code table, as the dictionary from prefixes to (base, plain bits)."""
        first, last = self.take(2)
        text = bits_of(self.data[self.at :])
        at = 1

        def step() -> int | None:
            nonlocal at
            begin = at
            if text[at] == "0":
                at += 1
                return 0
            if text.startswith("10", at):
                at += 3
                return 1 - 2 * int(text[begin + 2])
            if text.startswith("110", at):
                at += 3
                return None
            end = text.index("0", at + 3)
            at = end + 2
            return (end - begin - 1) * (1 - 2 * int(text[end + 1]))

        tokens: list[tuple[int, int, int]] = []
        symbol, length, plain = first, 4, 0
        while symbol <= last:
            change = step()
            if change is None:
                symbol += 1
                continue
            length += change
            if text[0] == "1":
                more = step()
                assert more is not None
                plain += more
            tokens.append((length, symbol, plain))
            symbol += 2**plain
        self.at += (at + 7) // 8
        codes: dict[str, tuple[int, int]] = {}
        code = before = 0
        for length, base, plain in sorted(tokens):
            code = (code + bool(codes)) << (length - before)
            before = length
            codes[f"{code:0{length}b}"] = base, plain
        return codes


class Bits:
    """Bits as text, first to last, that codes are taken from."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def symbol(self, codes: dict[str, tuple[int, int]]) -> int:
        end = self.at + 1
        while self.text[self.at : end] not in codes:
            assert end < len(self.text)
            end += 1
        base, plain = codes[self.text[self.at : end]]
        self.at = end + plain
        assert self.at <= len(self.text)
        return base + int(self.text[end : self.at][::-1] or "0", 2)


def low_bits_of(data: bytes) -> str:
    return "".join(f"{byte:08b}"[::-1] for byte in data)


def interleaved(codes: dict[str, tuple[int, int]], data: bytes, count: int, tail_blocks: int) -> list[int]:
    if len(codes) == 1:
        assert data == bytes((count + 7) // 8)
        return [base for base, _ in codes.values()] * count
    blocks = max(0, count // 512 - tail_blocks)
    longest = max(len(prefix) + plain for prefix, (_, plain) in codes.items())
    no_plain = all(plain == 0 for _, plain in codes.values())
    period = 4 if no_plain and longest <= 4 else 2 if longest <= 8 else 1
    rest = Payload(data)
    streams = [Bits(low_bits_of(rest.take(4))) for _ in range(128 if blocks else 0)]
    symbols: list[int] = []
    for _ in range(blocks):
        block = [[0] * 4 for _ in streams]
        for turn in range(0, 4, period):
            for stream, four in zip(streams, block, strict=True):
                if stream.at >= 16:
                    stream.text = stream.text[16:] + low_bits_of(rest.take(2))
                    stream.at -= 16
                four[turn : turn + period] = [stream.symbol(codes) for _ in range(period)]
        symbols += [symbol for four in block for symbol in four]
    kept = "".join(stream.text[stream.at :] for stream in streams)
    tail = Bits(kept + low_bits_of(data[rest.at :]))
    symbols += [tail.symbol(codes) for _ in range(count - len(symbols))]
    assert "1" not in tail.text[tail.at :]
    assert len(tail.text) - max(tail.at, len(kept)) < 8
    return symbols


def decode_interleaved(payload: Payload, shape: list[int]) -> list[int]:
    per_chunk, tail_blocks = payload.varint(), payload.take(1)[0]
    codes = payload.token_code()
    rows = [min(per_chunk, shape[0] - row) for row in range(0, shape[0], per_chunk)]
    sizes = [payload.varint() for _ in rows]
    row_size = int(np.prod(shape[1:]))
    values: list[int] = []
    for number, size in zip(rows, sizes, strict=True):
        symbols = interleaved(codes, payload.take(size), number * row_size, tail_blocks)
        values += [symbol - 128 for symbol in symbols]
    return values


def decode_interleaved_sparse(payload: Payload, shape: list[int]) -> list[int]:
    row_size = int(np.prod(shape[1:]))
    tokens = payload.varint()
    if tokens == 0:
        return [0] * (shape[0] * row_size)
    per_chunk, tail_blocks, longest = payload.varint(), *payload.take(2)
    gap_codes, value_codes = payload.token_code(), payload.token_code()
    rows = [min(per_chunk, shape[0] - row) for row in range(0, shape[0], per_chunk)]
    entries = [(payload.varint(), payload.varint(), payload.varint()) for _ in rows]
    values: list[int] = []
    for number, (count, gap_bytes, value_bytes) in zip(rows, entries, strict=True):
        chunk: list[int] = []
        gaps = interleaved(gap_codes, payload.take(gap_bytes), count, tail_blocks)
        symbols = interleaved(value_codes, payload.take(value_bytes), count, tail_blocks)
        for gap, symbol in zip(gaps, symbols, strict=True):
            assert gap <= longest
            assert symbol != 128 or gap == longest
            chunk += [0] * gap + [symbol - 128]
        values += chunk + [0] * (number * row_size - len(chunk))
    assert sum(count for count, _, _ in entries) == tokens
    return values


def decode_stream(codes: dict[str, int], data: bytes, spare: int) -> list[int]:
    text = bits_of(data)
    text = text[: len(text) - spare]
    symbols, begin = [], 0
    for end in range(1, len(text) + 1):
        if text[begin:end] in codes:
            symbols.append(codes[text[begin:end]])
            begin = end
    assert begin == len(text)
    return symbols


def place(out: np.ndarray[Any, Any], gaps: list[int], escape: int, values: np.ndarray[Any, Any]) -> None:
    """Every token moves on; one below the escape also leaves a value and takes its place."""
    moves = np.array(gaps)
    is_value = moves != escape
    out[(np.cumsum(moves + is_value) - 1)[is_value]] = values


def decode(codec: str, data: bytes, shape: list[int]) -> np.ndarray[Any, Any]:
    count, payload = int(np.prod(shape)), Payload(data)
    out = np.zeros(count, np.int64)
    if codec == "bitmask":
        mask = np.unpackbits(np.frombuffer(payload.take((count + 7) // 8), np.uint8), bitorder="little")[:count] == 1
        out[mask] = np.frombuffer(payload.take(int(mask.sum())), np.int8)
    elif codec == "csr":
        width, nnz = payload.take(1)[0], payload.varint()
        crow = np.frombuffer(payload.take(4 * (shape[0] + 1)), "<u4")
        steps = np.frombuffer(payload.take(width * nnz), f"<u{width}").astype(np.int64)
        values = np.frombuffer(payload.take(nnz), np.int8)
        matrix = out.reshape(shape[0], -1)
        for row in range(shape[0]):
            part = slice(int(crow[row]), int(crow[row + 1]))
            matrix[row, np.cumsum(steps[part])] = values[part]
    elif codec == "packed":
        bits = payload.take(1)[0]
        text = low_bits_of(payload.take((count * bits + 7) // 8))
        fields = [text[i : i + bits][::-1] for i in range(0, count * bits, bits)]
        out[:] = [int(field, 2) - (int(field[0]) << bits) for field in fields]
    elif codec == "interleaved-huffman":
        out[:] = decode_interleaved(payload, shape) if count else []
    elif codec == "interleaved-sparse-huffman":
        out[:] = decode_interleaved_sparse(payload, shape)
    elif codec == "huffman":
        spare = payload.take(1)[0]
        codes = payload.codes()
        out[:] = np.array(decode_stream(codes, payload.data[payload.at :], spare)) - 128
        return out
    elif codec == "ans" and count == 0:
        pass
    elif codec == "ans":
        log2 = payload.take(1)[0]
        shares = payload.shares()
        out[:] = np.array(payload.ans(log2, (shares, count))[0]) - 128
    elif codec == "sparse-ans":
        nnz = payload.varint()
        if nnz:
            tokens, escape, log2 = payload.varint(), *payload.take(2)
            gap_shares, value_shares = payload.shares(), payload.shares()
            gaps, symbols = payload.ans(log2, (gap_shares, tokens), (value_shares, nnz))
            place(out, gaps, escape, np.array(symbols) - 128)
    else:
        nnz = payload.varint()
        tokens, gap_bytes, escape, spare = payload.varint(), payload.varint(), *payload.take(2)
        gap_codes, value_codes = payload.codes(), payload.codes()
        gaps = decode_stream(gap_codes, payload.take(gap_bytes), spare % 8)
        values = np.array(decode_stream(value_codes, payload.data[payload.at :], spare // 8)) - 128
        assert (len(gaps), len(values)) == (tokens, nnz)
        place(out, gaps, escape, values)
        return out
    assert payload.at == len(data)
    return out


def expand(
    metadata: dict[str, Any], tensors: dict[str, np.ndarray[Any, Any]]
) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Metadata and tensors of a compact file as a plain one has them."""
    assert set(metadata) == {"digest", "version", "required_features"}
    assert set(tensors) == {"data", "graph"}
    graph = json.loads(zlib.decompress(tensors["graph"].tobytes(), wbits=-15))
    sizes: dict[str, tuple[str, int]] = {}
    for index, fields in enumerate(graph["nodes"]):
        record, channels = fields.get("weight"), fields["shape"][0]
        if record:
            sizes[f"{index}.weight"] = ("u1", record["bytes"])
        if record or fields["op"] in ("affine", "float_affine"):
            half = "half-affine" in metadata["required_features"]
            sizes[f"{index}.affine"] = ("<f2" if half else "<f4", 2 * channels)
        if record and "codebook" in record:
            sizes[f"{index}.codebook"] = ("<f4", record["codebook"])
        if fields["op"] == "affine":
            sizes[f"{index}.zero_point"] = ("u1", channels)
        if fields["op"] == "lookup":
            sizes[f"{index}.table"] = ("u1", 256)
    found, at = {}, 0
    for itemsize in (4, 2, 1):
        for name, (dtype, count) in sizes.items():
            if np.dtype(dtype).itemsize == itemsize:
                found[name] = np.frombuffer(tensors["data"].tobytes(), dtype, count, at)
                at += count * itemsize
    assert at == tensors["data"].size
    for name in (name for name in found if name.endswith(".affine")):
        found[name] = found[name].reshape(2, -1)
    return {**metadata, **graph}, found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_reader_written_from_the_text_agrees(path: Path) -> None:
    data = path.read_bytes()
    begin = 8 + len('{"__metadata__":{"pqk":"{\\"digest\\":\\"')
    digest = data[begin : begin + 64]
    assert hashlib.sha256(data[:begin] + b"0" * 64 + data[begin + 64 :]).hexdigest().encode() == digest
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = json.loads(header["__metadata__"]["pqk"])
    assert metadata["digest"].encode() == digest
    tensors = safetensors.numpy.load(data)
    if "compact" in metadata.get("required_features", []):
        metadata, tensors = expand(metadata, tensors)

    graph = pqk_format.read(path)
    assert list(graph.input.shape) == metadata["input"]
    assert (len(metadata["input"]) == 2) == ("sequence-input" in metadata.get("required_features", []))
    assert len(graph.nodes) == len(metadata["nodes"])
    ops = {fields["op"] for fields in metadata["nodes"]}
    assert ("dilate" in ops) == ("dilate" in metadata.get("required_features", []))
    for index, (node, fields) in enumerate(zip(graph.nodes, metadata["nodes"], strict=True)):
        assert (node.op, node.name, list(node.value.shape)) == (fields["op"], fields["name"], fields["shape"])
        assert list(node.inputs) == fields.get("inputs", [index])
        assert node.value.dtype == fields.get("dtype", "f32" if node.op.startswith("float_") else "u8")
        assert node.value.scale == fields.get("scale")
        assert node.value.zero_point == (fields.get("zero_point", 0) if "scale" in fields else None)
        for name, value in node.attributes.items():
            assert value == fields.get(name, DEFAULTS.get(name))
        if node.op.startswith("float_"):
            assert "float-codebook" in metadata["required_features"]
        if "codebook" in node.tensors:
            assert len(node.tensors["codebook"]) == fields["weight"]["codebook"]
        for name, tensor in node.tensors.items():
            if name == "weight":
                record = fields["weight"]
                stored = tensors[f"{index}.weight"]
                if record["codec"] != "raw":
                    stored = decode(record["codec"], stored.tobytes(), record["shape"]).reshape(record["shape"])
            elif name in ("multiplier", "bias"):
                stored = tensors[f"{index}.affine"][int(name == "bias")]
            else:
                stored = tensors[f"{index}.{name}"]
            np.testing.assert_array_equal(tensor, stored.reshape(tensor.shape))


WEIGHTS = {
    "nothing": (0, 4, []),
    "zeros": (3, 50, [0]),
    "one value": (2, 700, [-3]),
    "4 bits": (9, 777, list(range(-7, 8))),
    "8 bits": (5, 1001, list(range(-128, 128))),
    "2 values": (1, 5000, [0, 1]),
    "chunks": (300, 1024, [-1, 0, 1]),
    "mostly zeros": (40, 600, [0] * 30 + [-2, -1, 1, 2, 100]),
    "long gaps": (4, 3000, [0] * 600 + [1, 2]),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("codec", sorted(_core.codec_features()))  # files of version 1.0 have the others
def test_new_codecs_are_read_from_the_text(codec: str, name: str) -> None:
    rows, cols, alphabet = WEIGHTS[name]
    rng = np.random.default_rng(len(name))
    weight = rng.choice(np.array(alphabet or [0], np.int8), (rows, cols))
    payload = _core.encode_weight(codec, weight, rows)
    np.testing.assert_array_equal(decode(codec, payload, [rows, cols]), weight.reshape(-1))


@pytest.mark.parametrize("codec", ["ans", "sparse-ans"])
@pytest.mark.parametrize("density", [0.002, 0.1, 1.0])
@pytest.mark.parametrize("largest", [1, 7, 127])
def test_ans_as_the_text_says(codec: str, density: float, largest: int) -> None:
    """Golden files are small: these have several states, long tables and many escapes."""
    rng = np.random.default_rng(largest)
    values = np.clip(np.rint(rng.laplace(0, largest / 4, (8, 1500))), -largest, largest).astype(np.int8)
    values[rng.random(values.shape) >= density] = 0
    payload = _core.encode_weight(codec, values, 8)
    np.testing.assert_array_equal(decode(codec, payload, [8, 1500]), values.reshape(-1))
