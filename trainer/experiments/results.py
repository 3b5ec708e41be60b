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
from trainer.metrics.measures import shown, values_of
from trainer.metrics.records import from_json

SWEEP_FILE, TRIALS_FILE, TRIALS_FOLDER = "sweep.json", "trials.jsonl", "trials"
RESAMPLES = 1000
METHOD = (
    "95 % percentile bootstrap: seeds, and groups of test images, drawn with replacement, every seed on the same "
    "groups; where generators have several seeds, these are drawn too, and the deviations of both draws are added; the "
    "spread over S seeds is widened by sqrt(S / (S - 1)), which resampling them lacks; with one seed over the groups "
    "alone; where every answer was right (or none), the exact binomial bound with one trial per group"
)
_BOOTSTRAP_SEED, _PURPOSES = 0, 2

# Of the generators (None: there are none), of the training.
Seeds = tuple[int | None, int]


@dataclass(frozen=True)
class SweepFacts:
    """What kind of sweep it is, and how its trials are compared."""

    name: str
    kind: str
    launcher: str  # what a trial runs
    reference: str | None  # arm that the others are compared with
    metric: str | None  # the score of an epoch that trials are compared by
    mode: str  # max or min: which end of it is better
    fingerprint: str


@dataclass(frozen=True)
class SweepRecord(SweepFacts):
    """Content of sweep.json: what kind of sweep it is, and what it trains."""

    sweep: dict[str, Any]  # the sweep file, as plain values
    arms: dict[str, str]  # name -> title
    trials: dict[str, str]  # name -> content hash


@dataclass(frozen=True)
class Trial:
    """A trial that ended: a line of trials.jsonl."""

    trial: str
    arm: str
    title: str
    generator_seed: int | None  # of the generators of its images; None: no generator made any
    seed: int
    parameters: dict[str, Any]
    command: str
    run: Path  # in the file, relative to the sweep
    dataset_hash: str | None
    status: str  # finished, stopped (by the scheduler) or failed
    seconds: float | None  # wall time of its training
    epochs: int | None

    @property
    def seeds(self) -> "Seeds":
        """Of generators and of the trial."""
        return self.generator_seed, self.seed

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
    """Answers of an arm's trials to the same test images."""

    seeds: tuple[Seeds, ...]  # of each trial
    cell_types: tuple[str, ...]
    images: tuple[tuple[str, str, str], ...]  # sorted (id, type, group); id: of the raw image, if normalised
    scored: tuple[ScoredImages, ...]  # answers of each trial; groups sorted by name

    def of_seeds(self, seeds: Sequence[Seeds]) -> "Answers":
        """The answers of these trials, in this order."""
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
    """Answers of one arm's trials (at least one) to the test images, sorted by seeds.

    UserError for two trials of the same seeds, and for trials that were scored on different test images.
    """
    trials = sorted(trials, key=lambda trial: (trial.generator_seed or 0, trial.seed))
    seeds = tuple(trial.seeds for trial in trials)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{trials[0].run.parent}: arm {trials[0].arm} has two trials of the same seeds: {seeds}")
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
    return Answers((trial.seeds,), cell_types, images, (replace(scored, predicted=predicted),))


def resampled(answers: Answers) -> Floats:
    """Bootstrap values [B resamples, T trials, measures, 1 + C]: over all types, then of each of the C types.

    Two arms with the same test images get the same groups in each resample.
    """
    chosen = shown("sweeps")
    of_trials = [
        np.concatenate([values_of(chosen, part) for part in images.resamples(RESAMPLES, _BOOTSTRAP_SEED)])
        for images in answers.scored
    ]
    return np.stack(of_trials, axis=1)


def over_seeds(draws: Floats, seeds: Sequence[Seeds], purpose: int = 1) -> Floats:
    """Mean over trials, [B, ...], of draws [B, T, ...] of trials with these seeds, which are resampled.

    The seeds of generators and those of trainings are two crossed factors. Of each, the means of its seeds are drawn
    with replacement, and the deviations of both from the mean of all trials are added; a deviation that belongs to one
    trial alone counts in both, so the interval is a little too wide rather than too narrow.
    purpose: 1 or 2, which have other random draws.
    """
    result: Floats = draws.mean(axis=1)
    of_trainings, of_generators = [seed for _, seed in seeds], [-1 if seed is None else seed for seed, _ in seeds]
    for key, factor in ((purpose, of_trainings), (purpose + _PURPOSES, of_generators)):
        levels = list(dict.fromkeys(factor))
        if len(levels) > 1:
            means = [draws[:, np.equal(factor, level)].mean(axis=1) for level in levels]
            result = result + _resampled_deviation(np.stack(means, axis=1), key)
    return result


def _resampled_deviation(draws: Floats, key: int) -> Floats:
    """Deviation [B, ...] of the mean of S values [B, S, ...] drawn with replacement from the mean of all.

    A mean over S resampled seeds has only (S - 1) / S of the variance of a mean over S new seeds. It is enlarged to
    correct for this.
    """
    count, seeds = draws.shape[:2]
    drawn = np.random.default_rng([_BOOTSTRAP_SEED, key]).integers(seeds, size=(count, seeds))
    of_drawn = np.take_along_axis(draws, drawn.reshape(count, seeds, *[1] * (draws.ndim - 2)), axis=1).mean(axis=1)
    return np.asarray(math.sqrt(seeds / (seeds - 1)) * (of_drawn - draws.mean(axis=1)))


def arm_scores(answers: Answers) -> ArmScores:
    """Scores of one arm: the mean of each measure over the arm's trials, with its 95 % interval."""
    low, high = np.array([measure.bounds for measure in shown("sweeps")]).T[:, :, None]
    return _scores(answers, _points(answers), np.clip(over_seeds(resampled(answers), answers.seeds), low, high))


def difference(arm: Answers, reference: Answers) -> ArmScores:
    """Scores of `arm` minus scores of `reference`, on the same test images and, if any are shared, on the same seeds.

    Raises ValueError, with the reason, if their test images or types differ.
    """
    if arm.images != reference.images:
        apart = len(set(arm.images) ^ set(reference.images))
        raise ValueError(f"not paired: {apart} test images are only in one of the two, or of another type or group")
    if arm.cell_types != reference.cell_types:
        raise ValueError("not paired: the classifiers know other types")
    pairs = _pairs(arm.seeds, reference.seeds)
    ours = arm.of_seeds([own for own, _ in pairs]) if pairs else arm
    theirs = reference.of_seeds([other for _, other in pairs]) if pairs else reference
    draws, their_draws = resampled(ours), resampled(theirs)
    both = [(own[0] if own[0] is not None else other[0], own[1]) for own, other in pairs]
    if pairs:
        spread = over_seeds(draws - their_draws, both)
    else:
        spread = over_seeds(draws, ours.seeds) - over_seeds(their_draws, theirs.seeds, purpose=2)
    paired = sorted({seed for _, seed in both})
    found = _scores(arm, _points(ours) - _points(theirs), spread, differences=True)
    return replace(found, paired_seeds=paired)


def _pairs(ours: Sequence[Seeds], theirs: Sequence[Seeds]) -> list[tuple[Seeds, Seeds]]:
    """Trials of the same seeds; one without generators is paired with those of its seed on the images of each."""
    return [
        (own, other)
        for own in ours
        for other in theirs
        if own[1] == other[1] and (own[0] == other[0] or None in (own[0], other[0]))
    ]


def _points(answers: Answers) -> Floats:
    """Each measure, its mean over the trials: [measures, 1 + C]."""
    chosen = shown("sweeps")
    return np.asarray(np.mean([values_of(chosen, images.once)[0] for images in answers.scored], axis=0))


def _scores(answers: Answers, values: Floats, draws: Floats, differences: bool = False) -> ArmScores:
    """values [measures, 1 + C] and draws [B, measures, 1 + C] as estimates."""
    of_types = [measure.name for measure in shown("sweeps") if measure in shown("types")]
    confusions = np.sum([images.confusions for images in answers.scored], axis=0)
    overall, per_type = estimates(shown("sweeps"), values, draws, confusions, differences)
    counts = answers.scored[0].confusions.sum(axis=(0, 2))
    return ArmScores(
        overall,
        {name: {measure: per_type[measure][i] for measure in of_types} for i, name in enumerate(answers.cell_types)},
        {name: int(counts[i]) for i, name in enumerate(answers.cell_types)},
    )
