"""A sweep, finished or not, as one table of plain values: what its report shows and its results.json holds."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.experiments.cost import CONVENTION, cost_of, mean_cost
from trainer.experiments.results import (
    METHOD,
    RESAMPLES,
    TRIALS_FOLDER,
    Answers,
    Trial,
    arm_scores,
    difference,
    read_answers,
    read_plan,
    read_trials,
)
from trainer.loop.log import read_records
from trainer.metrics.evaluation import SavedEvaluation


def summarize(sweep: Path) -> dict[str, Any]:
    """Everything that is known of a sweep, as JSON can hold it.

    "arms": those with a trial that counts, the reference first, each with its "seeds", "data", "scores", "cost" and
    its "difference" from the reference: None for the reference itself, and where "not_paired" says why there is
    none. Of a search the best point alone. "without_result": the arms without such a trial. "points": of a search,
    see `_points`. "trials": all that ended. "unfinished", "not_begun": names of those that did not.
    UserError where the folder is no sweep, or a file in it is damaged.
    """
    content, trials = read_plan(sweep), read_trials(sweep)
    rows = [_trial(trial, sweep, content) for trial in trials]
    points = _points(rows, content["mode"]) if content["kind"] == "search" else []
    of_arm = _trials_of_arms(content, trials, points)
    counting = {arm: [trial for trial in own if trial.counts] for arm, own in of_arm.items()}
    order = sorted((arm for arm in counting if counting[arm]), key=lambda arm: arm != content["reference"])
    answers = {arm: read_answers(counting[arm]) for arm in order}
    ended = {trial.trial for trial in trials}
    open_trials = [name for name in content["trials"] if name not in ended]
    unfinished = [name for name in open_trials if (sweep / TRIALS_FOLDER / name).is_dir()]
    return {
        **{name: content[name] for name in ("name", "kind", "reference", "metric", "mode", "fingerprint")},
        "interval": {"method": METHOD, "resamples": RESAMPLES},
        "multiply_accumulates": CONVENTION,
        "arms": [_arm(counting[arm], answers[arm], answers.get(content["reference"])) for arm in order],
        "without_result": [
            {"arm": arm, "title": content["arms"][arm], "trials": {t.trial: status_of(t) for t in own}}
            for arm, own in of_arm.items()
            if not counting[arm]
        ],
        "points": points,
        "trials": rows,
        "unfinished": unfinished,
        "not_begun": [name for name in open_trials if name not in unfinished],
    }


def status_of(trial: Trial) -> str:
    """The status that its line has, and whether a finished trial lacks its score."""
    return trial.status if trial.status != "finished" or trial.counts else "finished, not scored"


def _trials_of_arms(
    plan: Mapping[str, Any], trials: Sequence[Trial], points: Sequence[Mapping[str, Any]]
) -> dict[str, list[Trial]]:
    """What ended of each arm; of a search the best point, if it has a score, in an arm's place."""
    if plan["kind"] == "search":
        best = [trial for trial in trials if points and trial.trial in points[0]["trials"]]
        return {"best": best} if any(trial.counts for trial in best) else {}
    return {arm: [trial for trial in trials if trial.arm == arm] for arm in plan["arms"]}


def _points(rows: Sequence[Mapping[str, Any]], mode: str) -> list[dict[str, Any]]:
    """Trials of equal parameters together, those with a finished one first, then by their mean metric, best first.

    "metric": the mean over those that finished, where any did: what a scheduler stopped had no time to get as far.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["metric"] is not None:
            found.setdefault(json.dumps(row["parameters"], sort_keys=True), []).append(row)
    points = []
    for own in found.values():
        finished = [row["metric"] for row in own if row["status"] == "finished"]
        counting = finished or [row["metric"] for row in own]
        points.append(
            {
                "parameters": own[0]["parameters"],
                "trials": [row["trial"] for row in own],
                "seeds": sorted(row["seed"] for row in own),
                "finished": len(finished),
                "metric": sum(counting) / len(counting),
            }
        )
    sign = -1 if mode == "max" else 1
    return sorted(points, key=lambda point: (point["finished"] == 0, sign * point["metric"]))


def _arm(trials: Sequence[Trial], answers: Answers, reference: Answers | None) -> dict[str, Any]:
    evaluation = trials[0].evaluation
    assert evaluation is not None, "a trial that does not count"
    apart, refused = None, None
    if reference is not None and reference is not answers:
        try:
            apart = difference(answers, reference)
        except ValueError as error:
            refused = str(error)
    return {
        "arm": trials[0].arm,
        "title": trials[0].title,
        "seeds": list(answers.seeds),
        "data": _data(evaluation),
        "scores": arm_scores(answers),
        "difference": apart,
        "not_paired": refused,
        "cost": mean_cost([cost_of(trial) for trial in trials]),
    }


def _data(evaluation: SavedEvaluation) -> dict[str, Any]:
    """What the scores are of (contract C14)."""
    record = evaluation.record
    return dataclasses.asdict(record.dataset) | {"groups": record.scores.groups, "normalizer": record.normalizer}


def _trial(trial: Trial, sweep: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    curve = metric_curve(trial.run, content["metric"])
    best = (max if content["mode"] == "max" else min)(curve, key=lambda pair: pair[1], default=(None, None))
    return {field.name: getattr(trial, field.name) for field in dataclasses.fields(Trial)} | {
        "run": os.path.relpath(trial.run, sweep),
        "status": status_of(trial),
        "metric": best[1],
        "metric_epoch": best[0],
        "checkpoint": dataclasses.asdict(trial.evaluation.record.checkpoint)
        if trial.counts and trial.evaluation
        else None,
    }


def metric_curve(run: Path, metric: str) -> list[tuple[int, float]]:
    """(epoch, value) of a metric after each epoch of a run in which it is a finite number."""
    records = [record for record in read_records(run) if record["kind"] == "epoch"]
    values = [(record["epoch"], record.get(metric)) for record in records]
    return [(epoch, value) for epoch, value in values if value is not None and math.isfinite(value)]
