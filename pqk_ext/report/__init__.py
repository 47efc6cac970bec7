"""``pqk report``: a run directory as one HTML page. Needs the extra ``report`` (matplotlib draws, jinja2 escapes)."""

from __future__ import annotations

from pqk_ext.report.files import ExportedFile, measure
from pqk_ext.report.page import Page, make_page, to_html
from pqk_ext.report.run import Run, read_run

__all__ = ["ExportedFile", "Page", "Run", "make_page", "measure", "read_run", "to_html"]
