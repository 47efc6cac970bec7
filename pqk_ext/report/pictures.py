"""The pictures of a report: curves over the steps, bars over the layers, histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pqk_ext.report.run import Run
from pqk_ext.report.svg import COLOURS, INK, MUTED, Picture, legend_below, new_figure, render, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["agreement", "drift", "layer_bars", "layer_lines", "schedule", "training_curves"]

BLUE, ORANGE, GREEN, PURPLE, RED, TEAL = COLOURS
_HEIGHT = 2.8
_BAR_HEIGHT = 0.19
_LONGEST_NAME = 22
_MANY_LAYERS = 60
_LOSSES = {
    "student_ce": ("student", BLUE),
    "teacher_ce": ("teacher", PURPLE),
    "kd": ("distillation", GREEN),
    "loss": ("training", BLUE),
    "val_loss": ("validation", ORANGE),
}


def short_name(name: str) -> str:
    """The end of a long name: the part in which layers differ."""
    return name if len(name) <= _LONGEST_NAME else "…" + name[-_LONGEST_NAME + 1 :]


def _mark_edges(axes: Axes, run: Run) -> None:
    """Where quantization and a teacher begin, the final sparsity is reached and phase 2 begins."""
    if run.total_steps:
        axes.set_xlim(0, run.total_steps)
    edges = [(run.quantized_step, "quantized", "left"), (run.sparse_step, "sparse", "right")]
    edges += [(run.teacher_step, "teacher", "left"), (run.phase2_step, "phase 2", "left")]
    for step, text, side in edges:
        if step is None:
            continue
        axes.axvline(step, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            text,
            (step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2 if side == "left" else -2, 1),
            textcoords="offset points",
            ha=side,
            va="bottom",
            color=MUTED,
            fontsize=8,
        )


def _steps_axis(axes: Axes, run: Run) -> None:
    _mark_edges(axes, run)
    axes.set_xlabel("step")
    axes.margins(x=0)


@styled
def training_curves(run: Run) -> list[Picture]:
    """Losses, accuracy, learning rate and sparsity over the steps; those that the run has."""
    pictures = []
    names = [name for name in _LOSSES if run.curve(name)[0] and (name != "loss" or not run.curve("student_ce")[0])]
    if names:
        figure, axes = new_figure(_HEIGHT)
        highest = []
        for name in names:
            label, colour = _LOSSES[name]
            steps, values = run.curve(name)
            axes.plot(steps, values, color=colour, label=label, **_points(steps))
            highest.append((min(values), max(values)))
        if max(high for _, high in highest) > 50 * max(1e-12, min(low for low, _ in highest)):
            axes.set_yscale("log")
        _steps_axis(axes, run)
        legend_below(figure)
        text = "; ".join(f"{_LOSSES[name][0]} {_from_to(run.curve(name)[1])}" for name in names)
        pictures.append(render("loss", "Losses", f"Losses over the steps: {text}.", figure))
    steps, values = run.curve("val_accuracy")
    if steps:
        figure, axes = new_figure(_HEIGHT)
        axes.plot(steps, [100 * value for value in values], color=BLUE, **_points(steps))
        if run.best:
            axes.plot([run.best["step"]], [100 * run.best["accuracy"]], "o", color=ORANGE, label="best")
            legend_below(figure)
        _steps_axis(axes, run)
        axes.set_ylabel("%")
        text = f"Validation accuracy over the steps: {_from_to([100 * v for v in values])} %."
        pictures.append(render("accuracy", "Validation accuracy", text, figure))
    return pictures


@styled
def schedule(run: Run) -> list[Picture]:
    """What was set: learning rate, and the sparsity that followed."""
    pictures = []
    for name, title, colour in (("sparsity", "Sparsity", GREEN), ("lr", "Learning rate", PURPLE)):
        steps, values = run.curve(name)
        if not steps:
            continue
        figure, axes = new_figure(_HEIGHT)
        if name == "sparsity":
            values = [100 * value for value in values]
            axes.set_ylabel("% of the prunable weights")
            axes.set_ylim(0, 100)
            axes.axhline(100 * (run.config or {}).get("sparsity", 0), color=MUTED, linewidth=0.8)
        axes.plot(steps, values, color=colour, **_points(steps))
        _steps_axis(axes, run)
        pictures.append(render(name, title, f"{title} over the steps: {_from_to(values)}.", figure))
    return pictures


def _points(steps: Sequence[int]) -> dict[str, Any]:
    """Few points are shown as such: a line alone would hide that there are few, and one point."""
    return {"marker": "o", "markersize": 3} if len(steps) < 20 else {}


def _from_to(values: Sequence[float]) -> str:
    return f"from {values[0]:.3g} to {values[-1]:.3g}, least {min(values):.3g}, largest {max(values):.3g}"


@styled
def layer_bars(
    name: str,
    title: str,
    layers: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    unit: str,
    *,
    limit: float | None,
) -> Picture:
    """Horizontal bars, one a layer, of parts that stand one after the other.

    Args:
        name: of the picture.
        title: of the picture.
        layers: names, from top to bottom.
        parts: label -> a value for each layer.
        unit: of the values.
        limit: right end of the axis, or None.
    """
    shown = slice(0, _MANY_LAYERS)
    figure, axes = new_figure(0.75 + _BAR_HEIGHT * len(layers[shown]))
    left = [0.0] * len(layers[shown])
    for (label, values), colour in zip(parts.items(), (BLUE, ORANGE, GREEN, PURPLE, TEAL, RED), strict=False):
        axes.barh(range(len(left)), values[shown], 0.72, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, values[shown], strict=True)]
    axes.set_yticks(range(len(left)), [short_name(layer) for layer in layers[shown]])
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.grid(False, axis="y")
    axes.set_ylim(len(left) - 0.4, -0.6)
    axes.set_xlim(0, limit)
    axes.set_xlabel(unit)
    if len(parts) > 1:
        legend_below(figure)
    totals = [sum(values[i] for values in parts.values()) for i in range(len(layers))]
    text = f"{title}, a bar for each of {len(layers)} layers: {_range_over(layers, totals, unit)}."
    if len(layers) > _MANY_LAYERS:
        text += f" The first {_MANY_LAYERS} are drawn; the table has all."
    return render(name, title, text, figure)


def _range_over(layers: Sequence[str], values: Sequence[float], unit: str) -> str:
    low, high = min(range(len(values)), key=values.__getitem__), max(range(len(values)), key=values.__getitem__)
    return f"least {values[low]:.3g} {unit} ({layers[low]}), most {values[high]:.3g} {unit} ({layers[high]})"


@styled
def layer_lines(
    name: str, title: str, layers: Sequence[str], values: Mapping[str, Sequence[float | None]], unit: str, floor: float
) -> Picture:
    """Points over the layers in the order of the network, with a line at ``floor``, below which is a warning."""
    figure, axes = new_figure(_HEIGHT)
    for (label, series), colour in zip(values.items(), COLOURS, strict=False):
        points = [(i, value) for i, value in enumerate(series) if value is not None]
        axes.plot([i for i, _ in points], [v for _, v in points], "o-", color=colour, label=label, markersize=3)
    axes.axhline(floor, color=RED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlabel("layer, in the order of the network")
    axes.set_xticks(range(len(layers)), [str(i + 1) if _labelled(i, len(layers)) else "" for i in range(len(layers))])
    if len(values) > 1:
        legend_below(figure)
    known = [
        f"{label}: {_range_over(layers, [v if v is not None else math.inf for v in series], unit)}"
        for label, series in values.items()
        if any(v is not None for v in series)
    ]
    return render(name, title, f"{title} of {len(layers)} layers. {'; '.join(known)}.", figure)


def _labelled(index: int, count: int) -> bool:
    return count <= 16 or (index + 1) % (5 if count <= 60 else 20) == 0


@styled
def drift(run: Run) -> Picture | None:
    """Step sizes relative to the start of quantization, a line for each layer and each quantizer."""
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for line in run.diagnoses:
        for kind in ("layers", "activations"):
            for entry in line[kind]:
                if entry["drift"] is not None and entry["drift"] > 0:
                    curves.setdefault((kind, entry["name"]), []).append((line["step"], entry["drift"]))
    if not curves:
        return None
    figure, axes = new_figure(_HEIGHT)
    for kind, label, colour in (("layers", "weights (median)", BLUE), ("activations", "activations", ORANGE)):
        drawn = [points for (found, _), points in curves.items() if found == kind]
        for number, points in enumerate(drawn):
            steps = [step for step, _ in points]
            axes.plot(
                steps,
                [value for _, value in points],
                color=colour,
                alpha=0.65,
                linewidth=1,
                label=None if number else label,
                **_points(steps),
            )
    axes.axhline(1, color=INK, linewidth=0.8)
    every = [value for points in curves.values() for _, value in points]
    if max(every) > 3 or min(every) < 1 / 3:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _steps_axis(axes, run)
    axes.set_ylabel("step size / its start")
    legend_below(figure)
    last = {name: points[-1][1] for (_, name), points in curves.items()}
    text = f"Step sizes over the steps: at the end {_range_over(list(last), list(last.values()), 'of the start')}."
    return render("drift", "Drift of step sizes", text, figure)


@styled
def agreement(run: Run) -> list[Picture]:
    """Student and teacher in phase 2."""
    found = [(line["step"], line["agreement"]) for line in run.diagnoses if line["agreement"]]
    if not found:
        return []
    steps = [step for step, _ in found]
    figure, axes = new_figure(_HEIGHT)
    series = (("same_class", "same class", GREEN), ("student_accuracy", "student", BLUE))
    for key, label, colour in (*series, ("teacher_accuracy", "teacher", PURPLE)):
        values = [entry[key] for _, entry in found]
        if all(value is not None for value in values):
            axes.plot(steps, [100 * v for v in values], color=colour, label=label, **_points(steps))
    axes.set_ylabel("% of the samples")
    axes.set_xlabel("step")
    legend_below(figure)
    shares = [entry["same_class"] for _, entry in found]
    text = f"Share of samples to which student and teacher give the same class: {_from_to(shares)}."
    first = render("agreement", "Student and teacher: answers", text, figure)
    figure, axes = new_figure(_HEIGHT)
    losses = [entry["kl"] for _, entry in found]
    axes.plot(steps, losses, color=TEAL, **_points(steps))
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0)
    text = f"Divergence of the student's from the teacher's softened answers: {_from_to(losses)}."
    return [first, render("divergence", "Student and teacher: divergence", text, figure)]
