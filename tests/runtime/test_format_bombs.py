"""Small files that ask for much: refused within 50 ms of processor time and 16 MB of memory, measured in a process
of their own.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.files import SMALL, join, split

MAX_SECONDS = 0.05
MAX_BYTES = 16 * 2**20

# Reads each file of the folder in a fork, so that neither its memory nor its time counts for the next.
MEASURE = """
import json, os, resource, sys, time
from pqk_ext.errors import FormatError
from pqk_ext.runtime import format

def attempt(path):
    start = time.process_time()
    try:
        format.read(path)
        outcome = ["loaded", "", ""]
    except FormatError as error:
        outcome = [error.code, error.field, error.expected]
    return outcome, time.process_time() - start

def measure(path):
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome, seconds = attempt(path)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        seconds = min(seconds, *(attempt(path)[1] for _ in range(4)))
        os.write(send, json.dumps([*outcome, seconds, used * 1024]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return json.loads(os.read(receive, 2**16))

folder, small = sys.argv[1:]
for _ in range(3):
    format.read(small)
print(json.dumps({name: measure(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}))
"""


def many_tensors(count: int, prefix: str) -> bytes:
    header, metadata, tensors = split(SMALL)
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [len(tensors), len(tensors)]}
    return join({**header, **{f"{prefix}{i}": entry for i in range(count)}}, metadata, tensors)


def linear(inputs: int, outputs: int, codec: str, payload: bytes, layers: int = 1) -> bytes:
    """Codes of `inputs` values, read by linear layers that have the same payload for weights."""
    weight = {"codec": codec, "shape": [outputs, inputs]}
    fields = {"inputs": [1], "shape": [outputs], "dtype": "f32", "weight": weight}
    nodes: list[dict[str, Any]] = [{"op": "quantize", "name": "q", "shape": [inputs], "scale": 0.5}]
    nodes += [{"op": "linear", "name": "fc", **fields}] * layers
    header: dict[str, Any] = {"__metadata__": {}}
    tensors = b""
    for name, dtype, shape, data in (  # floats first, so that they are aligned
        ("affine", "F32", [2, outputs], bytes(8 * outputs)),
        ("weight", "U8", [len(payload)], payload),
    ):
        for index in range(1, layers + 1):
            offsets = [len(tensors), len(tensors) + len(data)]
            header[f"{index}.{name}"] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            tensors += data
    return join(header, {"digest": "0" * 64, "input": [inputs], "nodes": nodes, "version": [1, 0]}, tensors)


def tebibyte_of_activations() -> bytes:
    side = 2**20
    nodes = [
        {"op": "quantize", "name": "q", "shape": [1, 1, 1], "scale": 0.5},
        {"op": "pad", "name": "grow", "shape": [1, side, side], "scale": 0.5, "after": [0, side - 1, side - 1]},
        {"op": "dequantize", "name": "output", "shape": [1, side, side], "dtype": "f32"},
    ]
    return join({"__metadata__": {}}, {"digest": "0" * 64, "input": [1, 1, 1], "nodes": nodes, "version": [1, 0]}, b"")


def deflated(text: bytes) -> bytes:
    """A compact file with this text for a graph."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = stream.compress(text) + stream.flush()
    header = {
        "__metadata__": {},
        "data": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
        "graph": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]},
    }
    return join(header, {"digest": "0" * 64, "required_features": ["compact"], "version": [1, 1]}, data)


# No spare bits, one symbol of length 1, and its code 472 times.
HUFFMAN = bytes.fromhex("008080ff40") + bytes(59)
EMPTY_CSR = b"\x01\x00" + bytes(4 * 17)

CASES: dict[str, tuple[bytes, str, str]] = {
    "65,537 tensors": (many_tensors(65_535, ""), "E_LIMIT", "header"),
    "3 MiB of empty tensors": (many_tensors(55_000, "x"), "E_UNREFERENCED", "header"),
    "huffman symbols beyond the stream": (linear(2000, 1, "huffman", HUFFMAN), "E_BOMB", "tensors['1.weight'].stream"),
    "bitmask of 8 GiB": (linear(2**29, 16, "bitmask", bytes(64)), "E_BOMB", "tensors"),
    "empty csr of 8 GiB": (linear(2**29, 16, "csr", EMPTY_CSR), "E_BOMB", "tensors"),
    "5 GiB in many layers": (linear(2**29, 2, "sparse-huffman", b"\0", layers=5), "E_BOMB", "tensors"),
    "8 GiB of input": (linear(2**31 - 1, 1, "sparse-huffman", b"\0"), "E_BOMB", "nodes[0].shape"),
    "1 TiB of activations": (tebibyte_of_activations(), "E_BOMB", "nodes[1].shape"),
    "a deflated text of 64 MiB": (deflated(bytes(2**26)), "E_BOMB", "tensors['graph'].stream"),
    "deflated lists": (deflated(b'{"input":[1],"nodes":[' + b"[]," * 21_000 + b"[]]}"), "E_HEADER", "nodes[0].node"),
    "deflated nodes": (
        deflated(b'{"input":[1],"nodes":[' + b",".join([b'{"op":"flatten","name":"x","shape":[1]}'] * 1_600) + b"]}"),
        "E_GRAPH_ATTR",
        "nodes[0].dtype",
    ),
    "header of 4 GiB": (struct.pack("<Q", 2**32) + SMALL[8:], "E_HEADER_LEN", "header length"),
    "header of 2^64 - 8": (struct.pack("<Q", 2**64 - 8) + SMALL[8:], "E_HEADER_LEN", "header length"),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("bombs")
    small = tmp_path_factory.mktemp("small") / "small.pqk"
    small.write_bytes(SMALL)
    for name, (data, _, _) in CASES.items():
        (folder / name).write_bytes(data)
    command = [sys.executable, "-c", MEASURE, str(folder), str(small)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    measurements: dict[str, list[Any]] = json.loads(result.stdout)
    return measurements


@pytest.mark.parametrize("name", CASES)
def test_bombs_are_refused_at_once(name: str, measured: dict[str, list[Any]]) -> None:
    _, code, field = CASES[name]
    got_code, got_field, expected, seconds, used = measured[name]
    assert (got_code, got_field) == (code, field)
    assert code != "E_BOMB" or "max_decoded_bytes" in expected or "stream" in field
    assert seconds < MAX_SECONDS
    assert used < MAX_BYTES


def test_no_memory_for_a_tensor_is_an_error_that_names_it(tmp_path: Path) -> None:
    """What the file declares is within the limits, but the machine has less: the process goes on."""
    paths = [tmp_path / "small.pqk", tmp_path / "large.pqk"]
    paths[0].write_bytes(SMALL)
    paths[1].write_bytes(linear(2**29, 2, "sparse-huffman", b"\0"))
    script = """
import resource, sys
from pqk_ext.runtime import format
small, large = sys.argv[1:]
format.read(small)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28,) * 2)
try:
    format.read(large)
except MemoryError as error:
    print(error)
print(len(format.read(small).nodes))
"""
    command = [sys.executable, "-c", script, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"tensors['1.weight']: no memory for its {2**30} weights", "4"]
