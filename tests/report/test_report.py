"""The page of a run: what stands in it, for runs in any state, and that nothing from a file becomes markup."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="no report without matplotlib")
pytest.importorskip("jinja2", reason="no report without jinja2")

from pqk_ext.cli import main
from pqk_ext.report import make_page, measure, read_run, to_html
from tests.report.conftest import change_lines

Copy = Callable[..., Path]
HOSTILE = '</title><script>alert(1)</script><img src=x onerror="alert(2)">&$x_1$'
OWN_TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "header", "div", "h1", "h2", "h3", "span", "p", "ul"),
    *(
        "li",
        "b",
        "a",
        "nav",
        "main",
        "section",
        "figure",
        "figcaption",
        "details",
        "summary",
        "table",
        "thead",
        "tbody",
    ),
    *("tr", "th", "td", "button", "pre", "dl", "dt", "dd", "footer", "script", "svg", "desc", "defs", "g", "path"),
    *("use", "text", "clippath", "rect"),
}


class Parsed(HTMLParser):
    """Tags, ids, outgoing references and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "xlink:href", "src", "srcset", "action", "data"):
                self.references.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.tags[-1] in ("h2",) and data.strip():
            self.headings.append(data.strip())


@functools.cache  # the runs that tests share are drawn once
def shared_page(run_dir: Path) -> tuple[str, Parsed]:
    return page_of(run_dir)


def page_of(run_dir: Path) -> tuple[str, Parsed]:
    run = read_run(run_dir)
    html = to_html(make_page(run, [measure(path, None) for path in sorted(run_dir.glob("*.pqk"))]))
    return html, Parsed(html)


def check_whole(html: str, parsed: Parsed) -> None:
    """Self-contained, its own elements alone, every id once, every picture with words."""
    assert set(parsed.tags) <= OWN_TAGS
    assert parsed.handlers == []
    assert parsed.tags.count("script") == 1
    assert len(parsed.ids) == len(set(parsed.ids))
    inside = {f"#{name}" for name in parsed.ids}
    assert all(reference in inside or reference == "data:," for reference in parsed.references)
    assert "url(" not in re.sub(r"url\(#[\w.-]+\)", "", html)
    assert "@import" not in html
    pictures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(pictures) == parsed.tags.count("figure")
    assert all("<title id=" in svg and re.search(r"<desc id=[^>]*>[^<]{20,}</desc>", svg) for svg in pictures)


def test_a_finished_run(finished_run: Path) -> None:
    html, parsed = shared_page(finished_run)
    check_whole(html, parsed)
    assert parsed.headings == [
        *("Findings", "Training", "Weights", "Activations", "Teacher and student", "Exported files"),
        *("Histograms", "Facts"),
    ]
    # 4 curves; zeros, SQNR, drift; activations (and channels that never change); 2 of the teacher; 2 of the file;
    # 3 layers' histograms.
    assert parsed.tags.count("figure") in (15, 16)
    assert "finished" in parsed.text
    assert "not finished" not in parsed.text
    run = read_run(finished_run)
    assert run.finished
    assert (run.quantized_step, run.sparse_step, run.phase2_step) == (3, 18, 24)
    assert run.teacher_step is None  # with phase 2
    settings = {**run.facts["settings"], "config.teacher_start": 0.25}
    early = dataclasses.replace(run, facts={**run.facts, "settings": settings})
    assert (early.teacher_step, early.phase2_step) == (6, 24)
    assert run.best is not None
    assert f"{run.best['accuracy']:.2%}" in parsed.text
    assert run.facts["data"]["train"] in parsed.text
    assert "temperature: 3.0" in parsed.text
    assert "pqk_ext.fit(model, train, val, PQKConfig(sparsity=0.7" in parsed.text
    assert "quantized" in re.findall(r"<text[^>]*>([^<]*)</text>", html)


def test_tables_hold_the_numbers(finished_run: Path) -> None:
    html, _ = shared_page(finished_run)
    last = json.loads((finished_run / "diagnostics.jsonl").read_text().splitlines()[-1])
    for layer in last["layers"]:
        row = re.search(rf'<tr><td class="n" data-key="[\d.]+">\d+</td><td data-key="{layer["name"]}">.*?</tr>', html)
        assert row is not None
        keys = re.findall(r'data-key="([^"]*)"', row[0])
        assert float(keys[4]) == layer["sqnr_db"]
        assert float(keys[5]) == layer["sparsity"]
        assert f"{layer['sparsity']:.1%}" in row[0]
    size = (finished_run / "net.pqk").stat().st_size
    assert f'data-key="{float(size)}">{size}</td>' in html


def test_the_page_of_a_run_is_always_the_same(finished_run: Path, copy_run: Copy) -> None:
    names = [path.name for path in finished_run.iterdir() if path.suffix != ".pqk"]
    run_dir = copy_run(finished_run, *names)
    assert page_of(run_dir)[0] == page_of(run_dir)[0]


def test_a_float_run(float_run: Path) -> None:
    html, parsed = page_of(float_run)
    check_whole(html, parsed)
    assert parsed.headings == ["Findings", "Training", "Histograms", "Facts"]
    assert "float training" in parsed.text
    assert "epochs=3" in parsed.text
    assert parsed.tags.count("figure") == 3 + 3  # losses, accuracy, learning rate; three layers


@pytest.mark.parametrize(
    ("names", "headings"),
    [
        (["run.json"], ["Findings", "Facts"]),
        (["metrics.jsonl"], ["Findings", "Training", "Facts"]),
        (["metrics.jsonl", "diagnostics.jsonl", "run.json"], ["Findings", "Training", "Weights", "Activations"]),
        (["step-00000048.ckpt"], ["Findings", "Histograms", "Facts"]),
    ],
    ids=["described", "metrics", "no checkpoint", "checkpoint"],
)
def test_a_run_that_has_only_begun(
    finished_run: Path, copy_run: Copy, described: dict[str, Any], names: list[str], headings: list[str]
) -> None:
    run_dir = copy_run(finished_run, *names)
    if "run.json" in names:
        (run_dir / "run.json").write_text(json.dumps(described))
    for name in ("metrics.jsonl", "diagnostics.jsonl"):
        if (run_dir / name).exists():  # one line alone
            (run_dir / name).write_text((run_dir / name).read_text().splitlines(keepends=True)[0])
    html, parsed = page_of(run_dir)
    check_whole(html, parsed)
    assert parsed.headings[: len(headings)] == headings
    if "step-00000048.ckpt" not in names:
        assert "not finished" in parsed.text
        assert "There is no checkpoint yet" in parsed.text


def test_a_torn_last_line_is_told_of(finished_run: Path, copy_run: Copy) -> None:
    run_dir = copy_run(finished_run, "metrics.jsonl")
    count = len(read_run(run_dir).metrics)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    run = read_run(run_dir)
    assert len(run.metrics) == count
    assert "its last line is not whole" in page_of(run_dir)[0]


def test_a_damaged_checkpoint_is_passed_over(finished_run: Path, copy_run: Copy) -> None:
    run_dir = copy_run(finished_run)
    newest = max(run_dir.glob("step-*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:-7])
    before = {path: path.read_bytes() for path in run_dir.iterdir()}
    run = read_run(run_dir)
    assert run.checkpoint_step is not None
    assert not run.finished
    assert "damaged" in " ".join(finding.text for finding in make_page(run, []).findings)
    assert {path: path.read_bytes() for path in run_dir.iterdir()} == before


def test_nothing_from_a_file_becomes_markup(finished_run: Path, copy_run: Copy, described: dict[str, Any]) -> None:
    run_dir = copy_run(finished_run, to="<script>alert(0)<&'\"$a$")
    (run_dir / "net.pqk").rename(run_dir / "<b onclick=1>$x$.pqk")
    described |= {"model": HOSTILE, "data": HOSTILE, "options": {HOSTILE: HOSTILE}}
    (run_dir / "run.json").write_text(json.dumps(described))

    def spoil(line: dict[str, Any]) -> None:
        for layer in line["layers"]:
            layer["name"] += HOSTILE
            layer["op"] = HOSTILE
            layer["dead_channels"] = layer["shape"][0]
        for quantizer in line["activations"]:
            quantizer["name"] += HOSTILE
            quantizer["layer"] = quantizer["op"] = HOSTILE
            quantizer["constant_channels"] = quantizer["channels"]

    change_lines(run_dir / "diagnostics.jsonl", spoil)
    change_lines(run_dir / "metrics.jsonl", lambda line: line.update({HOSTILE: HOSTILE}))
    html, parsed = page_of(run_dir)
    check_whole(html, parsed)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert html.count("Content-Security-Policy") == 1


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command(finished_run: Path, copy_run: Copy, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_dir = copy_run(finished_run)
    assert main(["report", str(run_dir), "--json", str(tmp_path / "r.json")]) == 0
    assert "pictures" in capfd.readouterr().out
    values = json.loads((tmp_path / "r.json").read_text())
    page = (run_dir / "report.html").read_text()
    assert values["page"] == str(run_dir / "report.html")
    assert values["pictures"] == page.count("<figure>") == Parsed(page).tags.count("figure")
    assert values["finished"] is True
    assert values["best"]["step"] == read_run(run_dir).best["step"]  # type: ignore[index]
    assert main(["report", str(run_dir)]) == 0  # its own page is replaced
    other = tmp_path / "page.html"
    other.write_text("mine")
    assert main(["report", str(run_dir), "-o", str(other)]) == 4
    assert other.read_text() == "mine"
    assert main(["report", str(run_dir), "-o", str(other), "--force", "--file", str(run_dir / "net.pqk")]) == 0
    assert other.read_text().count('data-key="net.pqk"') == 1


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("missing", None, 3, "no such directory"),
        ("file", b"", 3, "not a directory"),
        ("empty", {}, 3, "expected a run directory"),
        ("bad lines", {"metrics.jsonl": b'{"step": 1}\n{"st\n{"step": 3}\n'}, 3, "record 1"),
        ("other lines", {"metrics.jsonl": b"[1]\n"}, 3, "expected an object with a step"),
        ("other diagnoses", {"metrics.jsonl": b"", "diagnostics.jsonl": b'{"step": 1}\n'}, 3, "a field|every field"),
        ("other json", {"run.json": b"[]"}, 3, "expected what pqk train writes"),
        ("bad file", {"metrics.jsonl": b"", "a.pqk": b"nothing"}, 3, r"a\.pqk"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_what_is_no_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: Any, code: int, message: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
        for file, data in content.items():
            (path / file).write_bytes(data)
    assert main(["report", str(path), "-o", str(tmp_path / "r.html")]) == code
    assert re.search(message, capfd.readouterr().err)
    assert not (tmp_path / "r.html").exists()


def test_without_the_extra(finished_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else found(name))
    assert main(["report", str(finished_run)]) == 4
    assert "needs jinja2: pip install 'pqk_ext[report]'" in capfd.readouterr().err


def test_no_room_for_the_page(finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(finished_run), "-o", str(tmp_path / "no" / "r.html")]) == 4
    assert "no directory" in capfd.readouterr().err
