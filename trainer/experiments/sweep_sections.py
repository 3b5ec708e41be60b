"""A sweep's scores as sections of its page: the arms' scores and differences, the thesis beside them, a search."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.experiments import sweep_figures as figures
from trainer.experiments.summary import metric_curve
from trainer.experiments.sweep_thesis import notes, published
from trainer.metrics.bootstrap import Estimate
from trainer.metrics.measures import Measure, measures, shown
from trainer.reports.page import Block, Cell, Figure, Section, Table, Text

Arm = Mapping[str, Any]


def _columns() -> list[Measure]:
    """The measures over all types."""
    return [measure for measure in shown("sweeps") if "headline" in measure.shown]


def _labels() -> list[str]:
    return [measure.label for measure in _columns()]


def score_sections(summary: Mapping[str, Any]) -> list[Section]:
    """An ablation's or a comparison's sections. summary: of `trainer.experiments.summary.summarize`."""
    arms, kind = summary["arms"], summary["kind"]
    if not arms:
        return [Section("Scores", "No arm has a finished trial yet.", [])]
    reference = next((arm for arm in arms if arm["arm"] == summary["reference"]), None)
    sections = [_scores(arms, reference, kind), _costs(arms, kind, summary["multiply_accumulates"])]
    if reference is None or kind != "ablation":
        return [*sections, _types(arms)]
    return [*sections, *(_against_reference(arm, reference) for arm in arms if arm is not reference)]


def _scores(arms: Sequence[Arm], reference: Arm | None, kind: str) -> Section:
    drawn = [
        figures.ArmScores(arm["title"], arm["scores"]["overall"], _published_numbers(kind, arm["arm"])) for arm in arms
    ]
    figure = {"ablation": "figure 58", "comparison": "figure 52"}[kind]
    caption = f"Accuracy, mean sensitivity and mean specificity of each arm, with 95 % intervals; compare {figure}."
    if any(arm.published for arm in drawn):
        caption += " Diamonds: the thesis."
    blocks: list[Block] = [_score_table(arms, kind), Figure(figures.arm_bars(drawn, f"{kind}-arms"), caption)]
    apart = [arm for arm in arms if arm["difference"] is not None]
    if reference is not None and apart:
        title = reference["title"]
        blocks.append(_difference_table(apart, reference, kind))
        differences = [figures.ArmScores(arm["title"], arm["difference"]["overall"]) for arm in apart]
        caption = f"Differences from {title} on the same test images; intervals not corrected for how many there are."
        blocks.append(Figure(figures.arm_differences(differences, title, f"{kind}-differences"), caption))
    blocks += [
        Text(f"{arm['title']} against the reference: {arm['not_paired']}.", warning=True)
        for arm in arms
        if arm["not_paired"]
    ]
    intro = "Means over seeds, on the same real test images; the interval is below each. The thesis's numbers are of "
    return Section("Scores", f"{intro}its own data, networks and test images.", [*blocks, *notes(kind)])


def _published_numbers(kind: str, arm: str) -> dict[str, float]:
    theirs = published(kind, arm)
    numbers = {} if theirs is None else {measure: getattr(theirs, measure) for measure in figures.SHOWN}
    return {measure: number for measure, number in numbers.items() if number is not None}


def _score_table(arms: Sequence[Arm], kind: str) -> Table:
    rows = []
    for arm in arms:
        theirs = _published_numbers(kind, arm["arm"])
        numbers = [theirs.get(measure) for measure in figures.SHOWN]
        row = [Cell(arm["title"]), _seeds(arm["seeds"])]
        row += [estimate(arm["scores"]["overall"][each.name], each) for each in _columns()]
        rows.append([*row, *(Cell("-" if number is None else str(number)) for number in numbers)])
    data = arms[0]["data"]
    caption = f"Each arm over all types: {data['split']} split, {data['count']} images in {data['groups']} groups."
    head = ["arm", "seeds", *_labels(), *(f"thesis: {measure}" for measure in figures.SHOWN)]
    return Table(caption, head, rows)


def _difference_table(arms: Sequence[Arm], reference: Arm, kind: str) -> Table:
    full = published(kind, reference["arm"])
    rows = []
    for arm in arms:
        difference, theirs = arm["difference"], published(kind, arm["arm"])
        apart = "-" if theirs is None or full is None else f"{round(theirs.accuracy - full.accuracy, 2):+g}"
        paired = difference["paired_seeds"]
        row = [Cell(arm["title"]), _seeds(paired) if paired else Cell("none", "in common")]
        row += [signed(difference["overall"][each.name], each) for each in _columns()]
        rows.append([*row, Cell(apart)])
    caption = (
        f"Each arm minus {reference['title']}, in points of per cent: paired by test image, and by the seeds named "
        "here, so its mean may differ from that of the means above where other seeds have ended."
    )
    return Table(caption, ["arm", "paired seeds", *_labels(), "thesis: accuracy"], rows)


def _costs(arms: Sequence[Arm], kind: str, convention: str) -> Section:
    rows = []
    for arm in arms:
        cost, theirs = arm["cost"], published(kind, arm["arm"])
        speed, epochs = cost["images_per_second"], cost["epochs"]
        row = [Cell(arm["title"]), *(estimate(arm["scores"]["overall"][measure]) for measure in figures.SHOWN)]
        row += [
            Cell(duration(cost["seconds"]), "mean of seeds" if len(arm["seeds"]) > 1 else ""),
            Cell("-" if epochs is None else f"{epochs:g}"),
            Cell("-" if speed is None else f"{speed:.0f}"),
            Cell(f"{cost['parameters'] / 1e6:.4g}"),
            Cell(f"{cost['multiply_accumulates'] / 1e6:,.2f}", f"{cost['image_size']} px"),
        ]
        if kind == "comparison":
            row.append(Cell((theirs and theirs.time) or "-"))
        rows.append(row)
    head = ["arm", *figures.SHOWN, "training time", "epochs", "images per second"]
    head += ["parameters, millions", "multiply-accumulates, millions"]
    table = "Table 24: what" if kind == "comparison" else "What"
    caption = f"{table} each arm's classifier took. {convention}"
    if kind == "comparison":
        head.append("thesis: training time")
    intro = "Times are of the machine that the trial ran on, scoring left out of the images per second."
    return Section("Cost", intro, [Table(caption, head, rows)])


_FIGURES = "Accuracy (one type against the rest), sensitivity and specificity of each type with 95 % intervals"


def _against_reference(arm: Arm, reference: Arm) -> Section:
    """Figures 59-62: what an arm does to each type."""
    theirs = published("ablation", arm["arm"])
    compare = f"; compare {theirs.figure}" if theirs else ""
    caption = f"{_FIGURES}: {reference['title']} and {arm['title']}{compare}."
    name = f"types-{arm['arm']}"
    blocks: list[Block] = [Figure(figures.type_bars(reference, arm, name), caption)]
    rows = []
    for cell_type, row in arm["scores"]["per_type"].items():
        cells = [Cell(cell_type)]
        for measure in figures.SHOWN:
            known = reference["scores"]["per_type"].get(cell_type, {}).get(measure)
            cells += [estimate(known) if known else Cell("-"), estimate(row[measure])]
            if arm["difference"] is not None:
                cells.append(signed(arm["difference"]["per_type"][cell_type][measure]))
        rows.append(cells)
    words = ("reference", "arm", *(["difference"] if arm["difference"] is not None else []))
    head = ["type", *(f"{measure}: {word}" for measure in figures.SHOWN for word in words)]
    blocks.append(Table(f"{arm['title']} (arm) beside {reference['title']} (reference), type by type.", head, rows))
    return Section(arm["title"], "Each type against the rest; differences are paired.", blocks)


def _types(arms: Sequence[Arm]) -> Section:
    """One table for each measure: types in rows, arms in columns."""
    types = [(name, row["count"]) for name, row in arms[0]["scores"]["per_type"].items()]
    blocks: list[Block] = []
    for measure in figures.SHOWN:
        rows = [
            [
                Cell(name),
                Cell(str(count)),
                *(estimate(arm["scores"]["per_type"].get(name, {}).get(measure)) for arm in arms),
            ]
            for name, count in types
        ]
        caption = f"{measure.capitalize()} of each type against the rest, 95 % intervals below."
        blocks.append(Table(caption, ["type", "images", *(arm["title"] for arm in arms)], rows))
    return Section("Types", "The arms, type by type; table.csv has precision and F1 too.", blocks)


def search_sections(summary: Mapping[str, Any], sweep: Path) -> list[Section]:
    """A search's section: the points by their metric, its trials' curves, and the winner's test score."""
    points, metric = summary["points"], summary["metric"]
    if not points:
        return [Section("Search", "No trial has ended yet.", [])]
    best = points[0]["trials"][0]
    trials = [trial for trial in summary["trials"] if trial["metric"] is not None]
    blocks: list[Block] = [_point_table(points, metric)]
    if figures.varied_parameters(trials):
        caption = f"{_words(metric).capitalize()} of each trial at its best epoch; in colour: the best point."
        blocks.append(Figure(figures.parameter_scatter(trials, points[0]["trials"], metric, "parameters"), caption))
    curves = {trial["trial"]: metric_curve(sweep / trial["run"], metric) for trial in trials}
    caption = f"{_words(metric).capitalize()} after each epoch of every trial that ended; in colour: {best}."
    blocks.append(Figure(figures.metric_curves(curves, best, metric, "curves"), caption))
    return [Section("Search", f"{len(points)} points, by {_words(metric)}.", [*_winner(summary), *blocks])]


def _winner(summary: Mapping[str, Any]) -> list[Block]:
    if not summary["arms"]:
        return [Text("No point has a finished trial yet: none has a test score.", warning=True)]
    (winner,) = summary["arms"]
    cost, data = winner["cost"], winner["data"]
    row = [_seeds(winner["seeds"]), *(estimate(winner["scores"]["overall"][each.name], each) for each in _columns())]
    row += [Cell(duration(cost["seconds"])), Cell(f"{cost['parameters'] / 1e6:.4g}")]
    where = f"{data['split']} split, {data['count']} images in {data['groups']} groups"
    caption = f"The best point, {winner['title']}, on real test images: {where}."
    head = ["", "seeds", *_labels(), "training time", "parameters, millions"]
    return [
        Table(caption, head, [[Cell("best"), *row]]),
        Text(
            "It was chosen on validation images. Its test score is one look at the test split; those of the other "
            "points are not shown, so that none is chosen by it. The validation score of the best of many is too high."
        ),
    ]


def _point_table(points: Sequence[Mapping[str, Any]], metric: str) -> Table:
    names = list(dict.fromkeys(name for point in points for name in point["parameters"]))
    rows = [
        [
            Cell(str(place)),
            Cell(f"{point['metric']:.4f}"),
            *(Cell(_value(point["parameters"].get(name))) for name in names),
            Cell(", ".join(map(str, point["seeds"])), f"{point['finished']} of {len(point['seeds'])} finished"),
        ]
        for place, point in enumerate(points, start=1)
    ]
    caption = f"Every point, by the mean {_words(metric)} of its finished trials at their best epoch; stopped below."
    return Table(caption, ["place", _words(metric), *names, "seeds"], rows)


def estimate(value: Mapping[str, float | None] | None, measure: Measure | None = None) -> Cell:
    """A value over its interval; measure: default, a share in per cent."""
    if value is None or value["value"] is None:
        return Cell("-")
    found, measure = Estimate(**value), measure or measures()["accuracy"]
    return Cell(measure.format(found), measure.interval(found))


def signed(value: Mapping[str, float | None], measure: Measure | None = None) -> Cell:
    """A difference with its sign over its interval; measure: default, a share, in points of per cent."""
    if value["value"] is None:
        return Cell("-")
    factor, digits = (1, 3) if measure is not None and not measure.percent else (100, 1)

    def points(difference: float) -> str:
        return f"{round(factor * difference, digits) + 0.0:+.{digits}f}"  # never -0.0

    words = "no interval"
    if value["low"] is not None and value["high"] is not None:
        words = f"{points(value['low'])} to {points(value['high'])}"
    return Cell(points(value["value"]), words)


def duration(seconds: float | None) -> str:
    """'8 h 3 min', '12 min 30 s', '45 s'."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _seeds(seeds: Sequence[int]) -> Cell:
    return Cell(", ".join(map(str, seeds)), "interval of images only" if len(seeds) == 1 else "")


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _words(metric: str) -> str:
    return metric.replace("_", " ")
