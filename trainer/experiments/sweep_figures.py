"""The drawings of a sweep's report: arms side by side, an arm against its reference, a search's trials."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from trainer.reports.figures import INK, MUTED, PAPER, SERIES, STYLE, svg

SHOWN = ("accuracy", "sensitivity", "specificity")  # as figures 58-62
# Numbers whose largest is this many times the smallest are drawn on a logarithmic axis.
_LOGARITHMIC_FROM = 50.0


@dataclass(frozen=True)
class ArmScores:
    """What is drawn of one arm: its estimates by measure, and the thesis's numbers in per cent beside them."""

    title: str
    estimates: Mapping[str, Mapping[str, float | None]]
    published: Mapping[str, float] = field(default_factory=dict)


def arm_bars(arms: Sequence[ArmScores], name: str) -> Markup:
    """Figures 52 and 58: accuracy, mean sensitivity and mean specificity of each arm, intervals, thesis as diamonds."""
    with matplotlib.rc_context(STYLE):
        drawing = Drawing(figsize=(11, 4.6), layout="constrained")
        axes = drawing.subplots()
        for number, measure in enumerate(SHOWN):
            places = np.arange(len(arms)) + (number - 1) * 0.27
            _bars(axes, places, [arm.estimates[measure] for arm in arms], 0.24, SERIES[number], measure, values=True)
            theirs = [arm.published.get(measure, np.nan) for arm in arms]
            if not np.isnan(theirs).all():
                label = "thesis" if number == 0 else None
                axes.scatter(
                    places, theirs, s=26, marker="D", color=PAPER, edgecolors=INK, linewidths=1.1, zorder=4, label=label
                )
        _name_bars(axes, [_broken(arm.title) for arm in arms])
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
        return svg(drawing, name)


def arm_differences(arms: Sequence[ArmScores], reference: str, name: str) -> Markup:
    """Each arm's paired differences from the reference, in points of per cent, with their intervals."""
    with matplotlib.rc_context(STYLE):
        drawing = Drawing(figsize=(11, 1.3 + 0.62 * len(arms)), layout="constrained")
        axes = drawing.subplots()
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color=MUTED, linewidth=1)
        for number, measure in enumerate(SHOWN):
            rows = [arm.estimates[measure] for arm in arms]
            places = np.arange(len(arms)) + (number - 1) * 0.22
            values = [np.nan if row["value"] is None else 100 * row["value"] for row in rows]
            axes.plot(values, places, "o", color=SERIES[number], markersize=6, label=measure)
            for place, row in zip(places, rows, strict=True):
                if row["low"] is not None and row["high"] is not None:
                    axes.plot([100 * row["low"], 100 * row["high"]], [place, place], color=SERIES[number])
        axes.set_yticks(range(len(arms)), [arm.title for arm in arms])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.invert_yaxis()
        axes.set_xlabel(f"difference from {reference}, points of per cent")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
        return svg(drawing, name)


def type_bars(reference: Mapping[str, Any], arm: Mapping[str, Any], name: str) -> Markup:
    """Figures 59-62: accuracy, sensitivity and specificity of each type, the reference beside an arm.

    reference, arm: of `trainer.experiments.summary.summarize`'s "arms".
    """
    tables = [each["scores"]["per_type"] for each in (reference, arm)]
    types = [cell_type for cell_type, row in tables[0].items() if row["count"]]
    with matplotlib.rc_context(STYLE):
        drawing = Drawing(figsize=(11, 7.4), layout="constrained")
        panels = drawing.subplots(len(SHOWN), 1, sharex=True)
        for axes, measure in zip(panels, SHOWN, strict=True):
            for number, (table, each) in enumerate(zip(tables, (reference, arm), strict=True)):
                places = np.arange(len(types)) + (number - 0.5) * 0.38
                rows = [table[cell_type][measure] for cell_type in types]
                _bars(axes, places, rows, 0.34, SERIES[number], each["title"])
            counts = [tables[0][cell_type]["count"] for cell_type in types]
            names = [cell_type.replace(" ", "\n") for cell_type in types]
            _name_bars(axes, [f"{cell_type}\nn={count}" for cell_type, count in zip(names, counts, strict=True)])
            axes.set_title(measure.capitalize())
        panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
        return svg(drawing, name)


def parameter_scatter(trials: Sequence[Mapping[str, Any]], best: Sequence[str], metric: str, name: str) -> Markup:
    """The metric of each trial over each parameter that was searched; the best point in colour.

    trials: of `summarize`'s "trials", those with a metric. best: names of the best point's.
    """
    parameters = varied_parameters(trials)
    columns = min(3, len(parameters))
    rows = -(-len(parameters) // columns)
    with matplotlib.rc_context(STYLE):
        drawing = Drawing(figsize=(11, 0.4 + 2.9 * rows), layout="constrained")
        for number, parameter in enumerate(parameters, start=1):
            axes = drawing.add_subplot(rows, columns, number)
            places = _places(axes, [trial["parameters"].get(parameter) for trial in trials])
            for place, trial in zip(places, trials, strict=True):
                is_best = trial["trial"] in best
                colour, size = (SERIES[1], 46) if is_best else (SERIES[0], 26)
                axes.scatter(place, trial["metric"], s=size, color=colour, zorder=3 if is_best else 2)
            axes.set_xlabel(parameter)
            if number % columns == 1 or columns == 1:
                axes.set_ylabel(_words(metric))
        return svg(drawing, name)


def metric_curves(curves: Mapping[str, Sequence[tuple[int, float]]], best: str, metric: str, name: str) -> Markup:
    """The metric over the epochs of every trial of a search, one in colour. curves: trial -> (epoch, value)."""
    with matplotlib.rc_context(STYLE):
        drawing = Drawing(figsize=(11, 4), layout="constrained")
        axes = drawing.subplots()
        for trial, points in curves.items():
            is_best = trial == best
            marker = "o" if len(points) == 1 or is_best else ""
            axes.plot(*zip(*points, strict=True), color=SERIES[1] if is_best else MUTED, marker=marker, markersize=4,
                      linewidth=2.2 if is_best else 1.0, zorder=3 if is_best else 2,
                      label=f"best: {trial}" if is_best else None)  # fmt: skip
        axes.set(xlabel="epoch", ylabel=_words(metric))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
        return svg(drawing, name)


def varied_parameters(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the parameters in which trials differ, in the order of the first."""
    names = {name: None for trial in trials for name in trial["parameters"]}
    return [name for name in names if len({str(trial["parameters"].get(name)) for trial in trials}) > 1]


def _places(axes: Axes, values: Sequence[Any]) -> list[float]:
    """Where values stand on the axis of x: numbers as they are, anything else side by side under its name."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        if min(values) > 0 and max(values) / min(values) >= _LOGARITHMIC_FROM:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        return [float(value) for value in values]
    names = sorted({str(value) for value in values})
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    return [float(names.index(str(value))) for value in values]


def _bars(
    axes: Axes,
    places: Any,
    estimates: Sequence[Mapping[str, float | None]],
    width: float,
    colour: str,
    label: str,
    values: bool = False,
) -> None:
    """One bar for each estimate, in per cent, with its interval as a line; values: written at its foot."""
    heights = [np.nan if row["value"] is None else 100 * row["value"] for row in estimates]
    axes.bar(places, heights, width, color=colour, label=label)
    for place, height, row in zip(places, heights, estimates, strict=True):
        if row["low"] is not None and row["high"] is not None:
            axes.plot([place, place], [100 * row["low"], 100 * row["high"]], color=INK, linewidth=1.1)
        if values and not np.isnan(height):
            # There no interval and no diamond covers it; a bar too short to hold it has it above.
            inside = height >= 12
            foot, ink = (2.0, PAPER) if inside else (height + 6, INK)
            axes.text(place, foot, f"{height:.1f}", color=ink, rotation=90, ha="center", va="bottom", fontsize=8)


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.grid(axis="x", visible=False)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("per cent")


def _broken(name: str) -> str:
    """A name in lines of some fourteen letters."""
    return "\n".join(textwrap.wrap(name, 14, break_long_words=False))


def _words(metric: str) -> str:
    return metric.replace("_", " ")
