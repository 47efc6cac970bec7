"""The measured choice of kernels, and the table that remembers it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pqk_ext import _core
from pqk_ext.runtime import Model, kernel_table
from pqk_ext.runtime.graph import Graph
from tests.runtime.graphs import Builder


def sparse_graph(zero_point: int = 128) -> Graph:
    """One 3x3 convolution with 9 of 10 weights zero, which more than one kernel can compute."""
    builder = Builder((16, 8, 8))
    out = builder.conv2d(builder.quantize(0, zero_point=zero_point), 16)
    weight = builder.nodes[-1].tensors["weight"]
    weight[builder.random.random(weight.shape) < 0.9] = 0
    builder.dequantize(out)
    return builder.graph()


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "folder" / "kernels.json"
    monkeypatch.setenv("PQK_KERNEL_TABLE", str(path))
    return path


def times(path: Path) -> dict[str, dict[str, float]]:
    (own,) = json.loads(path.read_text()).values()
    return own


def rewrite(path: Path, fastest: str) -> None:
    """Makes ``fastest`` the fastest kernel of every layer."""
    document = json.loads(path.read_text())
    for machine in document.values():
        for layer in machine.values():
            layer.update({name: 1e-9 if name == fastest else 1.0 for name in layer})
    path.write_text(json.dumps(document))


def test_measures_once_and_remembers(table: Path) -> None:
    Model.from_graph(sparse_graph())
    measured = times(table)
    assert measured
    for layer, kernels in measured.items():
        assert layer.startswith(_core.active_isa())
        assert "direct" in kernels
        assert len(kernels) > 1
        assert all(0 < seconds < 1 for seconds in kernels.values())
    before = table.read_bytes()
    Model.from_graph(sparse_graph())
    assert table.read_bytes() == before


def test_a_border_of_zeros_is_another_layer(table: Path) -> None:
    """The direct kernel skips it, so that times differ."""
    Model.from_graph(sparse_graph())
    known = len(times(table))
    Model.from_graph(sparse_graph(zero_point=3))
    assert len(times(table)) == known
    Model.from_graph(sparse_graph(zero_point=0))
    assert len(times(table)) == 2 * known


def test_table_decides(table: Path) -> None:
    Model.from_graph(sparse_graph())
    x = np.random.default_rng(0).standard_normal((9, 16, 8, 8)).astype(np.float32)
    results = []
    for kernel in next(iter(times(table).values())):
        rewrite(table, kernel)
        model = Model.from_graph(sparse_graph())
        assert dict(model.kernels)["conv2d_1"] == kernel
        results.append(model(x))
    assert all(np.array_equal(results[0], result) for result in results)


def test_without_tuning_the_dense_kernel(table: Path) -> None:
    model = Model.from_graph(sparse_graph(), tune=False)
    assert dict(model.kernels)["conv2d_1"] == "direct"
    assert not table.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a": 1}', '{"a": {"b": {"direct": -1}}}', '{"a": {"b": {"direct": NaN}}}', "\x00"]
)
def test_broken_table_is_measured_anew(table: Path, content: str) -> None:
    table.parent.mkdir()
    table.write_text(content)
    Model.from_graph(sparse_graph())
    assert times(table)


def test_table_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PQK_KERNEL_TABLE", str(tmp_path / "file" / "kernels.json"))
    Model.from_graph(sparse_graph())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_location(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PQK_KERNEL_TABLE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernel_table.location() == tmp_path / "pqk_ext" / "kernels.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kernel_table.location() == tmp_path / ".cache" / "pqk_ext" / "kernels.json"
    monkeypatch.setenv("PQK_KERNEL_TABLE", "")
    assert kernel_table.location() is None


def test_other_machines_are_kept(table: Path) -> None:
    table.parent.mkdir()
    others = {f"cpu {i}": {"layer": {"direct": 1e-6}} for i in range(9)}
    table.write_text(json.dumps(others))
    Model.from_graph(sparse_graph())
    document = json.loads(table.read_text())
    assert list(document)[:-1] == [f"cpu {i}" for i in range(2, 9)]
    assert document["cpu 8"] == others["cpu 8"]


@pytest.mark.parametrize("kernel", ["", "direkt"])
def test_unknown_kernel(kernel: str) -> None:
    with pytest.raises(ValueError, match=r"kernels\['conv2d_1'\]: expected one of .*direct"):
        Model.from_graph(sparse_graph(), kernels={"conv2d_1": kernel})


def test_unknown_node() -> None:
    with pytest.raises(ValueError, match=r"kernels: expected names of convolution and linear nodes, or '\*', got 'x'"):
        Model.from_graph(sparse_graph(), kernels={"x": "direct"})


def test_kernel_that_is_not_for_the_layer() -> None:
    with pytest.raises(ValueError, match=r"kernels\['conv2d_1'\]: no kernel 'depthwise' for this layer"):
        Model.from_graph(sparse_graph(), kernels={"conv2d_1": "depthwise"})
    model = Model.from_graph(sparse_graph(), kernels={"*": "depthwise"})
    assert dict(model.kernels)["conv2d_1"] != "depthwise"
