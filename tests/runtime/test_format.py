""".pqk files: round trips, canonical bytes, golden files, atomic writing, what reading touches."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from pqk_ext.errors import FormatError
from pqk_ext.runtime import format as pqk_format
from pqk_ext.runtime.graph import FLOAT_OPS, OPS, Graph, Node, Value

GOLDEN = Path(__file__).parent.parent / "golden"
golden_files = pytest.mark.parametrize("path", sorted(GOLDEN.glob("v*/*.pqk")), ids=lambda path: path.stem)


def assert_same_graph(actual: Graph, expected: Graph) -> None:
    assert actual.input == expected.input
    assert len(actual.nodes) == len(expected.nodes)
    for got, want in zip(actual.nodes, expected.nodes, strict=True):
        assert dataclasses.replace(got, tensors={}) == dataclasses.replace(want, tensors={})
        assert set(got.tensors) == set(want.tensors)
        for name, tensor in want.tensors.items():
            assert got.tensors[name].dtype == tensor.dtype
            assert got.tensors[name].shape == tensor.shape
            assert got.tensors[name].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("codec", [None, *pqk_format.CODECS])
@pytest.mark.parametrize("builder", ["small", "four_bits", "all_ops", "float_ops", "sequence", "dilated"])
def test_round_trip(golden_graphs: ModuleType, tmp_path: Path, builder: str, codec: str | None) -> None:
    graph = getattr(golden_graphs, builder)()
    path = tmp_path / "net.pqk"
    pqk_format.write(graph, path, codec=codec)
    assert_same_graph(pqk_format.read(path), graph)
    assert path.read_bytes() == pqk_format.dumps(getattr(golden_graphs, builder)(), codec=codec)
    if codec is not None:
        assert {weight.codec for weight in pqk_format.inspect(path).weights} == {codec}
    assert os.listdir(tmp_path) == ["net.pqk"]


def test_golden_graphs_use_every_operator(golden_graphs: ModuleType) -> None:
    used = {node.op for make in (golden_graphs.all_ops, golden_graphs.dilated) for node in make().nodes}
    assert used == set(OPS) - FLOAT_OPS
    assert {node.op for node in golden_graphs.float_ops().nodes} > FLOAT_OPS


def test_weights_get_the_smallest_codec_or_a_faster_one(golden_graphs: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "net.pqk"

    def sizes(graph: Graph, **choice: Any) -> list[int]:
        pqk_format.write(graph, path, **choice)
        return [weight.payload_bytes for weight in pqk_format.inspect(path).weights]

    for density in (0.02, 0.3, 1.0):
        graph = golden_graphs.small(density)
        by_codec = zip(*(sizes(graph, codec=codec) for codec in pqk_format.CODECS), strict=True)
        smallest = [min(of_weight) for of_weight in by_codec]
        assert sizes(graph, speed_tolerance=0.0) == smallest
        chosen = sizes(graph, speed_tolerance=0.1)
        assert all(low <= size <= 1.1 * low for low, size in zip(smallest, chosen, strict=True))
    with pytest.raises(ValueError, match="speed_tolerance must be at least 0, got -1"):
        pqk_format.dumps(graph, speed_tolerance=-1.0)


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 9),
    features=st.integers(1, 40),
    spread=st.sampled_from([0.1, 1.0, 20.0, 200.0]),
    scale=st.floats(2.0**-126, 2.0**64, width=32),
    zero_point=st.integers(0, 255),
    seed=st.integers(0, 2**32 - 1),
    codec=st.sampled_from([None, *pqk_format.CODECS]),
)
def test_round_trip_of_random_layers(
    channels: int, features: int, spread: float, scale: float, zero_point: int, seed: int, codec: str | None
) -> None:
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "weight": np.clip(rng.normal(0, spread, (channels, features)), -127, 127).astype(np.int8),
        "multiplier": rng.normal(0, scale, channels).astype(np.float32).clip(-1e19, 1e19),
        "bias": rng.normal(0, 1e3, channels).astype(np.float32),
    }
    nodes = (
        Node("quantize", "q", (0,), Value((features,), "u8", scale, zero_point), {"quant_min": 0, "quant_max": 255}),
        Node("linear", "fc.0_a", (1,), Value((channels,), "f32"), {}, tensors),
    )
    graph = Graph(Value((features,), "f32"), nodes)
    assert_same_graph(pqk_format.loads(pqk_format.dumps(graph, codec=codec)), graph)


# ----------------------------------------------------------------------------------------------- golden files


@golden_files
def test_golden_files_load_for_ever(golden_graphs: ModuleType, path: Path) -> None:
    assert path.stat().st_size <= 8192
    expected = json.loads(path.with_suffix(".json").read_text())
    assert golden_graphs.tensor_digests(pqk_format.read(path)) == expected


@golden_files
def test_safetensors_reads_the_file(path: Path) -> None:
    tensors = safetensors.numpy.load_file(path)
    info = pqk_format.inspect(path)
    if path.stem.startswith("compact"):
        assert tensors["data"].nbytes == sum(tensor.payload_bytes for tensor in info.tensors)
        return
    assert {tensor.name: tensor.payload_bytes for tensor in info.tensors} == {
        name: tensor.nbytes for name, tensor in tensors.items()
    }


@golden_files
def test_inspect_accounts_for_every_byte(path: Path) -> None:
    info = pqk_format.inspect(path)
    assert info.total_bytes == path.stat().st_size
    assert info.header_bytes + sum(tensor.payload_bytes for tensor in info.tensors) == info.total_bytes
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    graph = pqk_format.read(path)
    for weight in info.weights:
        tensors = graph.nodes[int(weight.name.split(".")[0])].tensors
        values = tensors["weight"]
        assert (weight.count, weight.shape) == (values.size, values.shape)
        assert weight.nonzeros == np.count_nonzero(values)
        assert weight.sparsity == pytest.approx(1 - weight.nonzeros / weight.count)
        assert weight.bits_per_value >= (weight.entropy_bits if weight.codec == "huffman" else 0)
        limit = 2 ** (weight.bits - 1)
        assert values.max() < limit
        # Codes of a codebook need not be symmetric.
        assert values.min() >= -limit + ("codebook" not in tensors)


def test_keyword_spotting_network_is_small(golden_graphs: ModuleType) -> None:
    """DS-CNN of MLPerf Tiny: everything but the weights takes at most 6 KB, the weights near their entropy."""
    rng = np.random.default_rng(0)
    make, value = golden_graphs, golden_graphs.value
    nodes = [Node("quantize", "quantize", (0,), value(1, 49, 10, zero_point=83), dict(make.CODES))]

    def conv(name: str, *shape: int, **attributes: object) -> None:
        tensors = {"weight": make.weight(rng, *shape, spread=20, density=0.2), **make.affine(rng, 64)}
        output = value(64, 25, 5, scale=rng.random())
        nodes.append(Node("conv2d", name, (len(nodes),), output, {**make.CONV, **attributes}, tensors))

    conv("features.0.conv", 64, 1, 10, 4, stride=[2, 2], padding=[4, 1, 5, 1])
    for i in range(1, 5):
        conv(f"features.{i}.depthwise.conv", 64, 1, 3, 3, padding=[1, 1, 1, 1], groups=64)
        conv(f"features.{i}.pointwise.conv", 64, 64, 1, 1)
    mean = {"kernel": [25, 5], **make.WINDOW, "count_include_pad": 1, "multiplier": 1.5, "bias": 0.0, **make.CODES}
    nodes.append(Node("avg_pool2d", "pool", (10,), value(64, 1, 1), mean))
    nodes.append(Node("flatten", "flatten", (11,), value(64)))
    linear = {"weight": make.weight(rng, 12, 64, spread=20), **make.affine(rng, 12)}
    nodes.append(Node("linear", "classifier", (12,), Value((12,), "f32"), {}, linear))
    data = pqk_format.dumps(Graph(Value((1, 49, 10), "f32"), tuple(nodes)))
    header = pqk_format.loads(data)
    assert_same_graph(header, Graph(Value((1, 49, 10), "f32"), tuple(nodes)))
    weights = [node.tensors["weight"] for node in nodes if "weight" in node.tensors]
    assert sum(weight.size for weight in weights) == 22_016
    coded = safetensors.numpy.load(data)["data"].nbytes - sum(8 * len(weight) for weight in weights)
    assert len(data) - coded <= 6 * 1024
    assert len(data) <= 12 * 1024


# ---------------------------------------------------------------------------------------------------- writing


def test_failed_writing_leaves_nothing(golden_graphs: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "net.pqk"
    path.write_bytes(b"the old file")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="cannot write: No space left on device") as caught:
                pqk_format.write(golden_graphs.small(), path)
            assert caught.value.filename == str(path)
        assert path.read_bytes() == b"the old file"
        assert os.listdir(tmp_path) == ["net.pqk"]


def test_unwritable_targets_are_named(golden_graphs: ModuleType, tmp_path: Path) -> None:
    graph = golden_graphs.small()
    with pytest.raises(FileNotFoundError, match="cannot write"):
        pqk_format.write(graph, tmp_path / "absent" / "net.pqk")
    with pytest.raises(OSError, match="cannot replace what is not a regular file"):
        pqk_format.write(graph, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="cannot replace what is not a regular file"):
        pqk_format.write(graph, tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(ValueError, match=r"codec must be None or one of raw, .*, got 'zip'"):
        pqk_format.write(graph, tmp_path / "net.pqk", codec="zip")
    assert os.listdir(tmp_path) == ["pipe"]


def test_writing_over_a_file_that_was_read(golden_graphs: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "net.pqk"
    pqk_format.write(golden_graphs.small(), path)
    loaded = pqk_format.read(path)
    pqk_format.write(golden_graphs.all_ops(), path)
    assert_same_graph(loaded, golden_graphs.small())
    assert_same_graph(pqk_format.read(path), golden_graphs.all_ops())


def test_a_graph_that_breaks_a_rule_is_not_written(golden_graphs: ModuleType, tmp_path: Path) -> None:
    graph = golden_graphs.small()
    broken = dataclasses.replace(graph.nodes[1], value=Value((8, 3, 4), "u8", 0.5, 0))
    with pytest.raises(FormatError, match=r"nodes\[1\].shape: expected \(8, 3, 3\), as inferred, got \(8, 3, 4\)"):
        pqk_format.write(Graph(graph.input, (graph.nodes[0], broken, *graph.nodes[2:])), tmp_path / "net.pqk")
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------------------- reading


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    signal.alarm(5)  # a blocking FIFO would hang
    try:
        with pytest.raises(OSError, match="not a regular file"):
            pqk_format.read(tmp_path / "pipe")
        with pytest.raises(OSError, match="not a regular file"):
            pqk_format.read("/dev/zero")
        with pytest.raises(IsADirectoryError):
            pqk_format.read(tmp_path)
        for name in ("absent", "dangling"):
            with pytest.raises(FileNotFoundError):
                pqk_format.read(tmp_path / name)
    finally:
        signal.alarm(0)


def test_a_digest_from_elsewhere() -> None:
    path = GOLDEN / "v1.0" / "huffman.pqk"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    pqk_format.read(path, sha256=digest.upper())
    with pytest.raises(FormatError) as caught:
        pqk_format.read(path, sha256="0" * 64)
    assert (caught.value.code, caught.value.field) == ("E_DIGEST", "sha256")
    assert (caught.value.expected, caught.value.got) == ("0" * 64, digest)


def test_reading_opens_one_file_and_runs_nothing() -> None:
    """With torch blocked, in a fresh process: one open, no import, no code."""
    script = textwrap.dedent("""
        import sys
        sys.modules["torch"] = None
        from pqk_ext.errors import FormatError
        from pqk_ext.runtime import format
        good, bad = sys.argv[1:]
        events = []
        def read():
            format.read(good)
            try:
                format.read(bad)
            except FormatError:
                pass
        read()
        watched = ("open", "import", "exec", "compile", "socket.", "subprocess.", "os.", "ctypes.", "pickle.")
        sys.addaudithook(lambda name, args: events.append((name, str(args[:1]))) if name.startswith(watched) else None)
        read()
        print(events)
    """)
    good = GOLDEN / "v1.0" / "all_ops.pqk"
    bad = GOLDEN / "make_golden.py"
    output = subprocess.run(
        [sys.executable, "-c", script, good, bad], capture_output=True, text=True, check=True, env=child_environment()
    ).stdout
    assert output == f"{[('open', str((str(good),))), ('open', str((str(bad),)))]}\n"


def child_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_a_file_cut_while_it_is_read(monkeypatch: Any) -> None:
    path = GOLDEN / "v1.0" / "huffman.pqk"
    preadv = os.preadv

    def cut(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(descriptor, [buffers[0][:100]], offset) if offset < 1000 else 0

    monkeypatch.setattr(os, "preadv", cut)
    with pytest.raises(FormatError) as caught:
        pqk_format.read(path)
    assert (caught.value.code, caught.value.field) == ("E_TRUNCATED", "file")
    assert caught.value.expected == f"{path.stat().st_size} bytes"


def test_without_memory_the_tensor_is_named(monkeypatch: Any) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pqk_ext._core.decode_weight", fail)
    with pytest.raises(MemoryError, match=r"tensors\['1.weight'\]: no memory for its 72 weights"):
        pqk_format.read(GOLDEN / "v1.0" / "huffman.pqk")
