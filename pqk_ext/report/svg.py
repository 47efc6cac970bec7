"""Pictures as SVG inside a page: colours from the page's style sheet, text as text, nothing from elsewhere."""

from __future__ import annotations

import dataclasses
import functools
import io
import re
from collections.abc import Callable
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "GRID", "INK", "MUTED", "Picture", "legend_below", "new_figure", "render", "standalone", "styled"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Colours that no other element has. Each becomes a variable of the style sheet, so that pictures are light and dark
# as the page is.
COLOURS = ("#a10001", "#a10002", "#a10003", "#a10004", "#a10005", "#a10006")
INK, MUTED, GRID = "#a1000a", "#a1000b", "#a1000c"
_VARIABLES = {colour: f"var(--c{number})" for number, colour in enumerate(COLOURS, 1)} | {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
}
_WIDTH = 5.0  # inches of 72 pixels: as wide as a phone, where text must still be legible
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold dollar signs
    "axes.unicode_minus": True,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.titlecolor": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)!r})",
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture of the page.

    Attributes:
        title: its heading.
        svg: the element, safe to stand in a page.
        text: what it shows, in words.
    """

    title: str
    svg: str
    text: str


def styled(draw: Callable[_P, _T]) -> Callable[_P, _T]:
    """Draws in the style of the page whatever the function draws."""

    @functools.wraps(draw)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        import matplotlib  # slow to import

        with matplotlib.rc_context(_SETTINGS):
            return draw(*args, **kwargs)

    return run


def legend_below(figure: Figure, columns: int = 4) -> None:
    """A legend that covers nothing."""
    figure.legend(loc="outside lower center", ncols=columns)


def new_figure(height: float, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of the usual width, ``height`` inches high, and its axes (an array of them if more than one).

    Call it in a function that is :func:`styled`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots(1, columns, **options)


def render(name: str, title: str, text: str, figure: Figure) -> Picture:
    """The figure as an SVG element.

    Args:
        name: short and unlike the others of the page: begins every id.
        title: heading of the picture.
        text: what it shows; the element's text alternative.
        figure: made by :func:`new_figure`.
    """
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    # The page has the font and the shape of line ends; a turn by nothing is nothing.
    svg = re.sub(r"font-family: [^;\"]*; ?|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" transform=\"rotate\(-0 [^\"]*\"", "", svg)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size is not None, "matplotlib writes one"
    head = f'<svg role="img" aria-labelledby="{name}-title {name}-text" viewBox="{size[0][9:-1]}">'
    head += f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(text)}</desc>'
    return Picture(title, head + svg[svg.index(">") + 1 :].strip(), text)


def standalone(picture: Picture) -> str:
    """The picture as a file of its own, light or dark as its reader's screen, in the colours of the page."""
    page = (files("pqk_ext.report") / "page.html").read_text()
    light, dark, *_ = re.findall(r":root \{.*?\}", page, re.DOTALL)  # the third is for printers
    style = f"{light} @media (prefers-color-scheme: dark) {{ {dark} }} svg {{ background: var(--panel); }}"
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" font-family="sans-serif"'
    head, _, body = picture.svg.partition(">")
    return f"{head.replace('<svg', f'<svg {names}', 1)}><style>{style}</style>{body}\n"
