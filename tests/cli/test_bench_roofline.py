"""``pqk bench --roofline``: the picture, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import re
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from pqk_ext import runtime
from pqk_ext.cli import bench_roofline
from pqk_ext.cli.failures import ExitCode
from pqk_ext.runtime import profile

from .conftest import Result

Pqk = Callable[..., Result]
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None,
    reason="matplotlib is not installed (extra plot): the picture was NOT checked",
)


@needs_matplotlib
def test_the_picture_shows_every_layer(pqk_without_torch: Pqk, network: Path, tmp_path: Path) -> None:
    picture = tmp_path / "net.svg"
    picture.write_text("old")
    done = pqk_without_torch("bench", network, "--rounds", 1, "--roofline", picture, "--json", "-")
    assert (done.code, done.err) == (0, "")
    values = json.loads(done.out)
    texts = [element.text or "" for element in xml.etree.ElementTree.parse(picture).iter() if "text" in element.tag]
    words = " ".join(texts)
    multiplying = [layer for layer in values["layers"] if layer["macs"]]
    assert [node.name for node in runtime.load(network).graph.nodes if "weight" in node.tensors] == [
        layer["node"] for layer in multiplying
    ]
    for number, layer in enumerate(multiplying, 1):
        assert layer["node"] in texts
        assert f"{layer['us']:.1f}" in texts
        assert re.search(rf"\b{number}\b", words)
    assert values["roofline"]["picture"] == str(picture)
    for name, rate in values["roofline"]["gigabytes_per_second"].items():
        assert f"{name}: {rate:.0f} GB/s" in texts
    assert f"int8 peak of this core: {values['profile']['peak_gmacs']:.0f} GMAC/s" in texts
    assert any(text.startswith("net.pqk on ") and values["isa"] in text for text in texts)


@needs_matplotlib
def test_layers_that_skip_zeros_lie_inside(network: Path) -> None:
    from matplotlib.figure import Figure

    costs = [cost for cost in profile.layer_costs(runtime.load(network).graph) if cost.macs]
    layers = [profile.LayerTime(cost, "gather", cost.macs / 9e11) for cost in costs]  # 9 times the peak
    axes = Figure().add_subplot()
    bench_roofline._draw_roofs(axes, 1e11, {"L2": 1e11}, layers)
    assert axes.get_ylim()[1] > 900


@needs_matplotlib
def test_a_bitmap_by_its_suffix(pqk: Pqk, network: Path, tmp_path: Path) -> None:
    picture = tmp_path / "net.PNG"
    assert pqk("bench", network, "--rounds", 1, "--roofline", picture).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")


@needs_matplotlib
@pytest.mark.parametrize("name", ["net.jpg", "net", "no/net.png"])
def test_a_name_that_cannot_be_written_is_refused(pqk: Pqk, network: Path, tmp_path: Path, name: str) -> None:
    done = pqk("bench", network, "--roofline", tmp_path / name)
    if name == "no/net.png":
        assert (done.code, "no directory" in done.err) == (ExitCode.ENVIRONMENT, True)
    else:
        assert (done.code, "expected a name that ends in .png or .svg" in done.err) == (ExitCode.USAGE, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pqk"]


def test_without_matplotlib_it_says_what_to_install(pqk: Pqk, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        bench_roofline.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    done = pqk("bench", network, "--roofline", "net.png")
    assert done.code == ExitCode.ENVIRONMENT
    assert "--roofline: needs matplotlib: pip install 'pqk_ext[plot]'" in done.err


def test_labels_that_lie_on_one_another_are_one() -> None:
    pixels = [(0.0, 0.0), (100.0, 0.0), (3.0, 4.0), (100.0, 7.0), (0.0, 20.0)]
    assert bench_roofline._clusters(pixels, [0, 1, 2, 3, 4]) == [[0, 2], [1, 3], [4]]


def test_cache_sizes_are_those_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, (level, size) in enumerate([("1", "32K"), ("2", "2M"), ("3", "nonsense")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    monkeypatch.setattr(bench_roofline, "_CACHES", tmp_path)
    assert bench_roofline._caches() == {"L2": 2 << 20, "L3": 16 << 20}
