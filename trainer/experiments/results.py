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
from trainer.metrics.bootstrap import Estimate, Floats, ScoredImages
from trainer.metrics.classification import estimates, scored_images
from trainer.metrics.evaluation import PROBABILITY, SavedEvaluation, own_test_evaluation
from trainer.metrics.measures import measures, shown, values_of
from trainer.metrics.records import from_json

SWEEP_FILE, TRIALS_FILE, TRIALS_FOLDER = "sweep.json", "trials.jsonl", "trials"
RESAMPLES = 1000
METHOD = (
    "95 % percentile bootstrap: seeds, and groups of test images, drawn with replacement, every seed on the same "
    "groups; the spread over S seeds is widened by sqrt(S / (S - 1)), which resampling them lacks; with one seed over "
    "the groups alone; where every answer was right (or none), the exact binomial bound with one trial per group"
)
_BOOTSTRAP_SEED = 0


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
    def evaluation(self) -> SavedEvaluation | None:
        """The evaluation of the run's own test split, with predictions; None before there is one."""
        own = own_test_evaluation(self.run)
        return own if own is not None and own.predictions is not None else None

    @property
    def counts(self) -> bool:
        """Whether it was trained to its end and scored, so that it counts for its arm."""
        return self.status == "finished" and self.evaluation is not None


@dataclass(frozen=True)
class Answers:
    """Answers of an arm's trials, one for each seed, to the same test images."""

    seeds: tuple[int, ...]
    cell_types: tuple[str, ...]
    images: tuple[tuple[str, str, str], ...]  # sorted (id, type, group); id: of the raw image, if normalised
    scored: tuple[ScoredImages, ...]  # answers of each seed; groups sorted by name

    def of_seeds(self, seeds: Sequence[int]) -> "Answers":
        """The answers of these seeds alone."""
        return replace(self, seeds=tuple(seeds), scored=tuple(self.scored[self.seeds.index(seed)] for seed in seeds))


@dataclass(frozen=True)
class ArmScores:
    """Scores of an arm, or differences of two arms' scores."""

    overall: dict[str, Estimate]  # measure -> over all types
    per_type: dict[str, dict[str, Estimate]]  # type -> measure -> against the rest
    images: dict[str, int]  # type -> test images
    paired_seeds: list[int] = field(default_factory=list)  # of a difference: the seeds that both arms have; empty: none


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
    return replace(parts[0], seeds=seeds, scored=tuple(part.scored[0] for part in parts))


def _answers_of(trial: Trial) -> Answers:
    evaluation = trial.evaluation
    assert evaluation is not None, "a trial that does not count"
    assert evaluation.predictions is not None
    frame, cell_types = evaluation.predictions, tuple(evaluation.record.cell_types)
    if "parent" not in frame:
        raise UserError(f"{trial.run}/evaluation/metrics.parquet: no column parent: score the run again (evaluate.py)")
    if len(frame) != evaluation.record.dataset.count:
        raise UserError(f"{trial.run}/evaluation: metrics.parquet and metrics.json disagree: score the run again")
    raw = frame["parent"].where(frame["parent"] != "", frame["id"])
    frame = frame.assign(raw=raw, group=frame["group"].where(frame["group"] != "", raw)).sort_values(["group", "raw"])
    numbers = {name: number for number, name in enumerate(cell_types)}
    labels, predicted = (np.asarray(frame[name].map(numbers), dtype=np.int64) for name in ("cell_type", "predicted"))
    probabilities = frame[[f"{PROBABILITY}{name}" for name in cell_types]].to_numpy(np.float64)
    scored = scored_images(probabilities, labels, frame["group"].tolist(), len(cell_types))
    images = tuple(sorted(zip(frame["raw"], frame["cell_type"], frame["group"], strict=True)))
    # The file's probabilities are rounded: two may have become equal.
    return Answers((trial.seed,), cell_types, images, (replace(scored, predicted=predicted),))


def resampled(answers: Answers) -> dict[str, Floats]:
    """Bootstrap values of each measure, [B resamples, S seeds, 1 + C]: over all types, then of each of the C types.

    Two arms with the same test images get the same groups in each resample.
    """
    chosen = shown("sweeps")
    of_seeds = [
        [values_of(part, chosen) for part in images.resamples(RESAMPLES, _BOOTSTRAP_SEED)] for images in answers.scored
    ]
    return {
        each.name: np.stack([np.concatenate([part[each.name] for part in parts]) for parts in of_seeds], axis=1)
        for each in chosen
    }


def over_seeds(draws: Floats, purpose: int = 1) -> Floats:
    """Mean over seeds, [B, ...], of draws [B, S, ...]; for each resample the S seeds are drawn with replacement.

    A mean over S resampled seeds has only (S - 1) / S of the variance of a mean over S new seeds. Its distance from the
    mean of all seeds is enlarged to correct for this. purpose: another number gives other random draws.
    """
    count, seeds = draws.shape[:2]
    mean = draws.mean(axis=1)
    if seeds == 1:
        return np.asarray(mean)
    drawn = np.random.default_rng([_BOOTSTRAP_SEED, purpose]).integers(seeds, size=(count, seeds))
    of_drawn = np.take_along_axis(draws, drawn.reshape(count, seeds, *[1] * (draws.ndim - 2)), axis=1).mean(axis=1)
    return np.asarray(mean + math.sqrt(seeds / (seeds - 1)) * (of_drawn - mean))


def arm_scores(answers: Answers) -> ArmScores:
    """Scores of one arm: the mean of each measure over the arm's seeds, with its 95 % interval."""
    draws = {name: np.clip(over_seeds(each), *measures()[name].bounds) for name, each in resampled(answers).items()}
    return _scores(answers, _points(answers), draws)


def difference(arm: Answers, reference: Answers) -> ArmScores:
    """Scores of `arm` minus scores of `reference`, on the same test images and, if any are shared, on the same seeds.

    Raises ValueError, with the reason, if their test images or types differ.
    """
    if arm.images != reference.images:
        apart = len(set(arm.images) ^ set(reference.images))
        raise ValueError(f"not paired: {apart} test images are only in one of the two, or of another type or group")
    if arm.cell_types != reference.cell_types:
        raise ValueError("not paired: the classifiers know other types")
    paired = sorted(set(arm.seeds) & set(reference.seeds))
    ours, theirs = (answers.of_seeds(paired) if paired else answers for answers in (arm, reference))
    points, their_points = _points(ours), _points(theirs)
    draws, their_draws = resampled(ours), resampled(theirs)
    spread = {
        name: over_seeds(draws[name] - their_draws[name])
        if paired
        else over_seeds(draws[name]) - over_seeds(their_draws[name], purpose=2)
        for name in draws
    }
    values = {name: points[name] - their_points[name] for name in points}
    return replace(_scores(arm, values, spread, differences=True), paired_seeds=paired)


def _points(answers: Answers) -> dict[str, Floats]:
    """Each measure [1 + C], its mean over the seeds."""
    of_seeds = [values_of(images.once, shown("sweeps")) for images in answers.scored]
    return {name: np.mean([found[name][0] for found in of_seeds], axis=0) for name in of_seeds[0]}


def _scores(
    answers: Answers, values: dict[str, Floats], draws: dict[str, Floats], differences: bool = False
) -> ArmScores:
    """values [1 + C] and draws [B, 1 + C] by measure as estimates."""
    of_types = [measure.name for measure in shown("sweeps") if measure in shown("types")]
    confusions = np.sum([images.confusions for images in answers.scored], axis=0)
    overall, per_type = estimates(shown("sweeps"), values, draws, confusions, differences)
    counts = answers.scored[0].confusions.sum(axis=(0, 2))
    return ArmScores(
        overall,
        {name: {measure: per_type[measure][i] for measure in of_types} for i, name in enumerate(answers.cell_types)},
        {name: int(counts[i]) for i, name in enumerate(answers.cell_types)},
    )
