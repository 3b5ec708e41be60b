"""Figures of a sweep's report: arms side by side, an arm against its reference, a search's trials."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from trainer.experiments.summary import ArmResult, TrialResult
from trainer.metrics.bootstrap import Estimate
from trainer.reports.figures import INK, MUTED, PAPER, SERIES, grouped_bars, legend_above, new_drawing, per_cent, svg

SHOWN = ("accuracy", "sensitivity", "specificity")  # as in figures 58-62
Estimates = Mapping[str, Estimate]  # of each measure
# Numbers with a ratio of largest to smallest above this get a logarithmic axis.
_LOGARITHMIC_FROM = 50.0


def arm_bars(arms: Mapping[str, Estimates], published: Sequence[Mapping[str, float]], name: str) -> Markup:
    """Figures 52 and 58: accuracy, mean sensitivity and mean specificity of each arm, as bars with intervals.

    arms: by title. published: the thesis's values of each arm in per cent, shown as diamonds. name: prefix of the SVG's
    ids.
    """
    names = ["\n".join(textwrap.wrap(title, 14, break_long_words=False)) for title in arms]
    with new_drawing(4.6) as drawing:
        axes = drawing.subplots()
        series = {measure: [estimates[measure] for estimates in arms.values()] for measure in SHOWN}
        for places, (measure, estimates) in zip(grouped_bars(axes, names, series), series.items(), strict=True):
            for place, estimate in zip(places, estimates, strict=True):
                if estimate.value is not None:
                    _write_at_foot(axes, place, 100 * estimate.value)
            theirs = [each.get(measure, np.nan) for each in published]
            if not np.isnan(theirs).all():
                label = "thesis" if measure == SHOWN[0] else None
                axes.scatter(
                    places, theirs, s=26, marker="D", color=PAPER, edgecolors=INK, linewidths=1.1, zorder=4, label=label
                )
        legend_above(axes, 4)
        return svg(drawing, name)


def arm_differences(arms: Mapping[str, Estimates], reference: str, name: str) -> Markup:
    """Draw each arm's difference from the reference arm, in percentage points, with intervals; returns SVG.

    arms: differences by title. reference: title of the reference arm, for the axis. name: prefix of
    the SVG's ids, unique in the page.
    """
    with new_drawing(1.3 + 0.62 * len(arms)) as drawing:
        axes = drawing.subplots()
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color=MUTED, linewidth=1)
        for number, measure in enumerate(SHOWN):
            rows = [estimates[measure] for estimates in arms.values()]
            places = np.arange(len(arms)) + (number - 1) * 0.22
            axes.plot([per_cent(row.value) for row in rows], places, "o", color=SERIES[number], markersize=6,
                      label=measure)  # fmt: skip
            lows, highs = [per_cent(row.low) for row in rows], [per_cent(row.high) for row in rows]
            axes.hlines(places, lows, highs, color=SERIES[number])
        axes.set_yticks(range(len(arms)), list(arms))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.invert_yaxis()
        axes.set_xlabel(f"difference from {reference}, percentage points")
        legend_above(axes, 3)
        return svg(drawing, name)


def type_bars(reference: ArmResult, arm: ArmResult, name: str) -> Markup:
    """Figures 59-62: accuracy, sensitivity and specificity of each type, the reference beside an arm."""
    types = [cell_type for cell_type, count in reference.scores.images.items() if count]
    names = ["{}\nn={}".format(name.replace(" ", "\n"), reference.scores.images[name]) for name in types]
    with new_drawing(7.4) as drawing:
        panels = drawing.subplots(len(SHOWN), 1, sharex=True)
        for axes, measure in zip(panels, SHOWN, strict=True):
            each_arm = ((each.title, each.scores.per_type) for each in (reference, arm))
            series = {title: [scores[cell_type][measure] for cell_type in types] for title, scores in each_arm}
            grouped_bars(axes, names, series)
            axes.set_title(measure.capitalize())
        panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
        return svg(drawing, name)


def parameter_scatter(trials: Sequence[TrialResult], best: Sequence[str], metric: str, name: str) -> Markup:
    """The metric of each trial over each parameter that was searched; trials of the best point in colour.

    trials: only those that have a metric. best: names of the trials of the best point.
    """
    parameters = varied_parameters(trials)
    columns = min(3, len(parameters))
    rows = -(-len(parameters) // columns)
    with new_drawing(0.4 + 2.9 * rows) as drawing:
        for number, parameter in enumerate(parameters, start=1):
            axes = drawing.add_subplot(rows, columns, number)
            places = _places(axes, [trial.parameters.get(parameter) for trial in trials])
            for place, trial in zip(places, trials, strict=True):
                colour, size, order = (SERIES[1], 46, 3) if trial.trial in best else (SERIES[0], 26, 2)
                axes.scatter(place, trial.metric or 0.0, s=size, color=colour, zorder=order)
            axes.set_xlabel(parameter)
            if number % columns == 1 or columns == 1:
                axes.set_ylabel(metric)
        return svg(drawing, name)


def metric_curves(curves: Mapping[str, Sequence[tuple[int, float]]], best: str, metric: str, name: str) -> Markup:
    """The metric over the epochs of every trial of a search; `best` in colour. curves: trial -> [(epoch, value)]."""
    with new_drawing(4) as drawing:
        axes = drawing.subplots()
        for trial, points in curves.items():
            is_best = trial == best
            axes.plot(
                *zip(*points, strict=True),
                color=SERIES[1] if is_best else MUTED,
                marker="o" if len(points) == 1 or is_best else "",
                markersize=4,
                linewidth=2.2 if is_best else 1.0,
                zorder=3 if is_best else 2,
                label=f"best: {trial}" if is_best else None,
            )
        axes.set(xlabel="epoch", ylabel=metric)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(axes, 1)
        return svg(drawing, name)


def varied_parameters(trials: Sequence[TrialResult]) -> list[str]:
    """Names of the parameters in which trials differ, in the order of the first."""
    names = {name: None for trial in trials for name in trial.parameters}
    return [name for name in names if len({str(trial.parameters.get(name)) for trial in trials}) > 1]


def _places(axes: Axes, values: Sequence[Any]) -> list[float]:
    """Positions on the x axis: numbers as they are, anything else side by side under its name."""
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


def _write_at_foot(axes: Axes, place: float, height: float) -> None:
    """A bar's height, where neither interval nor diamond covers it; above a bar too short to hold it."""
    foot, ink = (2.0, PAPER) if height >= 12 else (height + 6, INK)
    axes.text(place, foot, f"{height:.1f}", color=ink, rotation=90, ha="center", va="bottom", fontsize=8)
