"""The page of a sweep: scores and costs of its arms, the thesis's numbers, what was run; and its tables as files."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.disk import replace_through
from trainer.experiments.results import ArmScores
from trainer.experiments.summary import ArmResult, Cost, Point, SweepSummary, TrialResult, summarize
from trainer.experiments.sweep_sections import duration, point_sections, score_sections
from trainer.metrics.bootstrap import Estimate
from trainer.metrics.measures import shown
from trainer.metrics.records import to_json, write_json
from trainer.reports.page import Block, Cell, Facts, Folded, Section, Table, Text, write_page

_COLUMNS = ("value", "low", "high")


def write_sweep_report(sweep: Path) -> Path:
    """Write SWEEP/report.html, table.csv and results.json from what has ended so far; returns the first.

    table.csv: for each arm a line over all types, with the arm's cost, then one for each type; shares of 1. Where
    there are points and no arm, a line for each point.
    results.json: a SweepSummary.
    UserError if the folder is no sweep, or a file in it is damaged.
    """
    summary = summarize(sweep)
    write_json(sweep / "results.json", to_json(summary))
    table = io.StringIO()
    rows = _arm_rows(summary.arms) if summary.arms or not summary.points else _point_rows(summary.points)
    csv.writer(table, lineterminator="\n").writerows(rows)
    replace_through(sweep / "table.csv", table.getvalue().encode())
    by_points = summary.kind == "search" or summary.points
    scores = point_sections(summary, sweep) if by_points else score_sections(summary)
    return write_page(
        sweep / "report.html",
        f"{summary.kind.capitalize()} {summary.name}",
        _subtitle(summary),
        [_facts(summary), *_warnings(summary)],
        [*scores, _what_was_run(summary)],
    )


def _subtitle(summary: SweepSummary) -> str:
    if summary.points and not summary.arms:
        return "Scores on validation images after each epoch, as each run chooses its best by."
    words = (
        "Scores on real test images, in per cent, with 95 % intervals over seeds and groups of images; no generated "
        "image is among them."
    )
    if summary.kind == "ablation" and all(len(arm.generator_seeds) < 2 for arm in summary.arms):
        words += " Each generator was trained once: its luck is not in the intervals."
    return words


def _facts(summary: SweepSummary) -> Facts:
    statuses = [trial.status for trial in summary.trials]
    ended = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)) or "none"
    waiting = f"; {len(summary.unfinished)} under way or interrupted, {len(summary.not_begun)} not begun"
    return Facts(
        [
            ("sweep", f"{summary.name}, {summary.kind} (SHA-256 {summary.fingerprint[:12]})"),
            ("trials that ended", ended + waiting),
            ("trials are of", f"{summary.launcher}.py"),
            ("watched", f"{summary.metric} ({summary.mode})" if summary.metric else "nothing"),
            ("reference", summary.reference or "none"),
            ("intervals", summary.intervals),
        ]
    )


def _warnings(summary: SweepSummary) -> list[Block]:
    """What of the sweep is not in its scores, by name."""
    texts = []
    for arm, trials in summary.without_result.items():
        ended = ", ".join(f"{trial} {status}" for trial, status in trials.items()) or "none has ended"
        texts.append(f"Arm {arm} has no finished trial yet: {ended}.")
    # The trials of an arm without a result are named with it.
    named = {trial for trials in summary.without_result.values() for trial in trials}
    for trial in summary.trials:
        given_up = trial.status == "stopped" and summary.kind == "search"
        if trial.status != "finished" and trial.trial not in named and not given_up:
            texts.append(f"Trial {trial.trial} does not count: {trial.status}.")
    for words, names in (("Under way or interrupted", summary.unfinished), ("Not begun", summary.not_begun)):
        if names:
            texts.append(f"{words}: {', '.join(names)}.")
    return [Text(text, warning=True) for text in texts]


def _what_was_run(summary: SweepSummary) -> Section:
    blocks: list[Block] = []
    if summary.trials:
        commands = "\n\n".join(f"# {trial.trial}\n{trial.command}" for trial in summary.trials)
        blocks = [
            _data_table(summary.arms),
            _trials_table(summary.trials),
            Folded("The command that runs each trial alone", commands),
        ]
    intro = f"{len(summary.trials)} trials that ended; a trial's command alone gives its score again."
    return Section("What was run", intro, blocks)


def _data_table(arms: Sequence[ArmResult]) -> Table:
    rows = []
    for arm in arms:
        data = arm.data
        words = "none" if data.normalizer is None else json.dumps(data.normalizer, sort_keys=True)
        rows.append(
            [
                Cell(arm.title, arm.arm),
                Cell(Path(data.path).name, f"content {data.content_hash[:12]}"),
                Cell(data.split, ", ".join(data.domains)),
                Cell(str(data.count), f"in {data.groups} groups"),
                Cell(words if len(words) <= 40 else "yes", "" if len(words) <= 40 else words[:60]),
            ]
        )
    caption = "What each arm was scored on. A normalised image is a real one in another stain, and named so."
    return Table(caption, ["arm", "data set", "split, stains", "images", "normalised by"], rows)


def _trials_table(trials: Sequence[TrialResult]) -> Table:
    rows = []
    for trial in trials:
        checkpoint, best = trial.checkpoint, trial.metric
        rows.append(
            [
                Cell(trial.trial),
                Cell(str(trial.seed)),
                Cell(trial.status),
                Cell("-" if trial.epochs is None else str(trial.epochs)),
                Cell(duration(trial.seconds)),
                Cell("-" if best is None else f"{best:.4f}", "" if best is None else f"epoch {trial.metric_epoch}"),
                Cell(f"step {checkpoint.step}", checkpoint.sha256[:12]) if checkpoint else Cell("-"),
                Cell(str(trial.run), f"data set {trial.dataset_hash[:12]}" if trial.dataset_hash else ""),
            ]
        )
    head = ["trial", "seed", "status", "epochs", "training", "best on validation", "checkpoint", "run"]
    return Table("Every trial that ended.", head, rows)


def _arm_rows(arms: Sequence[ArmResult]) -> Iterator[list[Any]]:
    measures = [measure.name for measure in shown("sweeps")]
    scored = (*measures, *(f"{measure}_difference" for measure in measures))
    names = [name if column == "value" else f"{name}_{column}" for name in scored for column in _COLUMNS]
    costs = [field.name for field in dataclasses.fields(Cost)]

    def values(scores: ArmScores | None, cell_type: str) -> list[float | None]:
        found = {} if scores is None else scores.overall if cell_type == "all" else scores.per_type.get(cell_type, {})
        return [getattr(found.get(measure, Estimate(None)), column) for measure in measures for column in _COLUMNS]

    yield ["arm", "title", "cell_type", "images", "seeds", "generator_seeds", "paired_seeds", *names, *costs]
    for arm in arms:
        paired = arm.difference.paired_seeds if arm.difference else []
        seeds = [" ".join(map(str, numbers)) for numbers in (arm.seeds, arm.generator_seeds, paired)]
        for cell_type, count in {"all": arm.data.count, **arm.scores.images}.items():
            cost = [getattr(arm.cost, name) if cell_type == "all" else None for name in costs]
            both = [*values(arm.scores, cell_type), *values(arm.difference, cell_type)]
            yield [arm.arm, arm.title, cell_type, count, *seeds, *both, *cost]


def _point_rows(points: Sequence[Point]) -> Iterator[list[Any]]:
    names = list(dict.fromkeys(name for point in points for name in point.parameters))
    costs = [field.name for field in dataclasses.fields(Cost)]
    yield [*names, "seeds", "finished", "metric", "metric_low", "metric_high", *costs]
    for point in points:
        metric, seeds = point.metric, " ".join(map(str, point.seeds))
        parameters = [point.parameters.get(name) for name in names]
        cost = [getattr(point.cost, name, None) for name in costs]
        yield [*parameters, seeds, point.finished, metric.value, metric.low, metric.high, *cost]
