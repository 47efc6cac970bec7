"""The outer shell of a file: the exact code and field for each way to break it, under a right digest."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pqk_ext.runtime import container
from tests.runtime.files import ALL_OPS, SMALL, join, refused, sign, split


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
