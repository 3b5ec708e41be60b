"""Scores of a sweep's trials on the test images: mean and interval of each arm, and difference from another arm."""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from trainer.metrics.bootstrap import Floats, group_weights, interval, measures_of_confusion
from trainer.metrics.evaluation import Evaluation, load_evaluations
from trainer.metrics.records import from_json

SWEEP_FILE, TRIALS_FILE, TRIALS_FOLDER = "sweep.json", "trials.jsonl", "trials"
MEASURES = ("accuracy", "sensitivity", "specificity", "precision", "f1")
RESAMPLES = 1000
METHOD = (
    "95 % percentile bootstrap: seeds, and groups of test images, drawn with replacement, every seed on the same "
    "groups; the spread over S seeds is widened by sqrt(S / (S - 1)), which resampling them lacks; with one seed over "
    "the groups alone; where every answer was right (or none), the exact binomial bound with one trial per group"
)
_BOOTSTRAP_SEED = 0
# Measures that are proportions: when all images are right, they have an exact bound.
_PROPORTIONS = ("accuracy", "sensitivity", "specificity", "precision")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def format(self) -> str:
        """'97.3', in per cent; '-' where there is no value."""
        return "-" if self.value is None else f"{100 * self.value:.1f}"

    def interval(self) -> str:
        """'95.1 to 98.8', in per cent, or 'no interval'."""
        if self.low is None or self.high is None:
            return "no interval"
        return f"{100 * self.low:.1f} to {100 * self.high:.1f}"


@dataclass(frozen=True)
class SweepRecord:
    """What a sweep is and trains: sweep.json."""

    name: str
    kind: str
    reference: str | None  # arm that the others are compared with
    metric: str
    mode: str
    sweep: dict[str, Any]  # the sweep file, as plain values
    fingerprint: str
    arms: dict[str, str]  # name -> title
    trials: dict[str, str]  # name -> content hash


@dataclass(frozen=True)
class Trial:
    """A trial that ended: a line of trials.jsonl."""

    trial: str
    arm: str
    title: str
    seed: int
    parameters: dict[str, Any]
    command: str
    run: Path  # in the file, relative to the sweep
    dataset_hash: str | None
    status: str  # finished, stopped (by the scheduler) or failed
    seconds: float | None  # wall time of its training
    epochs: int | None

    @functools.cached_property
    def evaluation(self) -> Evaluation | None:
        """The evaluation of the run's own test split, with predictions; None before there is one."""
        own = [evaluation for evaluation in load_evaluations(self.run) if evaluation.is_own_test]
        return own[0] if own and own[0].predictions is not None else None

    @property
    def counts(self) -> bool:
        """Whether it was trained to its end and scored, so that it counts for its arm."""
        return self.status == "finished" and self.evaluation is not None


@dataclass(frozen=True)
class Answers:
    """Answers of an arm's trials, one for each seed, to the same test images."""

    seeds: tuple[int, ...]
    cell_types: tuple[str, ...]
    images: tuple[tuple[str, str, str], ...]  # sorted (id, type, group); a normalised image has its raw image's id
    confusions: Floats  # [seeds, groups, C, C], counts by true type (rows) and answer; groups sorted by name


@dataclass(frozen=True)
class ArmScores:
    """Scores of an arm, or differences of two arms' scores."""

    overall: dict[str, Estimate]  # measure -> over all types; balanced_accuracy too: the mean sensitivity
    per_type: dict[str, dict[str, Estimate]]  # type -> measure -> against the rest
    images: dict[str, int]  # type -> test images
    paired_seeds: list[int] = field(default_factory=list)  # of a difference; empty: no seed in common


def read_plan(sweep: Path) -> SweepRecord:
    """The sweep's record. UserError if the folder is no sweep, or the file is damaged."""
    path = sweep / SWEEP_FILE
    if not path.is_file():
        raise UserError(f"{sweep}: no {SWEEP_FILE} there, so no sweep: give the folder that ablate.py wrote (out=DIR)")
    try:
        return from_json(SweepRecord, json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(
            f"{path}: damaged ({error}): remove it and run ablate.py again, which keeps the trials that ended"
        ) from error


def read_trials(sweep: Path) -> list[Trial]:
    """The trials that ended; of two lines of one trial the last.

    UserError if the folder is no sweep or a line is damaged; a last line that is being written is left out.
    """
    read_plan(sweep)
    path = sweep / TRIALS_FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    trials: dict[str, Trial] = {}
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n") or not line.strip():
            continue
        try:
            trial = from_json(Trial, json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: damaged ({error}): run ablate.py again to have it written anew"
            ) from error
        trials.pop(trial.trial, None)
        trials[trial.trial] = replace(trial, run=sweep / trial.run)
    return list(trials.values())


def read_answers(trials: Sequence[Trial]) -> Answers:
    """Answers of one arm's trials that count (at least one). UserError if they do not fit together."""
    trials = sorted(trials, key=lambda trial: trial.seed)
    seeds = tuple(trial.seed for trial in trials)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{trials[0].run.parent}: arm {trials[0].arm} has two trials of one seed: {seeds}")
    parts = [_answers_of(trial) for trial in trials]
    for part, trial in zip(parts, trials, strict=True):
        if (part.images, part.cell_types) != (parts[0].images, parts[0].cell_types):
            raise UserError(
                f"{trial.run}: scored on other test images than {trials[0].run}, of the same arm: remove the one "
                "whose data set changed; ablate.py does it again"
            )
    return replace(parts[0], seeds=seeds, confusions=np.concatenate([part.confusions for part in parts]))


def _answers_of(trial: Trial) -> Answers:
    evaluation = trial.evaluation
    assert evaluation is not None, "a trial that does not count"
    assert evaluation.predictions is not None
    frame, cell_types = evaluation.predictions, tuple(evaluation.record["cell_types"])
    if "parent" not in frame:
        raise UserError(f"{trial.run}/evaluation/metrics.parquet: no column parent: score the run again (evaluate.py)")
    if len(frame) != evaluation.record["dataset"]["count"]:
        raise UserError(f"{trial.run}/evaluation: metrics.parquet and metrics.json disagree: score the run again")
    raw = frame["parent"].where(frame["parent"] != "", frame["id"])
    groups = frame["group"].where(frame["group"] != "", raw)
    names, group = np.unique(groups.to_numpy(str), return_inverse=True)
    numbers = {name: number for number, name in enumerate(cell_types)}
    confusions = np.zeros((1, len(names), len(cell_types), len(cell_types)))
    np.add.at(confusions[0], (group, frame["cell_type"].map(numbers), frame["predicted"].map(numbers)), 1.0)
    images = tuple(sorted(zip(raw, frame["cell_type"], groups, strict=True)))
    return Answers((trial.seed,), cell_types, images, confusions)


def measures(confusions: Floats) -> Floats:
    """Confusion counts [..., C, C] -> [..., 5, 1 + C]: MEASURES over all types, and of each type against the rest.

    Over all types, accuracy is the share of right answers, the others are means over the types that are present.
    NaN for a type without an image.
    """
    found = measures_of_confusion(confusions)
    rows = []
    for name in MEASURES:
        of_types = found["type_accuracy" if name == "accuracy" else name]
        present = ~np.isnan(of_types)
        with np.errstate(invalid="ignore"):
            mean = np.where(present, of_types, 0.0).sum(axis=-1) / present.sum(axis=-1)
        overall = found["accuracy"] if name == "accuracy" else mean
        rows.append(np.concatenate([overall[..., None], of_types], axis=-1))
    return np.stack(rows, axis=-2)


def resampled(answers: Answers) -> Floats:
    """`measures` [B, S, 5, 1 + C] of each seed on groups drawn with replacement.

    Two arms with the same test images get the same groups in each resample.
    """
    seeds, groups, types, _ = answers.confusions.shape
    flat = answers.confusions.transpose(1, 0, 2, 3).reshape(groups, -1)
    draws = group_weights(groups, RESAMPLES, _BOOTSTRAP_SEED)
    return np.concatenate([measures((weights.T @ flat).reshape(-1, seeds, types, types)) for weights in draws])


def over_seeds(draws: Floats, purpose: int = 1) -> Floats:
    """The mean [B, ...] over seeds drawn with replacement from draws [B, S, ...].

    A resample of S seeds has (S - 1) / S of the variance of S fresh ones: its distance from the mean of all is widened
    to correct for it. purpose: another number draws other seeds.
    """
    count, seeds = draws.shape[:2]
    mean = draws.mean(axis=1)
    if seeds == 1:
        return np.asarray(mean)
    drawn = np.random.default_rng([_BOOTSTRAP_SEED, purpose]).integers(seeds, size=(count, seeds))
    of_drawn = np.take_along_axis(draws, drawn.reshape(count, seeds, *[1] * (draws.ndim - 2)), axis=1).mean(axis=1)
    return np.asarray(mean + math.sqrt(seeds / (seeds - 1)) * (of_drawn - mean))


def arm_scores(answers: Answers) -> ArmScores:
    """Mean over seeds and 95 % interval of each of MEASURES."""
    draws = np.clip(over_seeds(resampled(answers)), 0.0, 1.0)
    values = measures(answers.confusions.sum(axis=1)).mean(axis=0)
    return _scores(answers, values, draws, exact=True)


def difference(arm: Answers, reference: Answers) -> ArmScores:
    """Arm minus reference on the same test images, and on the same seeds if they have some in common.

    Raises ValueError, with the reason, if their test images or types differ.
    """
    if arm.images != reference.images:
        apart = len(set(arm.images) ^ set(reference.images))
        raise ValueError(f"not paired: {apart} test images are only in one of the two, or of another type or group")
    if arm.cell_types != reference.cell_types:
        raise ValueError("not paired: the classifiers know other types")
    paired = sorted(set(arm.seeds) & set(reference.seeds))
    draws, points = [], []
    for answers in (arm, reference):
        chosen = [answers.seeds.index(seed) for seed in paired] or list(range(len(answers.seeds)))
        draws.append(resampled(answers)[:, chosen])
        points.append(measures(answers.confusions[chosen].sum(axis=1)).mean(axis=0))
    ours, theirs = draws
    spread = over_seeds(ours - theirs) if paired else over_seeds(ours) - over_seeds(theirs, purpose=2)
    return replace(_scores(arm, points[0] - points[1], spread, exact=False), paired_seeds=paired)


def _scores(answers: Answers, values: Floats, draws: Floats, *, exact: bool) -> ArmScores:
    """values [5, 1 + C] and draws [B, 5, 1 + C] by name; exact: a bound where all answers are right."""
    behind = _groups_behind(answers)
    present = behind["sensitivity"] > 0

    def estimate(measure: str, column: int) -> Estimate:
        row = MEASURES.index(measure)
        value, of_type = float(values[row, column]), behind[measure][max(column - 1, 0)]
        if math.isnan(value):
            return Estimate(None)
        if answers.confusions.shape[1] < 2 or (column > 0 and of_type < 2):
            return Estimate(value)
        bounded = exact and measure in (_PROPORTIONS if column > 0 else ("accuracy", "sensitivity"))
        trials = behind["sensitivity"][present] if column == 0 and measure == "sensitivity" else np.array([of_type])
        return Estimate(**interval(value, draws[:, row, column], trials if bounded else None))

    overall = {measure: estimate(measure, 0) for measure in MEASURES}
    columns = list(enumerate(answers.cell_types, start=1))
    counts = answers.confusions[0].sum(axis=(0, 2))
    return ArmScores(
        overall | {"balanced_accuracy": overall["sensitivity"]},
        {name: {measure: estimate(measure, column) for measure in MEASURES} for column, name in columns},
        {name: int(counts[column - 1]) for column, name in columns},
    )


def _groups_behind(answers: Answers) -> dict[str, Floats]:
    """Number of groups that each measure of a type rests on, [C]: an interval needs two."""
    of_group = answers.confusions.sum(axis=0)
    has, said, groups = of_group.sum(axis=2), of_group.sum(axis=1), float(len(of_group))
    of_type, answered = (has > 0).sum(axis=0).astype(float), (said > 0).sum(axis=0).astype(float)
    return {
        "accuracy": np.full(len(of_type), groups),
        "sensitivity": of_type,
        "specificity": (has.sum(axis=1, keepdims=True) > has).sum(axis=0).astype(float),
        "precision": np.where(answered > 0, answered, of_type),
        "f1": of_type,
    }
