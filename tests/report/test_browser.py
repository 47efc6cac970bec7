"""The page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.test_report import Parsed, shared_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="NO BROWSER: chromium is not installed; the page is not opened")


@dataclass
class Opened:
    """What a browser made of a page."""

    dom: Parsed
    html: str
    console: list[str]
    requests: set[str]
    picture: Path


@pytest.fixture
def open_page(tmp_path: Path) -> Callable[..., Opened]:
    def run(html: str, *options: str, width: int = 1280, height: int = 3000) -> Opened:
        page, log, picture = tmp_path / "page.html", tmp_path / "net.json", tmp_path / "page.png"
        page.write_text(html)
        command = [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
            *(
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-extensions",
            ),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--disable-dev-shm-usage"),
            *(f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", f"--window-size={width},{height}"),
            *(f"--screenshot={picture}", "--dump-dom", *options, page.as_uri()),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return Opened(Parsed(done.stdout), done.stdout, console, _requests(json.loads(log.read_text())), picture)

    return run


def _requests(log: dict[str, Any]) -> set[str]:
    """Addresses that the page itself asked for; what the browser does for its own sake has no origin."""
    found = [event.get("params", {}) for event in log["events"]]
    asked = [params for params in found if params.get("initiator") not in (None, "not an origin") and "url" in params]
    return {params["url"] for params in asked if not params["url"].startswith(("file:", "data:"))}


def _colours(path: Path) -> np.ndarray[Any, Any]:
    from matplotlib.image import imread

    return (imread(path)[..., :3] * 255).round().astype(np.uint8)


def test_it_shows_everything_and_asks_for_nothing(finished_run: Path, open_page: Callable[..., Opened]) -> None:
    html, parsed = shared_page(finished_run)
    opened = open_page(html)
    assert opened.console == []
    assert opened.requests == set()
    assert opened.dom.headings == parsed.headings
    assert opened.dom.tags.count("figure") == parsed.tags.count("figure") == opened.html.count("<svg role=")
    pixels = _colours(opened.picture)
    assert pixels.shape == (3000, 1280, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
    for colour in ((0x25, 0x63, 0xEB), (0xD9, 0x77, 0x06)):  # two colours of the pictures
        assert int((pixels == colour).all(-1).sum()) > 500
    assert pixels[5, 5].tolist() == [0xF6, 0xF7, 0xF9]


def test_it_is_dark_where_that_is_preferred(finished_run: Path, open_page: Callable[..., Opened]) -> None:
    opened = open_page(shared_page(finished_run)[0], "--blink-settings=preferredColorScheme=0", width=500)
    pixels = _colours(opened.picture)
    assert pixels[5, 5].tolist() == [0x12, 0x16, 0x1C]
    assert int((pixels == (0x6E, 0xA0, 0xFF)).all(-1).sum()) > 500
    assert pixels.mean() < 80


def test_nothing_is_wider_than_a_phone(finished_run: Path, open_page: Callable[..., Opened]) -> None:
    script = "document.title = [360, document.documentElement.scrollWidth].join()"
    frame = '<iframe style="width:360px;height:2000px" srcdoc="{}"></iframe>'
    inner = _with_script(shared_page(finished_run)[0], f"{script}; parent.document.title = document.title")
    opened = open_page(
        frame.format(inner.replace("&", "&amp;").replace('"', "&quot;")), "--allow-file-access-from-files"
    )
    title = re.search(r"<title>(\d+),(\d+)</title>", opened.html)
    assert title is not None
    assert int(title[2]) <= int(title[1])


def test_tables_are_sorted_by_a_click(finished_run: Path, open_page: Callable[..., Opened]) -> None:
    html = shared_page(finished_run)[0]
    head = 'document.querySelector("#weights th:nth-child(5) button")'
    for clicks, descending in ((1, False), (2, True)):
        opened = open_page(_with_script(html, f"{head}.click();" * clicks))
        assert opened.console == []
        table = opened.html[opened.html.index('id="weights"') :]
        rows = re.findall(r"<tr>(<td.*?)</tr>", table[table.index("<tbody>") : table.index("</tbody>")], re.DOTALL)
        found = [float(re.findall(r'data-key="([^"]*)"', row)[4]) for row in rows]
        assert len(found) == 3
        assert found == sorted(found, reverse=descending)
        assert f'aria-sort="{"descending" if descending else "ascending"}"' in opened.html


def test_the_tests_would_see_a_request_and_an_error(finished_run: Path, open_page: Callable[..., Opened]) -> None:
    html = shared_page(finished_run)[0]
    picture = '<img src="http://report.invalid/x.png">'
    opened = open_page(_with_script(html, "console.error('x')").replace("<footer>", f"{picture}<footer>"))
    assert opened.requests == {"http://report.invalid/x.png"}
    assert len(opened.console) == 1
    # The page's own policy stops both.
    opened = open_page(html.replace("<footer>", f"{picture}<script>document.title='run'</script><footer>"))
    assert opened.requests == set()
    assert "<title>run</title>" not in opened.html


def _with_script(html: str, script: str) -> str:
    """The page with a script of the test's at its end, and without the policy that forbids it."""
    without = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    return without.replace("</body>", f"<script>{script}</script></body>")
