"""``pqk bench --peers``: other runtimes on the same network."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pqk_ext.cli import bench_peers
from pqk_ext.cli.failures import ExitCode
from pqk_ext.runtime import format as pqk_format
from tests.runtime.float_graphs import float_resnet8

from .conftest import Result

Pqk = Callable[..., Result]
MODES = {"onnxruntime": [("int8", ""), ("float", "")], "openvino": [("int8", "f32"), ("float", "f32")]}


@pytest.fixture
def engines() -> list[str]:
    installed = [name for name in MODES if importlib.util.find_spec(name) is not None]
    if importlib.util.find_spec("onnx") is None or not installed:
        pytest.skip("no peer is installed (extra bench): --peers was NOT checked")
    return installed


def test_every_installed_peer_runs_the_network(
    pqk_without_torch: Pqk, network: Path, engines: list[str], tmp_path: Path
) -> None:
    target = tmp_path / "bench.json"
    done = pqk_without_torch("bench", network, "--rounds", 3, "--batch", 2, "--peers", "--json", target)
    assert (done.code, done.err) == (0, "")
    ours, *peers = json.loads(target.read_text())["peers"]
    assert (ours["engine"], ours["mode"]) == ("pqk_ext", "int8")
    found = [(peer["engine"], peer["mode"], peer["precision"]) for peer in peers]
    assert {(engine, *mode) for engine in engines for mode in MODES[engine]} <= set(found)
    for peer in peers:
        assert peer["version"]
        assert 0 < peer["min_us"] <= peer["median_us"]
        assert 0 < peer["ratio_low"] <= peer["ratio"] <= peer["ratio_high"]
        assert peer["output_difference"] >= 0
        assert peer["tolerance"] == (0.1 if peer["mode"] == "int8" else 0.3)
        assert peer["same_network"] == (peer["output_difference"] <= peer["tolerance"])
        assert peer["engine"] in done.out
    # The same integers but for roundings; random weights magnify these.
    assert all(peer["output_difference"] < 0.5 for peer in peers if peer["mode"] == "int8")


def test_a_network_of_floats_has_no_int8_modes(pqk_without_torch: Pqk, engines: list[str], tmp_path: Path) -> None:
    file, target = tmp_path / "net.pqk", tmp_path / "bench.json"
    pqk_format.write(float_resnet8(density=0.1), file)
    done = pqk_without_torch("bench", file, "--rounds", 3, "--profile", "--peers", "--json", target)
    assert (done.code, done.err) == (0, "")
    results = json.loads(target.read_text())["peers"]
    assert {result["mode"] for result in results} == {"float"}
    assert {result["engine"] for result in results} == {"pqk_ext", *engines}
    # Rounding alone, but for bfloat16.
    assert all(result["output_difference"] < 1e-3 for result in results[1:] if result["precision"] != "bf16")


def test_without_peers_it_says_what_to_install(pqk: Pqk, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        bench_peers.importlib.util, "find_spec", lambda name: None if name in MODES else find(name), raising=True
    )
    done = pqk("bench", network, "--peers")
    assert done.code == ExitCode.ENVIRONMENT
    assert "--peers: needs onnx and one of onnxruntime, openvino: pip install 'pqk_ext[bench]'" in done.err
    assert done.out == ""
