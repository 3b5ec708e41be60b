"""A sweep, finished or not, as one record: what its report shows and its results.json holds."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from trainer.experiments.ablation import AblationConfig, is_thesis
from trainer.experiments.results import (
    METHOD,
    RESAMPLES,
    SWEEP_FILE,
    TRIALS_FOLDER,
    Answers,
    ArmScores,
    SweepRecord,
    Trial,
    arm_scores,
    difference,
    read_answers,
    read_plan,
    read_trials,
)
from trainer.loop.log import read_records
from trainer.metrics.evaluation import ScoredCheckpoint, ScoredData
from trainer.runs.configuration import typed
from trainer.runs.run_directory import CONFIG_FILE, read_run_config
from trainer.tasks.classification.config import ClassifierRunConfig

CONVENTION = (
    "Multiply-accumulates of one image at the run's size: half of the floating-point operations that torch counts in "
    "convolutions, matrix products and attention; norms, activations and pooling do not count."
)


@dataclass(frozen=True)
class ArmData(ScoredData):
    """The images that an arm is scored on (contract C14)."""

    groups: int
    normalizer: Any  # None: none


@dataclass(frozen=True)
class Cost:
    """Cost of training an arm's classifier; means over its trials."""

    seconds: float | None  # wall time
    epochs: float | None
    images_per_second: float | None  # over all epochs, scoring left out
    image_size: int  # pixels
    parameters: int
    multiply_accumulates: int  # see CONVENTION


@dataclass(frozen=True)
class ArmResult:
    """An arm with at least one trial that counts."""

    arm: str
    title: str
    seeds: list[int]
    data: ArmData
    scores: ArmScores
    difference: ArmScores | None  # from the reference; None: it is the reference, or see not_paired
    not_paired: str | None  # why there is no difference
    cost: Cost


@dataclass(frozen=True)
class Point:
    """Trials of equal parameters in a search."""

    parameters: dict[str, Any]
    trials: list[str]
    seeds: list[int]
    finished: int
    metric: float  # mean over the finished trials; over all if none finished (stopped ones trained less)


@dataclass(frozen=True)
class TrialResult(Trial):
    """A trial that ended, its run relative to the sweep, and its best score on validation."""

    metric: float | None  # the best after any epoch
    metric_epoch: int | None
    checkpoint: ScoredCheckpoint | None


@dataclass(frozen=True)
class SweepSummary:
    """results.json."""

    name: str
    kind: str
    of_thesis: bool  # an ablation whose models are all the thesis's own
    reference: str | None
    metric: str
    mode: str
    fingerprint: str
    intervals: str
    multiply_accumulates: str
    arms: list[ArmResult]  # the reference first; of a search the best point alone
    without_result: dict[str, dict[str, str]]  # arm without a trial that counts -> its trials that ended -> status
    points: list[Point]  # of a search, the best first
    trials: list[TrialResult]
    unfinished: list[str]  # names of trials under way or interrupted
    not_begun: list[str]


def summarize(sweep: Path) -> SweepSummary:
    """All that is known of a sweep. UserError if the folder is no sweep, or a file in it is damaged."""
    plan, trials = read_plan(sweep), read_trials(sweep)
    rows = [_trial(trial, sweep, plan) for trial in trials]
    points = _points(rows, plan.mode) if plan.kind == "search" else []
    of_arm = _trials_of_arms(plan, trials, points)
    counting = {arm: [trial for trial in own if trial.counts] for arm, own in of_arm.items()}
    order = sorted((arm for arm in counting if counting[arm]), key=lambda arm: arm != plan.reference)
    answers = {arm: read_answers(counting[arm]) for arm in order}
    reference = answers.get(plan.reference or "")
    open_trials = [name for name in plan.trials if name not in {trial.trial for trial in trials}]
    unfinished = [name for name in open_trials if (sweep / TRIALS_FOLDER / name).is_dir()]
    return SweepSummary(
        **{name: getattr(plan, name) for name in ("name", "kind", "reference", "metric", "mode", "fingerprint")},
        of_thesis=plan.kind == "ablation" and _of_thesis(plan),
        intervals=f"{METHOD}; {RESAMPLES} resamples",
        multiply_accumulates=CONVENTION,
        arms=[_arm(counting[arm], answers[arm], reference) for arm in order],
        without_result={
            arm: {trial.trial: _status(trial) for trial in own} for arm, own in of_arm.items() if not counting[arm]
        },
        points=points,
        trials=rows,
        unfinished=unfinished,
        not_begun=[name for name in open_trials if name not in unfinished],
    )


def _of_thesis(plan: SweepRecord) -> bool:
    config = typed(AblationConfig, plan.sweep.get("ablation", {}), SWEEP_FILE)
    return is_thesis(config, plan.sweep.get("fixed", ()))


def metric_curve(run: Path, metric: str) -> list[tuple[int, float]]:
    """(epoch, value) of a metric after each epoch of a run in which it is finite."""
    records = [record for record in read_records(run) if record["kind"] == "epoch"]
    values = [(record["epoch"], record.get(metric)) for record in records]
    return [(epoch, value) for epoch, value in values if value is not None and math.isfinite(value)]


def _status(trial: Trial) -> str:
    return trial.status if trial.status != "finished" or trial.counts else "finished, not scored"


def _trials_of_arms(plan: SweepRecord, trials: Sequence[Trial], points: Sequence[Point]) -> dict[str, list[Trial]]:
    """The trials that ended of each arm; of a search the best point, if it has a score, as an arm."""
    if plan.kind == "search":
        best = [trial for trial in trials if points and trial.trial in points[0].trials]
        return {"best": best} if any(trial.counts for trial in best) else {}
    return {arm: [trial for trial in trials if trial.arm == arm] for arm in plan.arms}


def _points(rows: Sequence[TrialResult], mode: str) -> list[Point]:
    """Trials of equal parameters together, those with a finished one first, then by metric, best first."""
    found: dict[str, list[TrialResult]] = {}
    for row in rows:
        if row.metric is not None:
            found.setdefault(json.dumps(row.parameters, sort_keys=True), []).append(row)
    points = []
    for own in found.values():
        finished = [row for row in own if row.status == "finished"]
        metrics = [row.metric for row in finished or own if row.metric is not None]
        seeds, names = sorted(row.seed for row in own), [row.trial for row in own]
        points.append(Point(own[0].parameters, names, seeds, len(finished), sum(metrics) / len(metrics)))
    sign = -1 if mode == "max" else 1
    return sorted(points, key=lambda point: (point.finished == 0, sign * point.metric))


def _arm(trials: Sequence[Trial], answers: Answers, reference: Answers | None) -> ArmResult:
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
        list(answers.seeds),
        ArmData(**vars(record.dataset), groups=record.scores.groups, normalizer=record.normalizer),
        arm_scores(answers),
        apart,
        refused,
        _mean_cost([cost_of(trial) for trial in trials]),
    )


def _trial(trial: Trial, sweep: Path, plan: SweepRecord) -> TrialResult:
    curve = metric_curve(trial.run, plan.metric)
    best = (max if plan.mode == "max" else min)(curve, key=lambda pair: pair[1], default=(None, None))
    return TrialResult(
        **{field.name: getattr(trial, field.name) for field in dataclasses.fields(Trial)}
        | {"run": Path(os.path.relpath(trial.run, sweep)), "status": _status(trial)},
        metric=best[1],
        metric_epoch=best[0],
        checkpoint=trial.evaluation.record.checkpoint if trial.counts and trial.evaluation else None,
    )


def multiply_accumulates(network: nn.Module, image_size: int) -> int:
    """Of one image float32 [3, S, S] through a network on the CPU, in evaluation mode; see CONVENTION."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops() // 2


@functools.cache
def _network_size(model: ClassifierConfig, number_of_types: int, image_size: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a configuration's network."""
    network = build_classifier(model, number_of_types, image_size)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return parameters, multiply_accumulates(network, image_size)


def cost_of(trial: Trial) -> Cost:
    """A finished trial's cost. UserError if its config.yaml cannot be read."""
    content = read_run_config(trial.run)
    names = [field.name for field in dataclasses.fields(ClassifierRunConfig)]
    known = {name: content[name] for name in names if name in content}
    config = typed(ClassifierRunConfig, known, str(trial.run / CONFIG_FILE))
    model, image_size = dataclasses.replace(config.model, weights=None), config.data.image_size
    parameters, operations = _network_size(model, len(content["cell_types"]), image_size)
    epochs = [record for record in read_records(trial.run) if record["kind"] == "epoch"]
    seconds = sum(record["seconds"] for record in epochs)
    speed = sum(each["seconds"] * each["images_per_second"] for each in epochs) / seconds if seconds else None
    return Cost(trial.seconds, trial.epochs, speed, image_size, parameters, operations)


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    """Means over an arm's trials; sizes are those of the first."""
    means: Mapping[str, float | None] = {
        name: sum(known) / len(known) if known else None
        for name in ("seconds", "epochs", "images_per_second")
        for known in [[value for value in (getattr(cost, name) for cost in costs) if value is not None]]
    }
    return dataclasses.replace(costs[0], **means)  # type: ignore[arg-type]
