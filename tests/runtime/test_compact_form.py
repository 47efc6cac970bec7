"""The compact form: the same graph in fewer bytes, and every way in which its two tensors can be wrong."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from pqk_ext.runtime import compact_form, load
from pqk_ext.runtime import format as pqk_format
from pqk_ext.runtime.graph import Graph, Node, Value
from tests.runtime.files import GOLDEN, REMOVED, SMALL, join, refused, split

COMPACT = (GOLDEN / "v1.1/compact_half_affine.pqk").read_bytes()


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Metadata, graph and the bytes of all tensors of a compact file."""
    _, metadata, _ = split(data)
    tensors = safetensors.numpy.load(data)
    return metadata, json.loads(zlib.decompress(tensors["graph"].tobytes(), wbits=-15)), tensors["data"].tobytes()


def stream(text: str | bytes, level: int = 9) -> bytes:
    deflate = zlib.compressobj(level, zlib.DEFLATED, -15)
    return deflate.compress(text.encode() if isinstance(text, str) else text) + deflate.flush()


def build(metadata: dict[str, Any], data: bytes, graph: bytes, *, graph_first: bool = False, **more: bytes) -> bytes:
    """A signed file of these tensors, in this order."""
    contents = {"graph": graph, "data": data} if graph_first else {"data": data, "graph": graph}
    header: dict[str, Any] = {"__metadata__": {"pqk": ""}}
    end = 0
    for name, content in {**contents, **more}.items():
        header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [end, end + len(content)]}
        end += len(content)
    return join(header, metadata, b"".join([*contents.values(), *more.values()]))


def with_graph(change: Callable[[dict[str, Any]], None]) -> bytes:
    metadata, graph, data = parts(COMPACT)
    change(graph)
    return build(metadata, data, stream(json.dumps(graph)))


@pytest.mark.parametrize("builder", ["small", "all_ops", "float_ops", "half_affine", "sequence", "float_dilated"])
@pytest.mark.parametrize("codec", [None, *pqk_format.CODECS])
def test_both_forms_hold_the_same(golden_graphs: ModuleType, builder: str, codec: str | None) -> None:
    graph = getattr(golden_graphs, builder)()
    compact, plain = pqk_format.dumps(graph, codec=codec), pqk_format.dumps(graph, codec=codec, compact=False)
    assert pqk_format.dumps(pqk_format.loads(compact), codec=codec, compact=False) == plain
    assert pqk_format.dumps(pqk_format.loads(plain), codec=codec) == compact
    assert "compact" in split(compact)[1]["required_features"]
    assert len(compact) < len(plain) or builder == "float_dilated"  # a single node without a tensor


def test_the_engine_gives_the_same_from_both(golden_graphs: ModuleType, tmp_path: Any) -> None:
    graph = golden_graphs.all_ops()
    outputs = []
    for compact in (True, False):
        path = tmp_path / f"{compact}.pqk"
        pqk_format.write(graph, path, compact=compact)
        model = load(path)
        x = np.random.default_rng(0).standard_normal((3, *model.input_shape)).astype(np.float32)
        outputs.append(np.asarray(model(x)))
    np.testing.assert_array_equal(*outputs)


def test_sizes_add_up(golden_graphs: ModuleType, tmp_path: Any) -> None:
    graph = golden_graphs.all_ops()
    infos = []
    for compact in (True, False):
        pqk_format.write(graph, tmp_path / "net.pqk", compact=compact)
        infos.append(pqk_format.inspect(tmp_path / "net.pqk"))
        assert sum(infos[-1].parts.values()) == infos[-1].total_bytes == (tmp_path / "net.pqk").stat().st_size
        assert infos[-1].parts["file header"] == infos[-1].header_bytes
    assert infos[0].tensors == infos[1].tensors
    assert infos[0].header_bytes < infos[1].header_bytes / 2


def test_tensors_are_aligned(golden_graphs: ModuleType) -> None:
    metadata, graph, data = parts(COMPACT)
    odd = next(text for spaces in range(64) if len(text := stream(json.dumps(graph) + " " * spaces)) % 2)
    error = refused(build(metadata, data, odd, graph_first=True))
    assert (error.code, error.field) == ("E_OFFSET", "tensors['data']")
    even = next(text for spaces in range(64) if not len(text := stream(json.dumps(graph) + " " * spaces)) % 4)
    pqk_format.loads(build(metadata, data, even, graph_first=True))


METADATA, TEXT, DATA = parts(COMPACT)
GRAPH = stream(json.dumps(TEXT))
ANY = json.dumps(TEXT)

BAD = {
    "no graph": (join({"__metadata__": {"pqk": ""}}, METADATA, b""), "E_GRAPH_REF", "tensors['graph']"),
    "another tensor": (build(METADATA, DATA, GRAPH, more=b"x"), "E_UNREFERENCED", "tensors['more']"),
    "data too short": (build(METADATA, DATA[:-1], GRAPH), "E_SIZE_MISMATCH", "tensors['data']"),
    "data too long": (build(METADATA, DATA + b"x", GRAPH), "E_SIZE_MISMATCH", "tensors['data']"),
    "not deflate": (build(METADATA, DATA, b"\xff" * 50), "E_DEFLATE", "tensors['graph'].stream"),
    "with zlib's header": (build(METADATA, DATA, zlib.compress(ANY.encode())), "E_DEFLATE", "tensors['graph'].stream"),
    "empty stream": (build(METADATA, DATA, b""), "E_TRUNCATED", "tensors['graph'].stream"),
    "cut stream": (build(METADATA, DATA, GRAPH[:-1]), "E_TRUNCATED", "tensors['graph'].stream"),
    "longer stream": (build(METADATA, DATA, GRAPH + b"\0"), "E_SIZE_MISMATCH", "tensors['graph'].stream"),
    "bomb": (build(METADATA, DATA, stream(" " * 2**20 + ANY)), "E_BOMB", "tensors['graph'].stream"),
    "endless bomb": (build(METADATA, DATA, stream(bytes(2**26))), "E_BOMB", "tensors['graph'].stream"),
    "no object": (build(METADATA, DATA, stream("[]")), "E_HEADER", "graph"),
    "no JSON": (build(METADATA, DATA, stream("{")), "E_HEADER", "graph"),
    "no text": (build(METADATA, DATA, stream("")), "E_HEADER", "graph"),
    "not ASCII": (build(METADATA, DATA, stream(b'{"\xe9":1}')), "E_HEADER", "graph"),
    "a key twice": (build(METADATA, DATA, stream('{"nodes":[],' + ANY[1:])), "E_DUPLICATE", "graph"),
    "another key": (with_graph(lambda graph: graph.update(version=[1, 1])), "E_HEADER", "graph"),
    "a key for later": (with_graph(lambda graph: graph.update({"ext.a": 1})), "E_HEADER", "graph"),
    "no nodes": (with_graph(lambda graph: graph.pop("nodes")), "E_HEADER", "graph"),
    "nodes twice": (build({**METADATA, **TEXT}, DATA, GRAPH), "E_HEADER", "metadata"),
    "feature missing": (build({**METADATA, "required_features": ["half-affine"]}, DATA, GRAPH), "E_HEADER", "metadata"),
    "feature of a plain file": (
        build({**METADATA, **TEXT, "required_features": ["half-affine"]}, DATA, GRAPH),
        "E_HEADER",
        "nodes[1].weight",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name: str) -> None:
    data, code, field = BAD[name]
    error = refused(data)
    assert (error.code, error.field) == (code, field)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (REMOVED, "E_HEADER"),
        (None, "E_SIZE_MISMATCH"),
        (True, "E_SIZE_MISMATCH"),
        (7.0, "E_SIZE_MISMATCH"),
        ("7", "E_SIZE_MISMATCH"),
        (-1, "E_SIZE_MISMATCH"),
        (2**40 + 1, "E_SIZE_MISMATCH"),
        (2**40, "E_SIZE_MISMATCH"),
        (0, "E_SIZE_MISMATCH"),
    ],
)
def test_bytes_of_a_payload(value: object, code: str) -> None:
    def change(graph: dict[str, Any]) -> None:
        record = next(node["weight"] for node in graph["nodes"] if "weight" in node)
        if value is REMOVED:
            del record["bytes"]
        else:
            record["bytes"] = value

    error = refused(with_graph(change))
    assert error.code == code


def test_a_raw_weight_has_no_bytes_of_its_own(golden_graphs: ModuleType) -> None:
    metadata, graph, data = parts(pqk_format.dumps(golden_graphs.small(), codec="raw"))
    record = next(node["weight"] for node in graph["nodes"] if "weight" in node)
    record["bytes"] = int(np.prod(record["shape"]))
    error = refused(build(metadata, data, stream(json.dumps(graph))))
    assert (error.code, error.got) == ("E_HEADER", "'bytes'")


@pytest.mark.parametrize("name", ["data", "graph"])
@pytest.mark.parametrize("change", [{"dtype": "I8"}, {"shape": []}], ids=["dtype", "shape"])
def test_tensors_of_another_form(name: str, change: dict[str, Any]) -> None:
    header, metadata, tensors = split(COMPACT)
    if "shape" in change:
        change = {"shape": [1, *header[name]["shape"]]}
    error = refused(join({**header, name: {**header[name], **change}}, metadata, tensors))
    assert (error.code, error.field) == ("E_ENUM", f"tensors[{name!r}]")


def test_the_names_mean_nothing_in_a_plain_file() -> None:
    header, metadata, tensors = split(SMALL)
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [len(tensors), len(tensors)]}
    error = refused(join({**header, "graph": entry}, metadata, tensors))
    assert (error.code, error.field) == ("E_UNREFERENCED", "tensors['graph']")


def test_every_cut_and_every_changed_byte_is_found() -> None:
    for size in range(0, len(COMPACT), 7):
        refused(COMPACT[:size])
    for at in range(0, len(COMPACT), 5):
        refused(COMPACT[:at] + bytes([COMPACT[at] ^ 1]) + COMPACT[at + 1 :])


def test_a_graph_that_would_look_like_a_bomb_is_written_plain() -> None:
    value = Value((1,), "u8", 1.0, 0)
    nodes = [Node("quantize", "x", (0,), value, {"quant_min": 0, "quant_max": 255})]
    nodes += [
        Node("lookup", "x", (index,), value, {}, {"table": np.zeros(256, np.uint8)}) for index in range(1, 12_000)
    ]
    nodes.append(Node("dequantize", "x", (len(nodes),), Value((1,), "f32"), {}))
    graph = Graph(Value((1,), "f32"), tuple(nodes))
    data = pqk_format.dumps(graph)
    assert "required_features" not in split(data)[1]
    assert len(pqk_format.loads(data).nodes) == len(nodes)


def test_limits_of_a_text() -> None:
    assert compact_form.max_text_size(0) == 65_536
    assert compact_form.max_text_size(1000) == 65_536 + 64_000
    assert compact_form.max_text_size(2**30) == 4 * 2**20
