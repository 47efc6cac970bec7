"""Every rule of the file format: the exact code and field for each way to break it, under a right digest."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pqk_ext.errors import FormatError
from pqk_ext.runtime import container
from pqk_ext.runtime import format as pqk_format

GOLDEN = Path(__file__).parent.parent / "golden" / "v1.0"
SMALL = (GOLDEN / "huffman.pqk").read_bytes()
ALL_OPS = (GOLDEN / "all_ops.pqk").read_bytes()
REMOVED = object()


def sign(data: bytes) -> bytes:
    """The file with the digest made right."""
    begin, end = container.DIGEST_OFFSET, container.DIGEST_OFFSET + 64
    if len(data) < end:
        return data
    return data[:begin] + container._digest(data).encode() + data[end:]


def split(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Container header, metadata, tensor bytes."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["pqk"]), data[8 + size :]


def join(header: dict[str, Any], metadata: dict[str, Any] | str, tensors: bytes) -> bytes:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata, separators=(",", ":"))
    header = {**header, "__metadata__": {**header["__metadata__"], "pqk": text}}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return sign(struct.pack("<Q", len(raw)) + raw + tensors)


def refused(data: bytes, **options: Any) -> FormatError:
    with pytest.raises(FormatError) as caught:
        pqk_format.loads(data, **options)
    assert caught.value.expected
    assert caught.value.got
    return caught.value


def test_joining_changes_nothing() -> None:
    for data in (SMALL, ALL_OPS):
        assert join(*split(data)) == data


# ------------------------------------------------------------------------------------------------- the prefix


@pytest.mark.parametrize("size", range(64))
def test_files_too_short(size: int) -> None:
    error = refused(SMALL[:size])
    assert (error.code, error.field, error.got) == ("E_TRUNCATED", "prefix", str(size))


def other_safetensors() -> bytes:
    import safetensors.numpy

    return safetensors.numpy.save({"a": np.zeros(40, np.float32)})


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PK\x03\x04" + bytes(100), "zip archive, as torch.save"),
        (b"\x80\x02}q\x00(X\x05" + bytes(100), "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64, "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>" + bytes(100), "HTML"),
        (b"<html><head>" + bytes(100), "HTML"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (other_safetensors(), "safetensors file without pqk metadata"),
        (bytes(100), "something else"),
    ],
)
def test_other_files_are_recognised(data: bytes, what: str) -> None:
    error = refused(data)
    assert (error.code, error.field) == ("E_MAGIC", "prefix")
    assert what in error.got


@pytest.mark.parametrize("length", [0, 8, 2**22 + 8, len(SMALL), 2**63, 2**64 - 1, 2**64 - 8, 801])
def test_header_length(length: int) -> None:
    started = time.perf_counter()
    error = refused(struct.pack("<Q", length) + SMALL[8:])
    assert (error.code, error.field) == ("E_HEADER_LEN", "header length")
    assert time.perf_counter() - started < 0.05


@pytest.mark.parametrize(("data", "got"), [(SMALL[:-1], len(SMALL) - 1), (SMALL + b"\0", len(SMALL) + 1)])
def test_file_length(data: bytes, got: int) -> None:
    error = refused(sign(data))
    assert (error.code, error.field, error.got) == ("E_FILE_LEN", "file", str(got))
    assert str(len(SMALL)) in error.expected


def test_one_flipped_bit_of_the_weights() -> None:
    error = refused(SMALL[:-1] + bytes([SMALL[-1] ^ 1]))
    assert (error.code, error.field) == ("E_DIGEST", "digest")
    assert error.got == SMALL[container.DIGEST_OFFSET :][:64].decode()


# ---------------------------------------------------------------------------------------- the container header


def change_header(change: Callable[[dict[str, Any]], object]) -> bytes:
    header, metadata, tensors = split(SMALL)
    change(header)
    return join(header, metadata, tensors)


def change_entry(**fields: object) -> bytes:
    return change_header(lambda header: header["1.weight"].update(fields))


def rename(new: str) -> bytes:
    return change_header(lambda header: header.update({new: header.pop("3.weight")}))


HEADER_CASES: dict[str, tuple[bytes, str, str]] = {
    "dtype": (change_entry(dtype="F64"), "E_ENUM", "header.tensors['1.weight'].dtype"),
    "dtype number": (change_entry(dtype=3), "E_ENUM", "header.tensors['1.weight'].dtype"),
    "shape -1": (change_entry(shape=[-1]), "E_SHAPE", "header.tensors['1.weight'].shape[0]"),
    "shape 1.5": (change_entry(shape=[1.5]), "E_SHAPE", "header.tensors['1.weight'].shape[0]"),
    "shape text": (change_entry(shape=["3"]), "E_SHAPE", "header.tensors['1.weight'].shape[0]"),
    "shape true": (change_entry(shape=[True]), "E_SHAPE", "header.tensors['1.weight'].shape[0]"),
    "shape null": (change_entry(shape=None), "E_SHAPE", "header.tensors['1.weight'].shape"),
    "shape rank 9": (change_entry(shape=[1] * 9), "E_SHAPE", "header.tensors['1.weight'].shape"),
    "shape 2^41": (change_entry(shape=[2**41]), "E_SHAPE", "header.tensors['1.weight'].shape[0]"),
    "shape overflow": (change_entry(shape=[2**40, 2**40]), "E_SHAPE_OVERFLOW", "header.tensors['1.weight'].shape"),
    "size": (change_entry(shape=[3]), "E_SIZE_MISMATCH", "header.tensors['1.weight'].data_offsets"),
    "offset text": (change_entry(data_offsets=["0", 5]), "E_OFFSET", "header.tensors['1.weight'].data_offsets"),
    "offset negative": (change_entry(data_offsets=[-1, 5]), "E_OFFSET", "header.tensors['1.weight'].data_offsets"),
    "offset backwards": (change_entry(data_offsets=[9, 5]), "E_OFFSET", "header.tensors['1.weight'].data_offsets"),
    "offset one": (change_entry(data_offsets=[9]), "E_OFFSET", "header.tensors['1.weight'].data_offsets"),
    "extra key": (change_entry(note="x"), "E_HEADER", "header.tensors['1.weight']"),
    "entry no object": (
        change_header(lambda header: header.update({"1.weight": 5})),
        "E_HEADER",
        "header.tensors['1.weight']",
    ),
    "metadata key": (
        change_header(lambda header: header["__metadata__"].update(more="x")),
        "E_HEADER",
        "header.__metadata__",
    ),
    "name empty": (rename(""), "E_NAME", "header.tensors"),
    "name of 300": (rename("x" * 300), "E_NAME", "header.tensors"),
    "name with newline": (rename("a\nb"), "E_NAME", "header.tensors"),
    "name with escape codes": (rename("\x1b[31m"), "E_NAME", "header.tensors"),
    "name with a path": (rename("../x"), "E_NAME", "header.tensors"),
    "name of an attribute": (rename("__class__"), "E_GRAPH_REF", "tensors['3.weight']"),
    "name of no node": (rename("9.weight"), "E_GRAPH_REF", "tensors['3.weight']"),
}


@pytest.mark.parametrize("name", HEADER_CASES)
def test_container_header(name: str) -> None:
    data, code, field = HEADER_CASES[name]
    error = refused(data)
    assert (error.code, error.field) == (code, field)
    assert "\x1b" not in str(error)
    assert "\n" not in str(error)


def test_tensors_overlap_or_leave_holes() -> None:
    header, metadata, tensors = split(SMALL)
    names = [name for name in header if name != "__metadata__"]
    for shift in (-8, 8, 2**40):
        begin, end = header[names[-1]]["data_offsets"]
        moved = {**header, names[-1]: {**header[names[-1]], "data_offsets": [begin + shift, end + shift]}}
        error = refused(join(moved, metadata, tensors))
        assert (error.code, error.field) == ("E_OFFSET", f"header.tensors['{names[-1]}'].data_offsets")
        assert repr(names[-2]) in error.expected
    aliased = {**header, "9.table": header[names[-1]]}
    assert refused(join(aliased, metadata, tensors)).code == "E_OFFSET"


def test_unreferenced_tensor() -> None:
    header, metadata, tensors = split(SMALL)
    header["3.table"] = {"dtype": "U8", "shape": [5], "data_offsets": [len(tensors), len(tensors) + 5]}
    error = refused(join(header, metadata, tensors + b"01234"))
    assert (error.code, error.field) == ("E_UNREFERENCED", "tensors['3.table']")


def replace_in_header(old: bytes, new: bytes) -> bytes:
    size = int.from_bytes(SMALL[:8], "little")
    raw = SMALL[8 : 8 + size].rstrip(b" ").replace(old, new)
    raw += b" " * (-len(raw) % 8)
    return sign(struct.pack("<Q", len(raw)) + raw + SMALL[8 + size :])


@pytest.mark.parametrize(
    ("old", "new", "code", "field"),
    [
        (b'"3.weight"', b'"1.weight"', "E_DUPLICATE", "header"),
        (b'"3.weight"', b'"3.we\\u0069ght","x"', "E_HEADER", "header"),
        (b'"3.weight"', b'"3.w\xc3\xa9ght"', "E_HEADER", "header"),
        (b'"3.weight"', b'"3.w\xffght"', "E_HEADER", "header"),
        (b'"dtype":"U8"', b'"dtype":NaN', "E_HEADER", "header"),
        (b'"dtype":"U8"', b'"dtype":-Infinity', "E_HEADER", "header"),
        (b'"dtype":"U8"', b'"dtype":1e999', "E_HEADER", "header"),
        (b'"dtype":"U8"', b'"dtype":' + b"9" * 5000, "E_HEADER", "header"),
        (b'"dtype":"U8"', b'"dtype":9223372036854775808', "E_HEADER", "header"),
        (b'"dtype":"U8"', b'"dtype":' + b"[" * 100_000 + b"]" * 100_000, "E_HEADER", "header"),
        (b'"dtype":"U8"', b'"dtype":"U8","dtype":"U8"', "E_DUPLICATE", "header"),
        (b'"dtype":"U8"', b'"dtype":', "E_HEADER", "header"),
    ],
)
def test_header_json(old: bytes, new: bytes, code: str, field: str) -> None:
    error = refused(replace_in_header(old, new))
    assert (error.code, error.field) == (code, field)


def test_text_after_the_header_and_padding() -> None:
    size = int.from_bytes(SMALL[:8], "little")
    for extra, code in ((b"{}      ", "E_HEADER"), (b" " * 8, "E_PADDING")):
        raw = SMALL[8 : 8 + size].rstrip(b" ") + extra
        raw += b" " * (-len(raw) % 8)
        assert refused(sign(struct.pack("<Q", len(raw)) + raw + SMALL[8 + size :])).code == code


# ------------------------------------------------------------------------------------------------ the metadata


def set_metadata(path: list[str | int], new: object, base: bytes = SMALL) -> bytes:
    header, metadata, tensors = split(base)
    target: Any = metadata
    for key in path[:-1]:
        target = target[key]
    if new is REMOVED:
        del target[path[-1]]
    else:
        target[path[-1]] = new
    return join(header, metadata, tensors)


BIG = 2**31
# nodes of SMALL: 0 quantize, 1 conv2d (8, 1, 3, 3) stride 2 padding 1, 2 flatten, 3 linear (3, 72) to float32.
METADATA_CASES: dict[str, tuple[list[str | int], object, str, str]] = {
    "major": (["version"], [2, 0], "E_VERSION", "version"),
    "version text": (["version"], "1.0", "E_VERSION", "version"),
    "version bool": (["version"], [True, False], "E_VERSION", "version"),
    "version none": (["version"], REMOVED, "E_VERSION", "version"),
    "feature": (["required_features"], ["ans"], "E_FEATURE", "required_features"),
    "features no list": (["required_features"], "ans", "E_HEADER", "required_features"),
    "unknown key": (["weights"], 1, "E_HEADER", "metadata"),
    "no nodes": (["nodes"], [], "E_LIMIT", "nodes"),
    "nodes number": (["nodes"], 3, "E_HEADER", "nodes"),
    "node number": (["nodes", 1], 3, "E_HEADER", "nodes[1].node"),
    "input text": (["input"], "x", "E_SHAPE", "input"),
    "input rank 2": (["input"], [6, 5], "E_SHAPE", "input"),
    "input 0": (["input"], [1, 0, 5], "E_SHAPE", "input[1]"),
    "input overflow": (["input"], [2**20, 2**20, 2**20], "E_SHAPE_OVERFLOW", "input"),
    "other input": (["input"], [1, 6, 6], "E_GRAPH_SHAPE", "nodes[0].shape"),
    "op": (["nodes", 1, "op"], "eval", "E_ENUM", "nodes[1].op"),
    "op number": (["nodes", 1, "op"], 7, "E_ENUM", "nodes[1].op"),
    "op with fewer tensors": (["nodes", 1, "op"], "flatten", "E_HEADER", "nodes[1].node"),
    "name": (["nodes", 1, "name"], "a b", "E_NAME", "nodes[1].name"),
    "name number": (["nodes", 1, "name"], 4, "E_NAME", "nodes[1].name"),
    "name missing": (["nodes", 1, "name"], REMOVED, "E_HEADER", "nodes[1].node"),
    "output of codes": (["nodes", 3, "dtype"], REMOVED, "E_GRAPH_ATTR", "nodes[3].dtype"),
    "unknown attribute": (["nodes", 1, "stridee"], [1, 1], "E_HEADER", "nodes[1].node"),
    "later value": (["nodes", 1, "inputs"], [2], "E_GRAPH_REF", "nodes[1].inputs[0]"),
    "negative value": (["nodes", 1, "inputs"], [-1], "E_GRAPH_REF", "nodes[1].inputs[0]"),
    "value past all": (["nodes", 1, "inputs"], [99], "E_GRAPH_REF", "nodes[1].inputs[0]"),
    "value true": (["nodes", 1, "inputs"], [True], "E_GRAPH_REF", "nodes[1].inputs[0]"),
    "no inputs": (["nodes", 1, "inputs"], [], "E_GRAPH_REF", "nodes[1].inputs"),
    "three inputs": (["nodes", 1, "inputs"], [1, 1, 1], "E_GRAPH_REF", "nodes[1].inputs"),
    "inputs text": (["nodes", 1, "inputs"], "1", "E_GRAPH_REF", "nodes[1].inputs"),
    "float value into conv2d": (["nodes", 1, "inputs"], [0], "E_GRAPH_REF", "nodes[1].inputs[0]"),
    "stride 0": (["nodes", 1, "stride"], [0, 1], "E_GRAPH_ATTR", "nodes[1].stride"),
    "stride float": (["nodes", 1, "stride"], [1.0, 1], "E_GRAPH_ATTR", "nodes[1].stride"),
    "stride of three": (["nodes", 1, "stride"], [1, 1, 1], "E_GRAPH_ATTR", "nodes[1].stride"),
    "stride 2^31": (["nodes", 1, "stride"], [BIG, 1], "E_GRAPH_ATTR", "nodes[1].stride"),
    "dilation 0": (["nodes", 1, "dilation"], [1, 0], "E_GRAPH_ATTR", "nodes[1].dilation"),
    "groups 0": (["nodes", 1, "groups"], 0, "E_GRAPH_ATTR", "nodes[1].groups"),
    "groups not dividing": (["nodes", 1, "groups"], 3, "E_GRAPH_ATTR", "nodes[1].groups"),
    "padding negative": (["nodes", 1, "padding"], [0, -1, 0, 0], "E_GRAPH_ATTR", "nodes[1].padding"),
    "residual without input": (
        ["nodes", 1, "residual_multiplier"],
        0.5,
        "E_GRAPH_ATTR",
        "nodes[1].residual_multiplier",
    ),
    "quant_min of float": (["nodes", 3, "quant_min"], 0, "E_GRAPH_ATTR", "nodes[3].quant_min"),
    "kernel beyond input": (["nodes", 1, "dilation"], [9, 9], "E_GRAPH_SHAPE", "nodes[1].kernel"),
    "other padding": (["nodes", 1, "padding"], [3, 3, 3, 3], "E_GRAPH_SHAPE", "nodes[1].shape"),
    "other shape": (["nodes", 1, "shape"], [8, 3, 4], "E_GRAPH_SHAPE", "nodes[1].shape"),
    "shape -1": (["nodes", 1, "shape"], [8, -1, 3], "E_SHAPE", "nodes[1].shape[1]"),
    "shape float": (["nodes", 1, "shape"], [8, 3.0, 3], "E_SHAPE", "nodes[1].shape[1]"),
    "shape number": (["nodes", 1, "shape"], 8, "E_SHAPE", "nodes[1].shape"),
    "shape overflow": (["nodes", 1, "shape"], [2**20] * 3, "E_SHAPE_OVERFLOW", "nodes[1].shape"),
    "dtype": (["nodes", 1, "dtype"], "u16", "E_ENUM", "nodes[1].dtype"),
    "dtype of flatten": (["nodes", 2, "dtype"], "f32", "E_GRAPH_ATTR", "nodes[2].dtype"),
    "scale 0": (["nodes", 1, "scale"], 0.0, "E_QPARAM", "nodes[1].scale"),
    "scale negative": (["nodes", 1, "scale"], -1.0, "E_QPARAM", "nodes[1].scale"),
    "scale subnormal": (["nodes", 1, "scale"], 2.0**-127, "E_QPARAM", "nodes[1].scale"),
    "scale not float32": (["nodes", 1, "scale"], 0.1, "E_QPARAM", "nodes[1].scale"),
    "scale beyond float32": (["nodes", 1, "scale"], 1e300, "E_QPARAM", "nodes[1].scale"),
    "scale integer": (["nodes", 1, "scale"], 1, "E_QPARAM", "nodes[1].scale"),
    "scale null": (["nodes", 1, "scale"], None, "E_QPARAM", "nodes[1].scale"),
    "scale text": (["nodes", 1, "scale"], "1", "E_QPARAM", "nodes[1].scale"),
    "scale of float": (["nodes", 3, "scale"], 1.0, "E_QPARAM", "nodes[3].scale"),
    "scale changed by flatten": (["nodes", 2, "scale"], 1.0, "E_QPARAM", "nodes[2].scale"),
    "quantize without scale": (["nodes", 0, "scale"], REMOVED, "E_QPARAM", "nodes[0].zero_point"),
    "zero point 300": (["nodes", 1, "zero_point"], 300, "E_QPARAM", "nodes[1].zero_point"),
    "zero point negative": (["nodes", 1, "zero_point"], -1, "E_QPARAM", "nodes[1].zero_point"),
    "zero point float": (["nodes", 1, "zero_point"], 0.0, "E_QPARAM", "nodes[1].zero_point"),
    "zero point outside the range": (["nodes", 0, "quant_max"], 127, "E_QPARAM", "nodes[0].zero_point"),
    "quant range": (["nodes", 1, "quant_min"], 256, "E_QPARAM", "nodes[1].quant_min"),
    "codec": (["nodes", 1, "weight", "codec"], "zip", "E_ENUM", "nodes[1].weight.codec"),
    "codec number": (["nodes", 1, "weight", "codec"], 2, "E_ENUM", "nodes[1].weight.codec"),
    "another codec": (["nodes", 1, "weight", "codec"], "raw", "E_ENUM", "tensors['1.weight'].dtype"),
    "bits 1": (["nodes", 1, "weight", "bits"], 1, "E_QPARAM", "nodes[1].weight.bits"),
    "bits 9": (["nodes", 1, "weight", "bits"], 9, "E_QPARAM", "nodes[1].weight.bits"),
    "bits too few": (["nodes", 1, "weight", "bits"], 2, "E_VALUE_RANGE", "tensors['1.weight'][3]"),
    "weight shape": (["nodes", 1, "weight", "shape"], [8, 3, 1, 3], "E_GRAPH_SHAPE", "nodes[1].weight"),
    "weight rank": (["nodes", 1, "weight", "shape"], [8, 9], "E_GRAPH_SHAPE", "nodes[1].weight"),
    "weight rank 3": (["nodes", 1, "weight", "shape"], [8, 3, 3], "E_SHAPE", "nodes[1].weight.shape"),
    "weight 2^62 x 8": (["nodes", 1, "weight", "shape"], [2**62, 8], "E_SHAPE", "nodes[1].weight.shape[0]"),
    "weight 2^31 x 2^31": (
        ["nodes", 1, "weight", "shape"],
        [2**31 - 1] * 2,
        "E_SHAPE_OVERFLOW",
        "nodes[1].weight.shape",
    ),
    "weight number": (["nodes", 1, "weight"], 3, "E_HEADER", "nodes[1].weight"),
    "weight missing": (["nodes", 1, "weight"], REMOVED, "E_HEADER", "nodes[1].node"),
    "weight key": (["nodes", 1, "weight", "path"], "/etc/passwd", "E_HEADER", "nodes[1].weight"),
    "weight of fewer channels": (["nodes", 1, "weight", "shape"], [4, 1, 3, 3], "E_QPARAM", "nodes[1].multiplier"),
}


@pytest.mark.parametrize("name", METADATA_CASES)
def test_metadata(name: str) -> None:
    path, new, code, field = METADATA_CASES[name]
    error = refused(set_metadata(path, new))
    assert (error.code, error.field) == (code, field)


# nodes of ALL_OPS: see tests/golden/make_golden.py
ALL_OPS_CASES: dict[str, tuple[list[str | int], object, str, str]] = {
    "residual of another shape": (["nodes", 2, "inputs"], [2, 1], "E_GRAPH_SHAPE", "nodes[2].inputs[1]"),
    "residual multiplier missing": (
        ["nodes", 2, "residual_multiplier"],
        REMOVED,
        "E_GRAPH_ATTR",
        "nodes[2].residual_multiplier",
    ),
    "residual multiplier integer": (["nodes", 2, "residual_multiplier"], 1, "E_QPARAM", "nodes[2].residual_multiplier"),
    "residual multiplier huge": (["nodes", 2, "residual_multiplier"], 1e30, "E_QPARAM", "nodes[2].residual_multiplier"),
    "residual of a float": (["nodes", 2, "dtype"], "f32", "E_GRAPH_ATTR", "nodes[2].dtype"),
    "add of two shapes": (["nodes", 4, "inputs"], [1, 3], "E_GRAPH_SHAPE", "nodes[4].inputs[1]"),
    "add bias": (["nodes", 4, "bias"], 1e30, "E_QPARAM", "nodes[4].bias"),
    "concat of two sizes": (["nodes", 5, "inputs"], [4, 0], "E_GRAPH_REF", "nodes[5].inputs[1]"),
    "concat scale": (["nodes", 5, "scale"], 0.5, "E_QPARAM", "nodes[5].scale"),
    "affine of other channels": (["nodes", 6, "inputs"], [5], "E_QPARAM", "nodes[6].zero_point"),
    "pad of codes of many scales": (["nodes", 7, "inputs"], [6], "E_QPARAM", "nodes[7].inputs[0]"),
    "pad negative": (["nodes", 7, "before"], [0, -1, 0], "E_GRAPH_ATTR", "nodes[7].before"),
    "slice past the end": (["nodes", 8, "stop"], [9, 9, 8], "E_GRAPH_SHAPE", "nodes[8].stop"),
    "slice of nothing": (["nodes", 8, "start"], [8, 1, 0], "E_GRAPH_SHAPE", "nodes[8].stop"),
    "slice step 0": (["nodes", 8, "step"], [0, 1, 1], "E_GRAPH_ATTR", "nodes[8].step"),
    "max pool window in the padding": (["nodes", 9, "padding"], [3, 1, 0, 1], "E_GRAPH_ATTR", "nodes[9].padding"),
    "max pool kernel 0": (["nodes", 9, "kernel"], [0, 3], "E_GRAPH_ATTR", "nodes[9].kernel"),
    "mean window in the padding": (["nodes", 10, "padding"], [1, 1, 9, 1], "E_GRAPH_ATTR", "nodes[10].padding"),
    "mean count flag": (["nodes", 10, "count_include_pad"], 2, "E_GRAPH_ATTR", "nodes[10].count_include_pad"),
    "mean multiplier missing": (["nodes", 10, "multiplier"], REMOVED, "E_GRAPH_ATTR", "nodes[10].multiplier"),
    "mean output 0": (["nodes", 11, "output_size"], [0, 1], "E_GRAPH_ATTR", "nodes[11].output_size"),
    "linear of an image": (["nodes", 13, "inputs"], [12], "E_GRAPH_SHAPE", "nodes[13].inputs[0]"),
    "softmax of codes": (["nodes", 16, "inputs"], [15], "E_GRAPH_REF", "nodes[16].inputs[0]"),
    "dequantize to codes": (["nodes", 15, "dtype"], "u8", "E_GRAPH_ATTR", "nodes[15].dtype"),
    "1 TiB of activations": (["nodes", 7, "after"], [0, 2**20, 2**20], "E_GRAPH_SHAPE", "nodes[7].shape"),
}


@pytest.mark.parametrize("name", ALL_OPS_CASES)
def test_operator_rules(name: str) -> None:
    path, new, code, field = ALL_OPS_CASES[name]
    error = refused(set_metadata(path, new, ALL_OPS))
    assert (error.code, error.field) == (code, field)


def test_optional_keys_and_later_minor_versions_load() -> None:
    data = set_metadata(["version"], [1, 7])
    data = set_metadata(["ext.note"], {"any": ["thing", 1.5]}, data)
    assert len(pqk_format.loads(data).nodes) == 4


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"digest":"DIGEST","digest":"x"}', "E_DUPLICATE"),
        ('{"digest":"DIGEST"', "E_HEADER"),
        ('{"digest":"DIGEST"} x', "E_HEADER"),
        ('{"digest":"DIGESTff","input":[1],"nodes":[],"version":[1,0]}', "E_HEADER"),
        ('{"digest":"DIGEST","nodes":' + "[" * 100_000 + "]" * 100_000 + "}", "E_HEADER"),
        ('{"digest":"DIGEST","version":[1,NaN]}', "E_HEADER"),
        ('{"digest":"DIGEST","version":[1,1e999]}', "E_HEADER"),
    ],
)
def test_metadata_json(text: str, code: str) -> None:
    header, _, tensors = split(SMALL)
    error = refused(join(header, text.replace("DIGEST", "0" * 64), tensors))
    assert error.code == code


# --------------------------------------------------------------------------------- tensors and their contents


def set_floats(key: str, row: int, channel: int, number: float) -> bytes:
    header, metadata, tensors = split(SMALL)
    begin = header[key]["data_offsets"][0] + 4 * (row * header[key]["shape"][1] + channel)
    data = bytearray(tensors)
    data[begin : begin + 4] = struct.pack("<f", number)
    return join(header, metadata, bytes(data))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize(("row", "name"), [(0, "multiplier"), (1, "bias")])
def test_multiplier_and_bias_are_bounded(row: int, name: str, number: float) -> None:
    error = refused(set_floats("1.affine", row, 5, number))
    assert (error.code, error.field) == ("E_QPARAM", f"nodes[1].{name}[5]")


def test_multiplier_may_be_negative_or_zero() -> None:
    for number in (0.0, -1.5):
        graph = pqk_format.loads(set_floats("1.affine", 0, 5, number))
        assert graph.nodes[1].tensors["multiplier"][5] == number


def test_accumulator_bound(golden_graphs: ModuleType) -> None:
    graph_module = golden_graphs
    features = 66_312  # x 255 x 127 is more than 2^31
    weight = np.full((2, features), -127, np.int8)
    weight[0] = 0
    node = graph_module.Node(
        "linear",
        "fc",
        (1,),
        graph_module.Value((2,), "f32"),
        {},
        {"weight": weight, "multiplier": np.ones(2, np.float32), "bias": np.ones(2, np.float32)},
    )
    quantize = graph_module.Node("quantize", "q", (0,), graph_module.value(features), dict(graph_module.CODES))
    graph = graph_module.Graph(graph_module.Value((features,), "f32"), (quantize, node))
    with pytest.raises(FormatError) as caught:
        pqk_format.dumps(graph)
    assert (caught.value.code, caught.value.field) == ("E_QPARAM", "nodes[1].weight[1]")
    weight[1, 0] = 0
    pqk_format.dumps(graph)


def test_weight_of_minus_128() -> None:
    header, metadata, tensors = split((GOLDEN / "raw.pqk").read_bytes())
    data = bytearray(tensors)
    data[header["3.weight"]["data_offsets"][0] + 7] = 0x80
    error = refused(join(header, metadata, bytes(data)))
    assert (error.code, error.field, error.got) == ("E_VALUE_RANGE", "tensors['3.weight'][7]", "-128")


def test_tensor_dtype_and_shape() -> None:
    header, metadata, tensors = split(ALL_OPS)
    for key, fields, code in [
        ("3.table", {"dtype": "I8"}, "E_ENUM"),
        ("3.table", {"shape": [16, 16]}, "E_SIZE_MISMATCH"),
        ("6.affine", {"shape": [8, 2]}, "E_SIZE_MISMATCH"),
        ("6.affine", {"dtype": "U8", "shape": [2, 32]}, "E_ENUM"),
        ("13.weight", {"shape": [header["13.weight"]["shape"][0], 1]}, "E_SIZE_MISMATCH"),
    ]:
        error = refused(join({**header, key: {**header[key], **fields}}, metadata, tensors))
        assert error.code == code
        assert error.field.startswith(f"tensors['{key}']")


# ------------------------------------------------------------------------------------------------------ limits


def test_decoded_bytes_are_bounded() -> None:
    error = refused(SMALL, max_decoded_bytes=300)
    assert error.code == "E_BOMB"
    assert "max_decoded_bytes" in error.expected


def test_activations_are_bounded(golden_graphs: ModuleType) -> None:
    """A graph that is right but for needing 1 TiB between its nodes."""
    make = golden_graphs
    grow = {"before": [0, 0, 0], "after": [0, 2**20 - 1, 2**20 - 1]}
    nodes = (
        make.Node("quantize", "q", (0,), make.value(1, 1, 1), dict(make.CODES)),
        make.Node("pad", "grow", (1,), make.value(1, 2**20, 2**20), grow),
        make.Node("dequantize", "output", (2,), make.Value((1, 2**20, 2**20), "f32")),
    )
    with pytest.raises(FormatError) as caught:
        pqk_format.dumps(make.Graph(make.Value((1, 1, 1), "f32"), nodes))
    assert (caught.value.code, caught.value.field) == ("E_BOMB", "nodes[1].shape")


def test_a_sparse_bomb_is_refused_before_decoding() -> None:
    """One byte that stands for 2^32 - 2 zeros."""
    features = 2**31 - 1
    metadata = {
        "digest": "0" * 64,
        "input": [features],
        "nodes": [
            {"op": "quantize", "name": "q", "shape": [features], "scale": 0.5},
            {
                "op": "linear",
                "name": "fc",
                "dtype": "f32",
                "shape": [2],
                "weight": {"codec": "sparse-huffman", "shape": [2, features]},
            },
        ],
        "version": [1, 0],
    }
    header = {
        "__metadata__": {},
        "1.affine": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "1.weight": {"dtype": "U8", "shape": [1], "data_offsets": [16, 17]},
    }
    assert refused(join(header, metadata, bytes(17))).code == "E_BOMB"


def test_many_tensors_take_bounded_time() -> None:
    header, metadata, tensors = split(SMALL)
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [len(tensors), len(tensors)]}
    header.update({f"x{i}": entry for i in range(40_000)})
    data = join(header, metadata, tensors)
    started = time.perf_counter()
    assert refused(data).code == "E_UNREFERENCED"
    assert time.perf_counter() - started < 5  # about 1 s on an idle machine
    header.update({f"y{i}": entry for i in range(40_000)})
    assert refused(join(header, metadata, tensors)).code == "E_HEADER_LEN"
