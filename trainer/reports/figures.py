"""Figures of reports: matplotlib drawings as inline SVG that takes its colours from the page."""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from trainer.metrics.bootstrap import Estimate
from trainer.metrics.classification import ReliabilityBin, Scores
from trainer.metrics.selective import CoveragePoint

# Stand-ins that `svg` replaces by the page's own colours, so that a figure is legible on light and on dark.
INK, MUTED, LINE, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES = ("#000011", "#000012", "#000013")
_PAGE_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    SERIES[0]: "var(--first)",
    SERIES[1]: "var(--second)",
    SERIES[2]: "var(--third)",
}
STYLE: Any = {  # matplotlib types its keys one by one
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@contextmanager
def new_drawing(height: float) -> Iterator[Drawing]:
    """An empty drawing as wide as a page, in the pages' style. height: inches."""
    with matplotlib.rc_context(STYLE):
        yield Drawing(figsize=(11, height), layout="constrained")


def grouped_bars(axes: Axes, names: Sequence[str], series: Mapping[str, Sequence[Estimate]]) -> NDArray[np.floating]:
    """Beside each other for each name, a bar of each series in per cent, its interval as a line.

    series: label -> an estimate for each name, at most three labels. Returns the bars' places [series, names].
    """
    step = 0.8 / len(series)
    offsets = (np.arange(len(series)) - (len(series) - 1) / 2) * step
    all_places = offsets[:, None] + np.arange(len(names))
    for (label, estimates), places, colour in zip(series.items(), all_places, SERIES[: len(series)], strict=True):
        axes.bar(places, [per_cent(each.value) for each in estimates], 0.89 * step, color=colour, label=label)
        lows, highs = [per_cent(each.low) for each in estimates], [per_cent(each.high) for each in estimates]
        axes.vlines(places, lows, highs, color=INK, linewidth=1.1)
    axes.grid(axis="x", visible=False)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.tick_params(axis="x", length=0)
    axes.set(ylim=(0, 100), yticks=range(0, 101, 20), ylabel="per cent")
    return all_places


def per_cent(share: float | None) -> float:
    """NaN, which is not drawn, for None."""
    return math.nan if share is None else 100 * share


def legend_above(axes: Axes, columns: int) -> None:
    """The legend over the axes, at the left."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)


def training_curves(epochs: Sequence[Mapping[str, Any]]) -> Markup:
    """Figure 51: accuracy and loss of training and validation after each epoch.

    epochs: the "epoch" lines of metrics.jsonl.
    """
    with new_drawing(3.7) as drawing:
        accuracy, loss = drawing.subplots(1, 2)
        _curve(accuracy, epochs, "train_accuracy", "training", SERIES[0])
        _curve(accuracy, epochs, "validation_accuracy", "validation", SERIES[1])
        _curve(accuracy, epochs, "validation_balanced_accuracy", "validation, balanced", SERIES[2], "--")
        _curve(loss, epochs, "train_loss", "training", SERIES[0])
        _curve(loss, epochs, "validation_loss", "validation", SERIES[1])
        accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        loss.set_ylim(bottom=0)
        for axes, title in ((accuracy, "Accuracy"), (loss, "Loss")):
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if axes.has_data():
                axes.legend()
        return svg(drawing, "training")


def per_type_bars(scores: Scores, name: str) -> Markup:
    """Thesis figures 53 and 54: accuracy, sensitivity and specificity of each type with their intervals.

    name: unique in the page.
    """
    types = {cell_type: row for cell_type, row in scores.per_type.items() if row.count}
    measures = ("accuracy", "sensitivity", "specificity")
    names = ["{}\nn={}".format(cell_type.replace(" ", "\n"), row.count) for cell_type, row in types.items()]
    with new_drawing(4.3) as drawing:
        axes = drawing.subplots()
        grouped_bars(axes, names, {measure: [row[measure] for row in types.values()] for measure in measures})
        legend_above(axes, 3)
        return svg(drawing, f"types-{name}")


def reliability_diagram(models: Sequence[tuple[str, Sequence[ReliabilityBin]]], name: str) -> Markup:
    """Accuracy against confidence, and the number of predictions, in the bins of the calibration error.

    models: a label and the bins of each, at most three.
    """
    with new_drawing(3.7) as drawing:
        accuracy, counts = drawing.subplots(1, 2, width_ratios=(1, 1.2))
        accuracy.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", label="perfectly calibrated")
        for number, (label, bins) in enumerate(models):
            points = [(row.confidence, row.accuracy) for row in bins if row.count]
            accuracy.plot(*zip(*points, strict=True), color=SERIES[number], marker="o", markersize=5, label=label)
            width = 1 / len(bins) / len(models)
            left = [row.low + (number + 0.5) * width for row in bins]
            counts.bar(left, [row.count for row in bins], 0.86 * width, color=SERIES[number], label=label)
        accuracy.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", title="Accuracy at each confidence")
        accuracy.xaxis.set_major_formatter(PercentFormatter(1.0))
        accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
        accuracy.legend(loc="lower right")
        counts.set(xlim=(0, 1), xlabel="confidence", title="Predictions at each confidence")
        counts.xaxis.set_major_formatter(PercentFormatter(1.0))
        counts.grid(axis="x", visible=False)
        return svg(drawing, f"reliability-{name}")


def risk_coverage(curve: Sequence[CoveragePoint], name: str) -> Markup:
    """Two plots over the share of images answered: accuracy of the surest answers, and the least confidence answered.

    name: unique in the page.
    """
    share = [point.coverage for point in curve]
    spread = [
        (point.accuracy.low, point.accuracy.high, point.coverage) for point in curve if point.accuracy.low is not None
    ]
    with new_drawing(3.7) as drawing:
        accuracy, confidence = drawing.subplots(1, 2)
        if spread:
            low, high, x = zip(*spread, strict=True)
            accuracy.fill_between(x, low, high, color=SERIES[0], alpha=0.2, linewidth=0, label="95 % interval")
        accuracy.plot(share, [point.accuracy.value for point in curve], color=SERIES[0], label="accuracy")
        accuracy.set(title="Accuracy of the surest answers")
        accuracy.legend(loc="lower left")
        confidence.plot(share, [point.confidence for point in curve], color=SERIES[1])
        confidence.set(title="Least confidence that is answered", ylim=(0, 1.02))
        for axes in (accuracy, confidence):
            axes.set(xlim=(0, 1.02), xlabel="share of images answered")
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        return svg(drawing, f"coverage-{name}")


def throughput(steps: Sequence[Mapping[str, Any]]) -> Markup:
    """Images per second and the share of each step spent waiting for data. steps: the "step" lines."""
    with new_drawing(2.9) as drawing:
        speed, wait = drawing.subplots(1, 2)
        _curve(speed, steps, "images_per_second", "", SERIES[0], key="step", thin=True)
        _curve(wait, steps, "data_wait", "", SERIES[1], key="step", thin=True)
        speed.set(title="Images per second", xlabel="step")
        speed.set_ylim(bottom=0)
        wait.set(title="Share of the step spent waiting for data", xlabel="step")
        wait.set_ylim(0, max(0.05, min(1.0, wait.get_ylim()[1])))
        wait.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        for axes in (speed, wait):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return svg(drawing, "throughput")


def loss_terms(steps: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> Markup:
    """Figure 40: numbers of an algorithm at each logged step, a small drawing for each. steps: the "step" lines."""
    columns = 3
    rows = -(-len(names) // columns)
    with new_drawing(2.4 * rows) as drawing:
        for number, name in enumerate(names, start=1):
            axes = drawing.add_subplot(rows, columns, number)
            _curve(axes, steps, name, "", SERIES[(number - 1) % len(SERIES)], key="step", thin=True)
            axes.set_title(name.rpartition("/")[2].replace("_", " ") if "norm" not in name else name.replace("_", " "))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        return svg(drawing, title)


def _curve(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    measure: str,
    label: str,
    colour: str,
    style: str = "-",
    key: str = "epoch",
    thin: bool = False,
) -> None:
    """Draw rows[measure] over rows[key]; missing and non-finite values are left out, long series thinned."""
    values = [(row[key], row.get(measure)) for row in rows]
    points = [(x, y) for x, y in values if isinstance(y, int | float) and math.isfinite(y)]
    if not points:
        return
    if len(points) > 600:  # more points than the drawing has pixels only make the file large
        blocks = np.array_split(np.array(points, dtype=float), 600)
        points = [(float(block[:, 0].mean()), float(block[:, 1].mean())) for block in blocks]
    xs, ys = zip(*points, strict=True)
    marker = "o" if len(points) <= 30 and not thin else ""
    axes.plot(xs, ys, style, color=colour, label=label, marker=marker, markersize=4, linewidth=1.1 if thin else 1.8)


def svg(drawing: Drawing, name: str) -> Markup:
    """The drawing as inline SVG: no prologue, no metadata, ids of its own, the page's colours and font."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'xlink:href="#', f'href="#{name}-', text)
    text = re.sub(r'font-family: [^;"]*', "font-family: inherit", text)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # HTML needs none
    for stand_in, colour in _PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    return Markup(text)  # drawn here; matplotlib has escaped its words
