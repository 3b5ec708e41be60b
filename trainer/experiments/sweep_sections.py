"""A sweep's scores as sections of its page: scores and differences of the arms, the thesis beside them, a search."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.experiments import sweep_figures as figures
from trainer.experiments.summary import ArmResult, Point, SweepSummary, metric_curve
from trainer.metrics.bootstrap import Estimate
from trainer.metrics.measures import Measure, measures, shown
from trainer.reports.page import Block, Cell, Figure, Section, Table, Text, estimate_cell
from trainer.reports.thesis_tables import Column, beside_thesis, sweep_number, sweep_remarks

_INTERVALS = "with 95 % intervals"


def score_sections(summary: SweepSummary) -> list[Section]:
    """Report sections of an ablation or a comparison: scores, costs, differences from the full method or by type."""
    arms, kind = summary.arms, summary.kind
    if not arms:
        return [Section("Scores", "No arm has a finished trial yet.", [])]
    reference = next((arm for arm in arms if arm.arm == summary.reference), None)
    # The thesis has no number of models that are not its own; of a comparison, each row's name says which are.
    theirs = kind if kind != "ablation" or summary.of_thesis else ""
    sections = [_scores(arms, reference, kind, theirs), _costs(arms, kind, summary.multiply_accumulates)]
    if reference is None or kind != "ablation":
        return [*sections, _types(arms)]
    return [*sections, *(_against_reference(arm, reference) for arm in arms if arm is not reference)]


def _scores(arms: Sequence[ArmResult], reference: ArmResult | None, kind: str, theirs: str) -> Section:
    """theirs: the kind of sweep, if the thesis has numbers of it, or empty."""
    drawn, published = {arm.title: arm.scores.overall for arm in arms}, [_published(theirs, arm.arm) for arm in arms]
    figure = {"ablation": "figure 58", "comparison": "figure 52"}[kind]
    caption = f"Accuracy, mean sensitivity and mean specificity of each arm, {_INTERVALS}; compare {figure}."
    if any(published):
        caption += " Diamonds: the thesis."
    blocks: list[Block] = [
        _score_table(arms, theirs),
        Figure(figures.arm_bars(drawn, published, f"{kind}-arms"), caption),
    ]
    differences = {arm.title: arm.difference.overall for arm in arms if arm.difference}
    if reference is not None and differences:
        drawing = figures.arm_differences(differences, reference.title, f"{kind}-differences")
        caption = (
            f"Differences from {reference.title} on the same test images; intervals not corrected for their number."
        )
        blocks += [_difference_table(arms, reference, theirs), Figure(drawing, caption)]
    warnings = [f"{arm.title} against the reference: {arm.not_paired}." for arm in arms if arm.not_paired]
    blocks += [Text(text, warning=True) for text in (*warnings, *sweep_remarks(theirs))]
    intro = "Means over seeds, on the same real test images; the interval is below each."
    if theirs:
        intro += " The thesis's numbers are of its own data, networks and test images."
    return Section("Scores", intro, blocks)


def _published(kind: str, arm: str) -> Mapping[str, float]:
    printed = {measure: sweep_number(kind, arm, measure) for measure in figures.SHOWN}
    return {measure: float(number) for measure, number in printed.items() if number}


def _score_table(arms: Sequence[ArmResult], kind: str) -> Table:
    data = arms[0].data
    caption = f"Each arm over all types: {data.split} split, {data.count} images in {data.groups} groups."
    theirs = [_thesis(kind, measure, f"thesis: {measure}") for measure in figures.SHOWN if kind]
    return _table(caption, [Column("seeds", _seeds_of), *_overall(), *theirs], arms)


def _difference_table(arms: Sequence[ArmResult], reference: ArmResult, kind: str) -> Table:
    full = _published(kind, reference.arm).get("accuracy")

    def paired(arm: ArmResult) -> Cell:
        seeds = arm.difference.paired_seeds if arm.difference else []
        return _seeds(seeds, arm.generator_seeds or reference.generator_seeds) if seeds else Cell("none", "in common")

    def apart(measure: Measure) -> Column[ArmResult]:
        def cell(arm: ArmResult) -> Cell | str:
            return signed(arm.difference.overall[measure.name], measure) if arm.difference else "-"

        return Column(measure.label, cell)

    def theirs(arm: ArmResult) -> str:
        own = _published(kind, arm.arm).get("accuracy")
        return "-" if own is None or full is None else f"{round(own - full, 2):+g}"

    caption = (
        f"Each arm minus {reference.title}, in percentage points: paired by test image, and by the seeds named here, "
        "so its mean may differ from that of the means above where other seeds have ended."
    )
    columns = [Column("paired seeds", paired), *map(apart, _headline())]
    columns += [Column("thesis: accuracy", theirs)] if kind else []
    return _table(caption, columns, [arm for arm in arms if arm.difference])


def _costs(arms: Sequence[ArmResult], kind: str, convention: str) -> Section:
    comparison = kind == "comparison"
    columns: list[Column[ArmResult]] = [
        *(_column(measures()[name], name) for name in figures.SHOWN),
        Column(
            "training time",
            lambda arm: Cell(duration(arm.cost.seconds), "mean of seeds" if len(arm.seeds) > 1 else ""),
        ),
        Column("epochs", lambda arm: _number(arm.cost.epochs, "g")),
        Column("images per second", lambda arm: _number(arm.cost.images_per_second, ".0f")),
        Column("parameters, millions", lambda arm: _millions(arm.cost.parameters)),
        Column(
            "multiply-accumulates, millions",
            lambda arm: Cell(f"{(arm.cost.multiply_accumulates or 0) / 1e6:,.2f}", f"{arm.cost.image_size} px"),
        ),
        *([_thesis(kind, "training time", "thesis: training time")] if comparison else []),
    ]
    caption = f"{'Table 24: what' if comparison else 'What'} each arm's classifier took. {convention}"
    intro = "Times are of the machine that the trial ran on, scoring left out of the images per second."
    return Section("Cost", intro, [_table(caption, columns, arms)])


def _against_reference(arm: ArmResult, reference: ArmResult) -> Section:
    """Figures 59-62: what an arm does to each type."""
    theirs = sweep_number("ablation", arm.arm, "types")
    caption = (
        f"Accuracy (one type against the rest), sensitivity and specificity of each type {_INTERVALS}: "
        f"{reference.title} and {arm.title}{f'; compare {theirs}' if theirs else ''}."
    )
    rows = []
    for cell_type, scores in arm.scores.per_type.items():
        cells = [Cell(cell_type)]
        for measure in figures.SHOWN:
            of_reference = reference.scores.per_type.get(cell_type, {}).get(measure)
            cells += [estimate_cell(of_reference), estimate_cell(scores[measure])]
            if arm.difference is not None:
                cells.append(signed(arm.difference.per_type[cell_type][measure]))
        rows.append(cells)
    words = ("reference", "arm", *(["difference"] if arm.difference is not None else []))
    head = ["type", *(f"{measure}: {word}" for measure in figures.SHOWN for word in words)]
    blocks: list[Block] = [
        Figure(figures.type_bars(reference, arm, f"types-{arm.arm}"), caption),
        Table(f"{arm.title} (arm) beside {reference.title} (reference), type by type.", head, rows),
    ]
    return Section(arm.title, "Each type against the rest; differences are paired.", blocks)


def _types(arms: Sequence[ArmResult]) -> Section:
    """One table for each measure: types in rows, arms in columns."""
    blocks = []
    for measure in figures.SHOWN:
        rows = []
        for name, count in arms[0].scores.images.items():
            of_arms = (arm.scores.per_type.get(name, {}).get(measure) for arm in arms)
            rows.append([Cell(name), Cell(str(count)), *map(estimate_cell, of_arms)])
        caption = f"{measure.capitalize()} of each type against the rest, 95 % intervals below."
        blocks.append(Table(caption, ["type", "images", *(arm.title for arm in arms)], rows))
    return Section("Types", "The arms, type by type; table.csv has precision and F1 too.", blocks)


def point_sections(summary: SweepSummary, sweep: Path) -> list[Section]:
    """Points by their metric, the curves of the trials, and the test score of the best where there is one."""
    title, points, metric = summary.kind.capitalize(), summary.points, str(summary.metric).replace("_", " ")
    if not points:
        return [Section(title, "No trial has ended yet.", [])]
    best = points[0].trials[0]
    trials = [trial for trial in summary.trials if trial.metric is not None]
    blocks: list[Block] = [_point_table(points, metric)]
    if figures.varied_parameters(trials):
        caption = f"{metric.capitalize()} of each trial at its best epoch; in colour: the best point."
        blocks.append(Figure(figures.parameter_scatter(trials, points[0].trials, metric, "parameters"), caption))
    curves = {trial.trial: metric_curve(sweep / trial.run, summary.metric) for trial in trials}
    caption = f"{metric.capitalize()} after each epoch of every trial that ended; in colour: {best}."
    blocks.append(Figure(figures.metric_curves(curves, best, metric, "curves"), caption))
    return [Section(title, f"{len(points)} points, by {metric}.", [*_winner(summary), *blocks])]


def _winner(summary: SweepSummary) -> list[Block]:
    if not summary.points[0].finished:
        return [Text("No point has a finished trial yet: none has a test score.", warning=True)]
    if not summary.arms:
        note = "The best of many scores on validation images is too high: score its run by evaluate.py."
        return [Text(note)]
    (winner,) = summary.arms
    cost, data = winner.cost, winner.data
    columns: list[Column[ArmResult]] = [
        Column("seeds", _seeds_of),
        *_overall(),
        Column("training time", lambda _: duration(cost.seconds)),
        Column("parameters, millions", lambda _: _millions(cost.parameters)),
    ]
    where = f"{data.split} split, {data.count} images in {data.groups} groups"
    caption = f"The best point, {winner.title}, on real test images: {where}."
    note = (
        "It was chosen on validation images. Its test score is one look at the test split; those of the other points "
        "are not shown, so that none is chosen by it. The validation score of the best of many is too high."
    )
    return [beside_thesis(caption, columns, [("best", None, winner)]), Text(note)]


def _point_table(points: Sequence[Point], metric: str) -> Table:
    names = list(dict.fromkeys(name for point in points for name in point.parameters))
    rows = [
        [
            Cell(str(place)),
            Cell(point.metric.format(factor=1, digits=4), _between(point.metric)),
            *(Cell(_value(point.parameters.get(name))) for name in names),
            Cell(", ".join(map(str, point.seeds)), f"{point.finished} of {len(point.seeds)} finished"),
            Cell(duration(point.cost.seconds if point.cost else None)),
            Cell(_number(point.cost.images_per_second if point.cost else None, ".0f")),
            Cell(_millions(point.cost.parameters if point.cost else None)),
        ]
        for place, point in enumerate(points, start=1)
    ]
    caption = (
        f"Every point, by the mean {metric} of its finished trials at their best epoch, with its 95 % interval over "
        "seeds where there are several; stopped below."
    )
    costs = ["training time", "images per second", "parameters, millions"]
    return Table(caption, ["place", metric, *names, "seeds", *costs], rows)


def _between(value: Estimate) -> str:
    return "" if value.low is None else value.interval(factor=1, digits=4)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _millions(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.4g}"


def signed(value: Estimate, measure: Measure | None = None) -> Cell:
    """A difference with its sign over its interval; measure: default, a share, in percentage points."""
    if value.value is None:
        return Cell("-")
    factor, digits = (measure or measures()["accuracy"]).scale

    def points(difference: float) -> str:
        return f"{round(factor * difference, digits) + 0.0:+.{digits}f}"  # never -0.0

    if value.low is None or value.high is None:
        return Cell(points(value.value), "no interval")
    return Cell(points(value.value), f"{points(value.low)} to {points(value.high)}")


def duration(seconds: float | None) -> str:
    """'8 h 3 min', '12 min 30 s', '45 s'; '-' for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _table(caption: str, columns: Sequence[Column[ArmResult]], arms: Sequence[ArmResult]) -> Table:
    return beside_thesis(caption, columns, [(arm.title, None, arm) for arm in arms], first="arm")


def _headline() -> list[Measure]:
    return [measure for measure in shown("sweeps") if "headline" in measure.shown]


def _overall() -> list[Column[ArmResult]]:
    """Scores over all types."""
    return [_column(measure, measure.label) for measure in _headline()]


def _column(measure: Measure, head: str) -> Column[ArmResult]:
    return Column(head, lambda arm: estimate_cell(arm.scores.overall[measure.name], *measure.scale))


def _thesis(kind: str, of: str, head: str) -> Column[ArmResult]:
    """What the thesis prints of each arm."""
    return Column(head, lambda arm: sweep_number(kind, arm.arm, of) or "-")


def _seeds_of(arm: ArmResult) -> Cell:
    return _seeds(arm.seeds, arm.generator_seeds)


def _seeds(seeds: Sequence[int], of_generators: Sequence[int] = ()) -> Cell:
    if len(of_generators) > 1:
        return Cell(", ".join(map(str, seeds)), f"generators: {', '.join(map(str, of_generators))}")
    return Cell(", ".join(map(str, seeds)), "interval of images only" if len(seeds) == 1 else "")


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
