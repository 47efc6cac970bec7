"""The part of ``pqk bench`` that draws layers under the machine's limits (Williams et al., "Roofline", 2009)."""

from __future__ import annotations

import importlib.util
import io
import math
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqk_ext.cli.bench_profile import shape_text
from pqk_ext.cli.failures import ExitCode, Failure
from pqk_ext.cli.output import check_output, replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pqk_ext.cli.bench_profile import Profile
    from pqk_ext.runtime.profile import LayerTime

__all__ = ["check_picture", "draw_roofline"]

_FORMATS = (".png", ".svg")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHES = {"L2": 1 << 20, "L3": 16 << 20}  # where the system does not say
_MOST_LABELS = 30
_SMALLEST, _LARGEST = 12.0, 220.0  # areas of points, in square points
_LETTER_WIDTH, _LETTER_HEIGHT = 7.5, 14.0  # of the labels, in pixels
_COLOURS = {
    "convolution": "tab:blue",
    "1x1 convolution": "tab:orange",
    "depthwise": "tab:green",
    "linear": "tab:red",
}
_ROOF_COLOURS = {"L2": "0.35", "L3": "0.6"}


def check_picture(path: Path) -> None:
    """Refuses a ``--roofline`` target before the work begins. An older picture is replaced."""
    if path.suffix.lower() not in _FORMATS:
        raise Failure(ExitCode.USAGE, f"--roofline: expected a name that ends in {' or '.join(_FORMATS)}, got {path}")
    if importlib.util.find_spec("matplotlib") is None:
        raise Failure(ExitCode.ENVIRONMENT, "--roofline: needs matplotlib: pip install 'pqk_ext[plot]'")
    check_output(path, force=True)


def draw_roofline(profile: Profile, file: Path, path: Path) -> dict[str, Any]:
    """Writes the picture: a point for each layer that multiplies, numbered as in the list beside it.

    Returns:
        For JSON: the file's name, and the bandwidths in 10^9 bytes per second, measured here and now.
    """
    import matplotlib
    from matplotlib.figure import Figure

    bandwidths = _bandwidths()
    layers = [layer for layer in profile.layers if layer.cost.macs > 0]
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    axes, side = figure.subplots(1, 2, width_ratios=[1.75, 1])
    _draw_roofs(axes, profile.peak, bandwidths, layers)
    order = sorted(range(len(layers)), key=lambda i: -layers[i].seconds)[:_MOST_LABELS]
    _draw_layers(axes, layers, sorted(order), profile.peak)
    _draw_list(side, layers, sorted(order), profile)
    figure.suptitle(f"{file.name} on {_cpu_name()}, {profile.isa}: one sample, one thread", fontsize=13)
    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(picture, format=path.suffix.lower().removeprefix("."), dpi=110)
    replace_file(path, picture.getvalue())
    return {"picture": str(path), "gigabytes_per_second": {name: rate / 1e9 for name, rate in bandwidths.items()}}


def _draw_roofs(axes: Axes, peak: float, bandwidths: dict[str, float], layers: list[LayerTime]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    intensities = [layer.cost.intensity for layer in layers] or [1.0]
    rates = [layer.macs_per_second for layer in layers] or [peak]
    left, right = 0.6 * min(1.0, *intensities), 1.8 * max(8.0, *intensities)
    bottom, top = 0.6 * min(0.2 * peak, *rates) / 1e9, 1.5 * max(peak, *rates) / 1e9
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    axes.set_xlabel("multiply-accumulates for each byte of inputs, result and weights")
    axes.set_ylabel("GMAC/s, weights that are 0 counted as work")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color="0.9")
    axes.set_axisbelow(True)
    slowest = min(bandwidths.values())
    axes.plot([peak / slowest, right], [peak / 1e9] * 2, color="black", linewidth=1.6)
    text = f"int8 peak of this core: {peak / 1e9:.0f} GMAC/s"
    axes.annotate(text, (peak / slowest, peak / 1e9), (4, 5), textcoords="offset points")
    for name, bandwidth in bandwidths.items():
        ridge = peak / bandwidth
        axes.plot([left, ridge, right], [bandwidth * left / 1e9, peak / 1e9, peak / 1e9], color=_ROOF_COLOURS[name])
        x = max(left, bottom * 1e9 / bandwidth)  # where the line enters the picture
        x *= (ridge / x) ** 0.4
        axes.text(
            x,
            1.04 * bandwidth * x / 1e9,
            f"{name}: {bandwidth / 1e9:.0f} GB/s",
            ha="center",
            va="bottom",
            color=_ROOF_COLOURS[name],
            rotation=math.degrees(math.atan(bandwidth / 1e9)),
            rotation_mode="anchor",
            transform_rotates_text=True,
        )


def _draw_layers(axes: Axes, layers: list[LayerTime], labelled: list[int], peak: float) -> None:
    from matplotlib.collections import PathCollection

    longest = max((layer.seconds for layer in layers), default=1.0)
    for kind, colour in _COLOURS.items():
        members = [layer for layer in layers if _kind(layer) == kind]
        if not members:
            continue
        axes.scatter(
            [layer.cost.intensity for layer in members],
            [layer.macs_per_second / 1e9 for layer in members],
            s=[_SMALLEST + (_LARGEST - _SMALLEST) * layer.seconds / longest for layer in members],
            color=colour,
            alpha=0.55,
            edgecolors="white",
            linewidths=0.8,
            label=kind,
        )
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        legend = axes.legend(handles, labels, loc="lower right", title="area: time")
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([60])
    _draw_labels(axes, layers, labelled, peak)


def _draw_labels(axes: Axes, layers: list[LayerTime], labelled: list[int], peak: float) -> None:
    """Numbers beside the points, each at the first place near its point where nothing stands yet."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    where = [(layer.cost.intensity, layer.macs_per_second / 1e9) for layer in layers]
    pixels = [(float(x), float(y)) for x, y in axes.transData.transform(where)] if where else []
    taken = [(x, y, 4.0, 4.0) for x, y in pixels]  # centre and half the size
    roof = float(axes.transData.transform((1.0, peak / 1e9))[1])
    taken.append((0.0, roof, math.inf, 2.0))
    inside = axes.get_window_extent()
    for members in _clusters(pixels, labelled):
        x, y = pixels[members[0]]
        numbers = [str(index + 1) for index in members]
        text = ", ".join(numbers if len(numbers) <= 4 else [*numbers[:2], "…", numbers[-1]])
        half_width, half_height = 0.5 * _LETTER_WIDTH * len(text), 0.5 * _LETTER_HEIGHT
        for dx, dy in _places(half_width):
            box = (x + dx, y + dy, half_width, half_height)
            free = all(abs(box[0] - a) > half_width + w or abs(box[1] - b) > half_height + h for a, b, w, h in taken)
            if free and inside.x0 < box[0] - half_width and box[0] + half_width < inside.x1:
                break
        taken.append(box)
        axes.annotate(
            text,
            where[members[0]],
            (dx * 72 / figure.dpi, dy * 72 / figure.dpi),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5} if abs(dy) > 20 else None,
        )


def _clusters(pixels: list[tuple[float, float]], labelled: list[int]) -> list[list[int]]:
    """Labelled points, those that lie on one another together."""
    clusters: list[list[int]] = []
    for index in labelled:
        x, y = pixels[index]
        for members in clusters:
            first_x, first_y = pixels[members[0]]
            if abs(x - first_x) < 8 and abs(y - first_y) < 8:
                members.append(index)
                break
        else:
            clusters.append([index])
    return clusters


def _places(half_width: float) -> list[tuple[float, float]]:
    """Offsets in pixels of a label's centre from its point: right, left, below, above; then further up and down."""
    side = half_width + 9
    places = [(side, 0.0), (-side, 0.0)]
    for ring in range(1, 10):
        for dy in (-_LETTER_HEIGHT * ring, _LETTER_HEIGHT * ring):
            places += [(0.0, dy), (side, dy), (-side, dy)]
    return places


def _draw_list(side: Axes, layers: list[LayerTime], labelled: list[int], profile: Profile) -> None:
    """Number, name, shape, time and share of the peak of each labelled layer."""
    side.set_axis_off()
    rows = []
    for index in labelled:
        layer = layers[index]
        name = layer.cost.node if len(layer.cost.node) <= 20 else f"…{layer.cost.node[-19:]}"
        share = layer.macs_per_second / profile.peak
        rows.append((str(index + 1), name, shape_text(layer.cost), f"{1e6 * layer.seconds:.1f}", f"{share:.0%}"))
    others = profile.layer_seconds - sum(layers[index].seconds for index in labelled)
    rows.append(("", "all other layers", "", f"{1e6 * others:.1f}", ""))
    rows.append(("", "call", "", f"{1e6 * profile.call_seconds:.1f}", f"{profile.macs_per_second / profile.peak:.0%}"))
    head = ("", "layer", "shape", "us", "peak")
    step = min(0.042, 0.97 / (len(rows) + 1))
    for number, row in enumerate([head, *rows]):
        y = 0.98 - number * step
        weight = "bold" if number == 0 else "normal"
        for x, text, align in zip(
            (0.03, 0.05, 0.35, 0.93, 1.0), row, ("right", "left", "left", "right", "right"), strict=True
        ):
            side.text(x, y, text, ha=align, va="center", fontsize=7.5, fontweight=weight, transform=side.transAxes)


def _kind(layer: LayerTime) -> str:
    cost = layer.cost
    if cost.op not in ("conv2d", "float_conv2d"):
        return "linear"
    if cost.groups > 1 and cost.groups == cost.input_shape[0]:
        return "depthwise"
    return "1x1 convolution" if cost.kernel == (1, 1) else "convolution"


def _bandwidths() -> dict[str, float]:
    """Bytes per second from each cache: of a buffer that fills half of it."""
    from pqk_ext import _core

    return {name: _core.read_bandwidth(size // 2) for name, size in _caches().items()}


def _caches() -> dict[str, int]:
    """Bytes of the caches behind the first one."""
    sizes: dict[str, int] = {}
    for folder in sorted(_CACHES.glob("index*")):
        try:
            level, size = (folder / "level").read_text().strip(), (folder / "size").read_text().strip()
            unit = {"K": 1 << 10, "M": 1 << 20}[size[-1]]
            sizes[f"L{level}"] = int(size[:-1]) * unit
        except (OSError, KeyError, ValueError, IndexError):
            continue
    return {name: sizes.get(name, usual) for name, usual in _USUAL_CACHES.items()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
