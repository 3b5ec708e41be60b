"""A sweep, finished or not, as one record: what its report shows and its results.json holds."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.experiments.ablation import AblationConfig, is_thesis
from trainer.experiments.launches import LAUNCHER_CONFIGS
from trainer.experiments.results import (
    METHOD,
    RESAMPLES,
    SWEEP_FILE,
    TRIALS_FOLDER,
    Answers,
    ArmScores,
    SweepFacts,
    SweepRecord,
    Trial,
    arm_scores,
    difference,
    over_seeds,
    read_answers,
    read_plan,
    read_trials,
)
from trainer.loop.log import read_records
from trainer.metrics.bootstrap import Estimate
from trainer.metrics.evaluation import ScoredCheckpoint, ScoredData
from trainer.runs import registry
from trainer.runs.configuration import typed
from trainer.runs.network_size import CONVENTION
from trainer.runs.run_directory import read_run_config
from trainer.runs.task import Task


@dataclass(frozen=True)
class ArmData(ScoredData):
    """The images that an arm is scored on."""

    groups: int
    normalizer: Any  # None: none


@dataclass(frozen=True)
class Cost:
    """Cost of an arm's training; means over its trials."""

    seconds: float | None  # wall time
    epochs: float | None
    images_per_second: float | None  # over all epochs, scoring left out
    image_size: int  # pixels
    parameters: int | None  # of all networks that are trained
    multiply_accumulates: int | None  # see CONVENTION


@dataclass(frozen=True)
class ArmResult:
    """An arm with at least one trial that counts."""

    arm: str
    title: str
    seeds: list[int]
    generator_seeds: list[int]  # empty: no generator made any of its images
    data: ArmData
    scores: ArmScores
    difference: ArmScores | None  # from the reference; None: it is the reference, or see not_paired
    not_paired: str | None  # why there is no difference
    cost: Cost


@dataclass(frozen=True)
class Point:
    """The trials of a search that have the same parameters; they differ in their seeds."""

    parameters: dict[str, Any]
    trials: list[str]
    seeds: list[int]
    finished: int
    metric: Estimate  # mean over the finished trials; over all if none finished (stopped ones trained less)
    cost: Cost | None  # of the finished trials; None without one


@dataclass(frozen=True)
class TrialResult(Trial):
    """A trial that ended, its run relative to the sweep, and its best score on validation."""

    metric: float | None  # of the epoch that the run's networks are of: the best, or the last
    metric_epoch: int | None
    checkpoint: ScoredCheckpoint | None


@dataclass(frozen=True)
class SweepSummary(SweepFacts):
    """Content of results.json."""

    of_thesis: bool  # an ablation whose models are all the thesis's own
    intervals: str
    multiply_accumulates: str
    arms: list[ArmResult]  # the reference first; of a search the best point alone; empty for networks that name no type
    without_result: dict[str, dict[str, str]]  # arm without a trial that counts -> its trials that ended -> status
    points: list[Point]  # of a search, or of networks that name no type, the best first
    trials: list[TrialResult]
    unfinished: list[str]  # names of trials under way or interrupted
    not_begun: list[str]


def summarize(sweep: Path) -> SweepSummary:
    """All that is known of a sweep. UserError if the folder is no sweep, or a file in it is damaged."""
    plan, trials = read_plan(sweep), read_trials(sweep)
    task = registry.task(LAUNCHER_CONFIGS[plan.launcher].kind)
    rows = [_trial(trial, sweep, plan, task) for trial in trials]
    points = _points(rows, sweep, plan, task) if plan.kind == "search" or not task.answers_test else []
    of_arm = _trials_of_arms(plan, trials, points) if task.answers_test else {}
    counting = {arm: [trial for trial in own if trial.counts] for arm, own in of_arm.items()}
    order = sorted((arm for arm in counting if counting[arm]), key=lambda arm: arm != plan.reference)
    answers = {arm: read_answers(counting[arm]) for arm in order}
    reference = answers.get(plan.reference or "")
    open_trials = [name for name in plan.trials if name not in {trial.trial for trial in trials}]
    unfinished = [name for name in open_trials if (sweep / TRIALS_FOLDER / name).is_dir()]
    return SweepSummary(
        **{field.name: getattr(plan, field.name) for field in dataclasses.fields(SweepFacts)},
        of_thesis=plan.kind == "ablation" and _of_thesis(plan),
        intervals=f"{METHOD}; {RESAMPLES} resamples",
        multiply_accumulates=CONVENTION,
        arms=[_arm(counting[arm], answers[arm], reference, task) for arm in order],
        without_result={
            arm: {trial.trial: _status(trial, task) for trial in own}
            for arm, own in of_arm.items()
            if not counting[arm]
        },
        points=points,
        trials=rows,
        unfinished=unfinished,
        not_begun=[name for name in open_trials if name not in unfinished],
    )


def _of_thesis(plan: SweepRecord) -> bool:
    config = typed(AblationConfig, plan.sweep.get("ablation", {}), SWEEP_FILE)
    return is_thesis(config, plan.sweep.get("fixed", ()))


def metric_curve(run: Path, metric: str | None) -> list[tuple[int, float]]:
    """(epoch, value) of a metric after each epoch of a run in which it is finite."""
    values = [(record["epoch"], record.get(metric)) for record in read_records(run, "epoch")] if metric else []
    return [(epoch, value) for epoch, value in values if value is not None and math.isfinite(value)]


def _status(trial: Trial, task: Task[Any]) -> str:
    scored = trial.status != "finished" or not task.answers_test or trial.counts
    return trial.status if scored else "finished, not scored"


def _trials_of_arms(plan: SweepRecord, trials: Sequence[Trial], points: Sequence[Point]) -> dict[str, list[Trial]]:
    """The trials that ended of each arm; of a search the best point, if it has a score, as an arm."""
    if plan.kind == "search":
        best = [trial for trial in trials if points and trial.trial in points[0].trials]
        return {"best": best} if any(trial.counts for trial in best) else {}
    return {arm: [trial for trial in trials if trial.arm == arm] for arm in plan.arms}


def _points(rows: Sequence[TrialResult], sweep: Path, plan: SweepRecord, task: Task[Any]) -> list[Point]:
    """Trials of equal parameters together, those with a finished one first, then by metric, best first."""
    found: dict[str, list[TrialResult]] = {}
    for row in rows:
        if row.metric is not None:
            found.setdefault(json.dumps(row.parameters, sort_keys=True), []).append(row)
    points = []
    for own in found.values():
        finished = [row for row in own if row.status == "finished"]
        seeds, names = sorted(row.seed for row in own), [row.trial for row in own]
        costs = [cost_of(dataclasses.replace(row, run=sweep / row.run), task) for row in finished]
        cost = _mean_cost(costs) if costs else None
        points.append(Point(own[0].parameters, names, seeds, len(finished), _mean_metric(finished or own), cost))
    sign = -1 if plan.mode == "max" else 1
    return sorted(points, key=lambda point: (point.finished == 0, sign * (point.metric.value or 0.0)))


def _mean_metric(rows: Sequence[TrialResult]) -> Estimate:
    """Mean over trials, with its 95 % interval over seeds where there are several; images are not resampled."""
    values = np.array([row.metric for row in rows])
    if len(values) == 1:
        return Estimate(float(values[0]))
    draws = over_seeds(np.tile(values, (RESAMPLES, 1)), [row.seeds for row in rows])
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high))


def _arm(trials: Sequence[Trial], answers: Answers, reference: Answers | None, task: Task[Any]) -> ArmResult:
    evaluation = trials[0].evaluation
    assert evaluation is not None, "a trial that does not count"
    record, apart, refused = evaluation.record, None, None
    if reference is not None and reference is not answers:
        try:
            apart = difference(answers, reference)
        except ValueError as error:
            refused = str(error)
    return ArmResult(
        trials[0].arm,
        trials[0].title,
        sorted({seed for _, seed in answers.seeds}),
        sorted({seed for seed, _ in answers.seeds if seed is not None}),
        ArmData(**vars(record.dataset), groups=record.scores.groups, normalizer=record.normalizer),
        arm_scores(answers),
        apart,
        refused,
        _mean_cost([cost_of(trial, task) for trial in trials]),
    )


def _trial(trial: Trial, sweep: Path, plan: SweepRecord, task: Task[Any]) -> TrialResult:
    curve = metric_curve(trial.run, plan.metric)
    counting = curve[-1:] if task.keeps_last else curve
    best = (max if plan.mode == "max" else min)(counting, key=lambda pair: pair[1], default=(None, None))
    evaluated = trial.evaluation if task.answers_test and trial.counts else None
    return TrialResult(
        **{field.name: getattr(trial, field.name) for field in dataclasses.fields(Trial)}
        | {"run": Path(os.path.relpath(trial.run, sweep)), "status": _status(trial, task)},
        metric=best[1],
        metric_epoch=best[0],
        checkpoint=evaluated.record.checkpoint if evaluated else None,
    )


def cost_of(trial: Trial, task: Task[Any]) -> Cost:
    """A finished trial's cost. UserError if its config.yaml cannot be read."""
    image_size = int(read_run_config(trial.run)["data"]["image_size"])
    size = task.network_size(trial.run)
    epochs = read_records(trial.run, "epoch")
    seconds = sum(record["seconds"] for record in epochs)
    speed = sum(each["seconds"] * each["images_per_second"] for each in epochs) / seconds if seconds else None
    parameters, operations = (size.parameters, size.multiply_accumulates) if size else (None, None)
    return Cost(trial.seconds, trial.epochs, speed, image_size, parameters, operations)


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    """Means over an arm's trials; sizes are those of the first."""

    def mean(name: str) -> float | None:
        known = [value for value in (getattr(cost, name) for cost in costs) if value is not None]
        return sum(known) / len(known) if known else None

    seconds, epochs, images_per_second = map(mean, ("seconds", "epochs", "images_per_second"))
    return dataclasses.replace(costs[0], seconds=seconds, epochs=epochs, images_per_second=images_per_second)
