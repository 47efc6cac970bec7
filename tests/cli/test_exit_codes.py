"""Bad input: the exit code, one line on stderr that names it, and nothing written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pqk_ext import __version__

from .conftest import Result

Pqk = Callable[..., Result]
DATA = ("--data", "keyword_spotting")
CALL = [sys.executable, "-c", "import sys; from pqk_ext.cli import main; sys.exit(main())"]


def refused(done: Result, code: int, *parts: object) -> None:
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.startswith("pqk: error: ")
    assert done.err.count("\n") == 1
    for part in parts:
        assert str(part) in done.err


def test_version_and_help(pqk: Pqk) -> None:
    assert pqk("--version").out == f"pqk {__version__}\n"
    for words in ((), ("--help",)):
        done = pqk(*words)
        assert done.code == 0
        assert "pqk demo" in done.out
        assert "Exit codes" in done.out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("frobnicate",), ("frobnicate",)),
        (("verify",), ("FILE",)),
        (("verify", "{net}", "--shaa", "1"), ("--shaa",)),
        (("verify", "{net}", "--sha256", "xyz"), ("--sha256", "64 hexadecimal digits")),
        (("bench", "{net}", "--threads", "0"), ("--threads",)),
        (("bench", "{net}", "--batch", "-1"), ("--batch",)),
        (("run", "{net}", "a.npy", "b.npy"), ("b.npy",)),
        (("eval", "{net}", "--data", "imagenet"), ("--data", "imagenet")),
        (("eval", "{net}", "--data", "cifar10"), ("cifar10:DIR",)),
        (("eval", "{net}", *DATA, "--split", "dev"), ("--split", "dev")),
        (("export", "-o", "{tmp}/out.pqk"), ("RUN_DIR",)),
        (("export", "--model", "ds_cnn", "-o", "{tmp}/out.pqk"), ("--pretrained",)),
        (("export", "--model", "ds_cnn", "--pretrained", "-o", "{tmp}/out.pqk"), ("--calibration",)),
        (("demo", "--sparsity", "1.5"), ("sparsity", "1.5")),
        (("demo", "--seeds", "0"), ("--seeds",)),
        (("train", *DATA, "--model", "ds_cnn", "--run-dir", "{tmp}/r"), ("--epochs",)),
        (("train", *DATA, "--model", "ds_cnn", "--run-dir", "{tmp}/r", "--optimizer", "x"), ("--optimizer", "adamw")),
        (("train", *DATA, "--model", "ds_cn", "--run-dir", "{tmp}/r", "--epochs", "1"), ("'ds_cnn'",)),
        (("train", *DATA, "--model", "resnet20", "--run-dir", "{tmp}/r", "--epochs", "1"), ("resnet20", "(1, 49, 10)")),
    ],
)
def test_usage(pqk: Pqk, network: Path, tmp_path: Path, words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    refused(pqk(*(word.format(net=network, tmp=tmp_path) for word in words)), 2, *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pqk"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("sparsty: 0.8", "'sparsity'"),
        ("weight_bits: 9", "weight_bits"),
        ("sparsity: 1.0", "sparsity"),
        ("sparsity: [", ":1:"),
        ("sparsity: 0.5\nsparsity: 0.6", "twice"),
        ("", "empty"),
        (None, "cannot read"),
    ],
)
def test_configuration(pqk: Pqk, tmp_path: Path, text: str | None, part: str) -> None:
    path = tmp_path / "pqk.yaml"
    if text is not None:
        path.write_text(text)
    words = ("train", *DATA, "--model", "ds_cnn", "--run-dir", tmp_path / "run", "--config", path)
    refused(pqk(*words), 2, part)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["verify", "inspect", "bench"])
def test_damaged_and_missing_files(pqk: Pqk, network: Path, tmp_path: Path, command: str) -> None:
    data = bytearray(network.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.pqk").write_bytes(data)
    report = tmp_path / "report.json"
    refused(pqk(command, tmp_path / "damaged.pqk", "--json", report), 3, "damaged.pqk", "[E_DIGEST]")
    refused(pqk(command, tmp_path / "none.pqk", "--json", report), 3, "none.pqk", "No such file")
    assert not report.exists()


def test_another_sum(pqk: Pqk, network: Path) -> None:
    refused(pqk("verify", network, "--sha256", "0" * 64), 3, "sha256", network)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda path: np.save(path, np.zeros((1, 3, 8, 8), np.float32)), "(N, 1, 49, 10)"),
        (lambda path: np.save(path, np.zeros((1, 1, 49, 10))), "float32"),
        (lambda path: np.save(path, np.full((1, 1, 49, 10), np.nan, np.float32)), "NaN"),
        (lambda path: np.save(path, np.array([{}])), "npy"),
        (lambda path: path.write_bytes(b"no array"), "npy"),
        (lambda path: None, "No such file"),
    ],
)
def test_bad_arrays(pqk: Pqk, network: Path, tmp_path: Path, make: Callable[[Path], object], part: str) -> None:
    array, output = tmp_path / "x.npy", tmp_path / "y.npy"
    make(array)
    refused(pqk("run", network, array, "-o", output), 3, "x.npy", part)
    assert not output.exists()


def test_missing_data(pqk: Pqk, network: Path, tmp_path: Path) -> None:
    words = ("train", "--data", f"cifar10:{tmp_path}", "--model", "resnet20", "--run-dir", tmp_path / "r")
    refused(pqk(*words, "--epochs", 1), 3, tmp_path, "data_batch_1.bin")
    assert not (tmp_path / "r").exists()


def test_outputs_that_stand_already(pqk: Pqk, network: Path, tmp_path: Path) -> None:
    x, y = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(x, np.zeros((1, 1, 49, 10), np.float32))
    y.write_bytes(b"precious")
    refused(pqk("run", network, x, "-o", y), 4, "y.npy", "--force")
    assert y.read_bytes() == b"precious"
    assert pqk("run", network, x, "-o", y, "--force").code == 0
    assert np.load(y).shape == (1, 12)
    refused(pqk("run", network, x, "-o", tmp_path / "no" / "y.npy"), 4, "no directory")
    refused(pqk("verify", network, "--json", tmp_path / "no" / "r.json"), 4, "no directory")
    refused(pqk("verify", network, "--json", tmp_path), 4, "is a directory")
    refused(pqk("demo", "--output", tmp_path), 4, "not empty")
    refused(pqk("train", *DATA, "--model", "ds_cnn", "--run-dir", tmp_path, "--epochs", 1), 4, "--resume")


def test_tracebacks_are_for_debugging(pqk: Pqk, tmp_path: Path) -> None:
    assert "Traceback" not in pqk("verify", tmp_path / "none.pqk").err
    assert "Traceback" in pqk("--debug", "verify", tmp_path / "none.pqk").err


def test_closed_output_no_home_plain_locale(network: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "LC_ALL": "C"}
    environment["PYTHONSAFEPATH"] = "1"  # not the source tree in the current folder
    reader, writer = os.pipe()
    os.close(reader)
    for words in (["inspect", str(network)], ["inspect", str(network), "--json", "-"], ["--help"]):
        done = subprocess.run([*CALL, *words], stdout=writer, stderr=subprocess.PIPE, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, b""), words
    os.close(writer)
    done = subprocess.run([*CALL, "inspect", str(network)], capture_output=True, env=environment, check=True)
    assert b"conv2d" in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(network: Path, tmp_path: Path, number: int, code: int) -> None:
    report = tmp_path / "report.json"
    words = ["bench", str(network), "--rounds", "1000000", "--json", str(report)]
    # The read end of a named pipe opens when the program has got as far as opening the network.
    link = tmp_path / "ready"
    os.mkfifo(link)
    program = (
        "import sys; from pqk_ext import timing; from pqk_ext.cli import main\n"
        f"inner = timing.interleaved\n"
        "import pqk_ext.cli.bench as bench\n"
        f"def started(*a):\n    open({str(link)!r}, 'w').close()\n    return inner(*a)\n"
        "bench.interleaved = started\nsys.exit(main())"
    )
    with subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True) as process:
        link.read_text()
        process.send_signal(number)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    assert "Traceback" not in err
    assert not report.exists()
