"""Figures of a sweep's report: arms side by side, an arm against its reference, a search's trials."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from trainer.experiments.summary import ArmResult, TrialResult
from trainer.metrics.bootstrap import Estimate
from trainer.reports.figures import INK, MUTED, PAPER, SERIES, STYLE, svg

SHOWN = ("accuracy", "sensitivity", "specificity")  # as in figures 58-62
# Numbers with a ratio of largest to smallest above this get a logarithmic axis.
_LOGARITHMIC_FROM = 50.0


@dataclass(frozen=True)
class Bars:
    """One arm of a figure: its title and the values to draw."""

    title: str
    estimates: Mapping[str, Estimate]  # measure -> value with interval
    published: Mapping[str, float] = field(default_factory=dict)  # measure -> value in the thesis, per cent


def arm_bars(arms: Sequence[Bars], name: str) -> Markup:
    """Figures 52 and 58: accuracy, mean sensitivity and mean specificity of each arm, as bars with intervals.

    Diamonds show the thesis's values. name: prefix of the SVG's ids.
    """
    with _drawing(4.6) as drawing:
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
        _name_bars(axes, ["\n".join(textwrap.wrap(arm.title, 14, break_long_words=False)) for arm in arms])
        _legend(axes, 4)
        return svg(drawing, name)


def arm_differences(arms: Sequence[Bars], reference: str, name: str) -> Markup:
    """Draw each arm's difference from the reference arm, in percentage points, with intervals; returns SVG.

    arms: their estimates are already differences. reference: title of the reference arm, for the axis. name: prefix of
    the SVG's ids, unique in the page.
    """
    with _drawing(1.3 + 0.62 * len(arms)) as drawing:
        axes = drawing.subplots()
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color=MUTED, linewidth=1)
        for number, measure in enumerate(SHOWN):
            rows = [arm.estimates[measure] for arm in arms]
            places = np.arange(len(arms)) + (number - 1) * 0.22
            axes.plot([_per_cent(row.value) for row in rows], places, "o", color=SERIES[number], markersize=6,
                      label=measure)  # fmt: skip
            for place, row in zip(places, rows, strict=True):
                axes.plot([_per_cent(row.low), _per_cent(row.high)], [place, place], color=SERIES[number])
        axes.set_yticks(range(len(arms)), [arm.title for arm in arms])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.invert_yaxis()
        axes.set_xlabel(f"difference from {reference}, percentage points")
        _legend(axes, 3)
        return svg(drawing, name)


def type_bars(reference: ArmResult, arm: ArmResult, name: str) -> Markup:
    """Figures 59-62: accuracy, sensitivity and specificity of each type, the reference beside an arm."""
    types = [cell_type for cell_type, count in reference.scores.images.items() if count]
    with _drawing(7.4) as drawing:
        panels = drawing.subplots(len(SHOWN), 1, sharex=True)
        for axes, measure in zip(panels, SHOWN, strict=True):
            for number, each in enumerate((reference, arm)):
                places = np.arange(len(types)) + (number - 0.5) * 0.38
                rows = [each.scores.per_type[cell_type][measure] for cell_type in types]
                _bars(axes, places, rows, 0.34, SERIES[number], each.title)
            _name_bars(axes, [f"{name.replace(' ', chr(10))}\nn={reference.scores.images[name]}" for name in types])
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
    with _drawing(0.4 + 2.9 * rows) as drawing:
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
    with _drawing(4) as drawing:
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
        _legend(axes, 1)
        return svg(drawing, name)


def varied_parameters(trials: Sequence[TrialResult]) -> list[str]:
    """Names of the parameters in which trials differ, in the order of the first."""
    names = {name: None for trial in trials for name in trial.parameters}
    return [name for name in names if len({str(trial.parameters.get(name)) for trial in trials}) > 1]


@contextmanager
def _drawing(height: float) -> Iterator[Drawing]:
    with matplotlib.rc_context(STYLE):
        yield Drawing(figsize=(11, height), layout="constrained")


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)


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


def _bars(
    axes: Axes, places: Any, estimates: Sequence[Estimate], width: float, colour: str, label: str, values: bool = False
) -> None:
    """A bar for each estimate, in per cent, with its interval as a line; values: written at its foot."""
    heights = [_per_cent(row.value) for row in estimates]
    axes.bar(places, heights, width, color=colour, label=label)
    for place, height, row in zip(places, heights, estimates, strict=True):
        axes.plot([place, place], [_per_cent(row.low), _per_cent(row.high)], color=INK, linewidth=1.1)
        if values and not np.isnan(height):
            # Neither interval nor diamond covers it there; a bar too short to hold it has it above.
            foot, ink = (2.0, PAPER) if height >= 12 else (height + 6, INK)
            axes.text(place, foot, f"{height:.1f}", color=ink, rotation=90, ha="center", va="bottom", fontsize=8)


def _per_cent(share: float | None) -> float:
    """NaN, which is not drawn, for None."""
    return float("nan") if share is None else 100 * share


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.grid(axis="x", visible=False)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("per cent")
